"""All runs, as cards."""

from collections.abc import Callable
from html import escape

from nicegui import app, ui
from starlette.responses import FileResponse, PlainTextResponse, Response

from fluvial.studio.aside import aside
from fluvial.studio.gallery import Gallery, Shown, ago, picture_file, run_address
from fluvial.studio.pages.layout import empty, page, page_at, state_of
from fluvial.studio.pages.new_run import new_run
from fluvial.studio.pages.queue import queue
from fluvial.studio.shared import Studio

LOOKS_EVERY = 3.0  # seconds between looks at the runs
MANY = 8  # runs, above which they can be searched and sorted
ORDERS: dict[str, Callable[[Shown], tuple[object, ...]]] = {
    "newest first": lambda shown: (shown.listed.state != "running", -shown.listed.changed),
    "by name": lambda shown: (shown.name,),
    "by validation loss": lambda shown: _known(shown.listed.validation),
    "by loss": lambda shown: _known(shown.listed.loss),
    "by state": lambda shown: (("running", "damaged").index(s) if (s := shown.listed.state) in STATES[:2] else 2, s),
}
STATES = ("running", "damaged", "stopped", "finished", "weights")
HOUR = "max-age=3600"


def register(studio: Studio) -> None:
    """The page at /, and the pictures of runs at /picture/NAME."""
    gallery = Gallery(studio.root)
    studio.trainings.open(studio.root)

    @app.get("/picture/{name:path}")
    def picture(name: str, file: str = "") -> Response:
        try:
            found = picture_file(studio.root, name, file)
        except ValueError as error:
            return PlainTextResponse(str(error), 404)
        headers = {"cache-control": HOUR, "x-content-type-options": "nosniff"}
        return FileResponse(found, media_type="image/png", headers=headers)

    @page_at("/")
    async def runs() -> None:
        with page("Runs", studio.work):
            cards = Cards(studio, await aside(gallery.look))

            async def look_again() -> None:
                cards.show(await aside(gallery.look))

            ui.timer(LOOKS_EVERY, look_again)


class Cards:
    """The page of all runs: a head, the trainings that run or wait, and a card for each run."""

    def __init__(self, studio: Studio, found: list[Shown]) -> None:
        self.cards: dict[str, Card] = {}
        self.asked, self.order = "", next(iter(ORDERS))
        with ui.row().classes("runs-head"):
            ui.label("Runs").classes("heading")
            self.count = ui.label().classes("dim")
            ui.space()
            self.tools = ui.row().classes("runs-tools")
            with self.tools:
                search = (
                    ui.input(placeholder="Search").props("dense outlined clearable debounce=200").classes("at-search")
                )
                search.on_value_change(lambda event: self.search(event.value or "")).classes("runs-search")
                sort = (
                    ui.select(list(ORDERS), value=self.order).props("dense outlined options-dense").classes("at-sort")
                )
                sort.on_value_change(lambda event: self.sort(event.value))
            ui.button("New run", icon="add", on_click=lambda: new_run(studio)).props("unelevated no-caps").classes(
                "at-new"
            )
        queue(studio)
        self.none = ui.column().classes("w-full")
        with self.none:
            empty(f"No runs in {studio.root} yet", "“New run” trains one on your images, or a recipe to try it out.")
        self.nothing = ui.label("No run fits the search.").classes("dim")
        self.nothing.set_visibility(False)
        self.grid = ui.element("div").classes("runs").classes("at-runs")
        self.show(found)

    def show(self, found: list[Shown]) -> None:
        """Shows the runs as they are now; cards that are as they were stay untouched."""
        names = {shown.name for shown in found}
        fresh = [shown for shown in found if shown.name not in self.cards]
        gone = [name for name in self.cards if name not in names]
        for name in gone:
            self.cards.pop(name).link.delete()
        for shown in fresh:
            with self.grid:
                self.cards[shown.name] = Card(shown)
        for shown in found:
            self.cards[shown.name].show(shown)
        self.tools.set_visibility(len(found) > MANY)
        self.none.set_visibility(not found)
        if fresh or gone:
            self.arrange()

    def search(self, asked: str) -> None:
        self.asked = asked.lower()
        self.arrange()

    def sort(self, order: str) -> None:
        self.order = order
        self.arrange()

    def arrange(self) -> None:
        """Hides the cards that are not asked for, and puts the others in order."""
        ordered = sorted(self.cards.values(), key=lambda card: ORDERS[self.order](card.shown))
        children = [card.link for card in ordered]
        if children != self.grid.default_slot.children:
            self.grid.default_slot.children = [*children]
            self.grid.update()
        for card in ordered:
            text = f"{card.shown.name} {card.shown.listed.method} {card.shown.listed.data} {card.shown.listed.state}"
            card.link.set_visibility(all(word in text.lower() for word in self.asked.split()))
        visible = sum(card.link.visible for card in ordered)
        self.nothing.set_visibility(bool(ordered) and not visible)
        self.count.set_text(f"{visible:,} of {len(ordered):,}" if visible < len(ordered) else f"{len(ordered):,}")


class Card:
    """The card of a run. Its picture and its text are replaced only where they have changed."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.link = ui.link(target=run_address(shown.name)).classes("run").classes("at-run")
        with self.link:
            self.picture = ui.html("", sanitize=False).classes("run-picture")
            self.text = ui.html("", sanitize=False).classes("run-text")

    def show(self, shown: Shown) -> None:
        """Shows the run as it is now."""
        self.shown = shown
        source = escape(shown.picture)
        nothing = '<div class="run-nothing">no picture yet</div>'
        picture = f'<img src="{source}" loading="lazy" decoding="async" alt="">' if source else nothing
        for element, content in ((self.picture, picture), (self.text, text_of(shown))):
            if element.content != content:
                element.set_content(content)


def text_of(shown: Shown) -> str:
    """The text of a card, in HTML; all that stands in a run is escaped."""
    run = shown.listed
    about = " on ".join(part for part in (run.method, run.data.rstrip("/").rpartition("/")[2]) if part)
    losses = {"loss": run.loss, "validation": run.validation}
    told = [f"{name} <b>{value:.4g}</b>" for name, value in losses.items() if value is not None]
    told += [escape(run.score)] if run.score else []
    steps = f"step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    parts = [
        f'<div class="run-title"><span class="title">{escape(shown.name)}</span>{state_of(run.state)}</div>',
        f'<div class="dim small">{escape(about) or "&nbsp;"}</div>',
    ]
    if run.why:
        parts.append(f'<div class="small wrong run-why">{escape(run.why)}</div>')
    elif run.steps and run.state != "weights":
        share = min(100.0, 100 * run.step / run.steps)
        parts.append(f'<div class="run-bar {run.state}"><div style="width: {share:.1f}%"></div></div>')
    parts.append(f'<div class="small run-numbers">{" · ".join(told) or "&nbsp;"}</div>')
    parts.append(f'<div class="dim small run-foot"><span>{steps}</span><span>{ago(run.changed)}</span></div>')
    return "".join(parts)


def _known(value: float | None) -> tuple[object, ...]:
    """A key that puts what is not known, or no number, last."""
    return (value is None or value != value, value or 0.0)
