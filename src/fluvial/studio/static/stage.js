// The picture of the playground: dragged to move through seeds, with a pinned picture beside or over it.
export default {
  template: `
    <div class="stage" tabindex="0" ref="stage"
         @pointerdown="grab" @pointermove="drag" @pointerup="drop" @pointercancel="drop">
      <img v-if="picture" class="pixels" :src="picture" draggable="false" alt="samples">
      <div v-else class="waiting">{{ waiting }}</div>
      <img v-if="picture && pinned" class="pixels over" :src="pinned" draggable="false" alt="pinned samples"
           :style="{ clipPath: 'inset(0 ' + (100 - cut) + '% 0 0)' }">
      <template v-if="picture && pinned">
        <div class="cut" :style="{ left: cut + '%' }"></div>
        <input class="cutter" type="range" min="0" max="100" step="0.5" v-model="cut" aria-label="pinned | now"
               @pointerdown.stop @pointermove.stop @pointerup.stop>
      </template>
    </div>`,
  data: () => ({ picture: "", pinned: "", cut: 50, from: null, waiting: "loading", asked: 0, due: null }),
  mounted() { window.addEventListener("keydown", this.press); },
  unmounted() { window.removeEventListener("keydown", this.press); },
  methods: {
    press(event) { // keys of the page, unless a control has them
      const keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", " "];
      const taken = document.activeElement && document.activeElement.closest(".controls, .q-menu, .q-dialog, button, input");
      if (taken || !keys.includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (event.key !== " " || !event.repeat) this.$emit("key", event.key);
    },
    show(picture) { this.picture = picture; },
    pin(picture) { this.pinned = picture; },
    say(text) { this.picture = ""; this.waiting = text; },
    grab(event) {
      if (event.button) return;
      this.from = { x: event.clientX, y: event.clientY };
      try { this.$refs.stage.setPointerCapture(event.pointerId); } catch (error) { /* a pointer that has gone */ }
    },
    drag(event) {
      if (!this.from) return;
      const side = this.$refs.stage.getBoundingClientRect().width || 1;
      this.due = this.due || { x: 0, y: 0 };
      this.due.x -= (event.clientX - this.from.x) / side;
      this.due.y -= (event.clientY - this.from.y) / side;
      this.from = { x: event.clientX, y: event.clientY };
      if (!this.asked) this.asked = requestAnimationFrame(this.send); // one message for a frame of the screen
    },
    send() {
      this.asked = 0;
      if (this.due) this.$emit("drag", this.due);
      this.due = null;
    },
    drop() {
      if (!this.from) return;
      this.from = null;
      if (this.asked) cancelAnimationFrame(this.asked);
      this.send();
      this.$emit("drop");
    },
  },
};
