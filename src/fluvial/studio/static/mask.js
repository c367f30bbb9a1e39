// The image of the Edit page: a file is dropped on it, and a mask painted over it with the pointer or a finger.
export default {
  template: `
    <div class="edit-canvas" :class="{ over: dropping, paints: painting }"
         @dragover.prevent="dropping = true" @dragleave="dropping = false" @drop.prevent="take">
      <img v-if="picture" class="pixels" :src="picture" draggable="false" alt="image to edit">
      <div v-else class="waiting">{{ waiting }}</div>
      <canvas v-show="picture && painting" ref="canvas" aria-label="mask" @pointerdown="begin" @pointermove="go" @pointerup="end"
              @pointercancel="end" @pointerleave="at = null"></canvas>
      <div v-if="at && painting && picture" class="edit-brush" :style="at"></div>
      <div v-if="dropping" class="edit-drop">Drop it here</div>
    </div>`,
  props: { uploader: Number },
  data: () => ({ picture: "", waiting: "loading", painting: false, dropping: false, width: 0, height: 0, at: null }),
  created() { this.size = 1; this.erases = false; this.last = null; this.mask = new Uint8Array(0); },
  methods: {
    show(picture, width, height) {
      this.picture = picture;
      if (!width || (width === this.width && height === this.height)) return; // the mask stays
      this.width = width;
      this.height = height;
      this.mask = new Uint8Array(width * height);
      this.draw();
    },
    none() { this.waiting = "no image"; },
    say(text) { this.picture = ""; this.waiting = text; },
    paints(on) { this.painting = on; },
    brush(size, erases) { this.size = size; this.erases = erases; },
    clear() { this.mask.fill(0); this.draw(); this.send(); },
    take(event) { // files that are dropped go to the uploader
      this.dropping = false;
      const files = [...event.dataTransfer.files];
      if (files.length) getElement(this.uploader).$refs.qRef.addFiles(files);
    },
    place(event) { // of the pointer, in pixels of the image
      const box = this.$refs.canvas.getBoundingClientRect();
      const scale = Math.min(box.width / this.width, box.height / this.height) || 1;
      const left = box.left + (box.width - scale * this.width) / 2, top = box.top + (box.height - scale * this.height) / 2;
      const side = Math.max(2, this.size * scale);
      this.at = { width: side + "px", height: side + "px", left: event.clientX - box.left + "px", top: event.clientY - box.top + "px" };
      return { x: (event.clientX - left) / scale, y: (event.clientY - top) / scale };
    },
    begin(event) {
      if (event.button || !this.width) return;
      event.preventDefault();
      try { this.$refs.canvas.setPointerCapture(event.pointerId); } catch (error) { /* a pointer that has gone */ }
      this.last = this.place(event);
      this.dab(this.last);
      this.draw();
    },
    go(event) {
      const now = this.place(event);
      if (!this.last) return;
      const steps = Math.max(1, Math.ceil(2 * Math.hypot(now.x - this.last.x, now.y - this.last.y)));
      for (let i = 1; i <= steps; i++) {
        this.dab({ x: this.last.x + (now.x - this.last.x) * i / steps, y: this.last.y + (now.y - this.last.y) * i / steps });
      }
      this.last = now;
      this.draw();
    },
    end(event) {
      if (!this.last) return;
      this.last = null;
      if (event.pointerType === "touch") this.at = null;
      this.send();
    },
    dab({ x, y }) { // the pixels whose middle is under the brush, and the one below its own
      const radius = this.size / 2, value = this.erases ? 0 : 1;
      for (let j = Math.max(0, Math.floor(y - radius)); j <= Math.min(this.height - 1, y + radius); j++) {
        for (let i = Math.max(0, Math.floor(x - radius)); i <= Math.min(this.width - 1, x + radius); i++) {
          const inside = Math.hypot(i + 0.5 - x, j + 0.5 - y) <= radius || (i === Math.floor(x) && j === Math.floor(y));
          if (inside) this.mask[j * this.width + i] = value;
        }
      }
    },
    draw() {
      const canvas = this.$refs.canvas;
      canvas.width = this.width || 1;
      canvas.height = this.height || 1;
      if (!this.width) return;
      const colour = getComputedStyle(canvas).color.match(/[\d.]+/g).map(Number);
      const context = canvas.getContext("2d"), pixels = context.createImageData(this.width, this.height);
      this.mask.forEach((painted, i) => { if (painted) pixels.data.set([colour[0], colour[1], colour[2], 190], 4 * i); });
      context.putImageData(pixels, 0, 0);
    },
    send() { // lengths of runs, not painted and painted in turn
      const runs = [];
      let value = 0, length = 0;
      for (const painted of this.mask) {
        if (painted !== value) { runs.push(length); value = painted; length = 0; }
        length++;
      }
      this.$emit("mask", [...runs, length]);
    },
  },
};
