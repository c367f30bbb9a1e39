"""The dialog that starts a run: what to train on, the plan for it, and a button that starts it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nicegui import ui

from fluvial.studio.aside import aside
from fluvial.studio.gallery import run_address
from fluvial.studio.shared import Studio
from fluvial.studio.training import METHODS, Training, checked_name, free_name, words_for

T = TypeVar("T")
IMAGES, RECIPE = "My images", "A recipe"
MINUTES = 30
NAMES = {"arflow": "ARFlow", "flowar": "FlowAR", "sit": "SiT"}


def new_run(studio: Studio) -> None:
    """Opens the dialog."""
    NewRun(studio).dialog.open()


class NewRun:
    """The dialog: its fields, the plan, and the start. A plan that no longer fits the fields cannot be started."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.planned: list[str] = []
        self.lengths: dict[str, int] = {}
        """The steps of each recipe."""
        self.named = ""
        """The name that was proposed: it is proposed anew until the user writes another."""
        with ui.dialog() as self.dialog, ui.card().classes("new-run"):
            ui.label("New run").classes("heading")
            self.kind = ui.toggle([IMAGES, RECIPE], value=IMAGES, on_change=self.switch)
            self.kind.props("no-caps unelevated").classes("at-kind")
            self.images = ui.column().classes("fields")
            with self.images:
                self.place = ui.input("Images", placeholder="a folder, or OWNER/NAME of the hub").classes("at-place")
                with ui.row().classes("pair"):
                    self.minutes = ui.number("Minutes", value=MINUTES, min=0.1, max=1e5).classes("at-minutes")
                    self.method = ui.select({name: NAMES[name] for name in METHODS}, value="arflow", label="Method")
            self.recipes = ui.column().classes("fields")
            with self.recipes:
                self.recipe = ui.select([], label="Recipe", with_input=True).classes("at-recipe")
                self.steps = ui.number("Steps", placeholder="as in the recipe", min=1, precision=0).classes("at-steps")
            self.recipes.set_visibility(False)
            for field in (self.place, self.minutes, self.method, self.recipe, self.steps):
                field.props("dense outlined").classes("w-full").on_value_change(self.changed)
            self.name = ui.input("Name of the run").props("dense outlined").classes("w-full").classes("at-name")
            self.waits = ui.row().classes("dim small")
            with self.waits:
                ui.spinner(size="1.2em")
                ui.label("Looking at the images and measuring steps of training…")
            self.waits.set_visibility(False)
            self.plan = ui.label().classes("code plan").classes("at-plan")
            self.plan.set_visibility(False)
            with ui.row().classes("buttons"):
                ui.button("Cancel", on_click=self.dialog.close).props("flat no-caps")
                self.look = (
                    ui.button("Show the plan", on_click=self.show_plan).props("unelevated no-caps").classes("at-show")
                )
                self.begin = (
                    ui.button("Start training", on_click=self.start).props("unelevated no-caps").classes("at-start")
                )
            self.begin.set_visibility(False)

    async def switch(self) -> None:
        """Shows the fields for images or for a recipe."""
        recipe = self.kind.value == RECIPE
        self.images.set_visibility(not recipe)
        self.recipes.set_visibility(recipe)
        self.changed()
        if recipe and not self.recipe.options:
            self.lengths = await aside(_recipes)
            value = "digits-sit" if "digits-sit" in self.lengths else None
            self.recipe.set_options(list(self.lengths), value=value)

    def changed(self) -> None:
        """Takes back the plan, and proposes a name."""
        self.planned = []
        self.plan.set_visibility(False)
        self.begin.set_visibility(False)
        self.look.set_visibility(True)
        steps = self.lengths.get(str(self.recipe.value or ""))
        self.steps.props(f'placeholder="{f"{steps:,}, as in the recipe" if steps else "as in the recipe"}"')
        if self.name.value in ("", self.named):
            recipe = self.kind.value == RECIPE
            place = str(self.recipe.value or "") if recipe else Path((self.place.value or "").strip()).name
            wanted = place if recipe or not place else f"{self.method.value}-{place}"
            self.named = free_name(self.studio.root, wanted) if wanted else ""
            self.name.set_value(self.named)

    def words(self) -> list[str]:
        """The arguments of `fluvial`. Raises ValueError for fields that cannot be."""
        out = self.studio.root / (self.name.value or "")
        if self.kind.value == RECIPE:
            words = words_for(str(self.recipe.value or ""), out, steps=int(self.steps.value or 0))
        else:
            minutes = float(self.minutes.value or 0)
            words = words_for(self.place.value or "", out, minutes=minutes, method=str(self.method.value))
        checked_name(self.studio.root, self.name.value or "")
        return words

    async def show_plan(self) -> None:
        """Runs the command with --dry-run, and shows what it says."""
        words = self.checked(self.words)
        if words is None:
            return
        self.look.set_enabled(False)
        self.waits.set_visibility(True)
        fits, said = await aside(lambda: self.studio.trainings.plan(words))
        self.look.set_enabled(True)
        self.waits.set_visibility(False)
        if self.dialog.value and words == self.checked(self.words):  # the fields may have changed meanwhile
            self.planned = words if fits else []
            self.plan.set_text(said)
            self.plan.set_visibility(True)
            self.begin.set_visibility(fits)
            self.look.set_visibility(not fits)

    def start(self) -> None:
        """Starts what was planned, and opens the page of the run."""
        if self.planned:
            name = self.name.value or ""
            if self.checked(lambda: self._begun(name)) is not None:
                self.dialog.close()
                ui.navigate.to(run_address(name))

    def _begun(self, name: str) -> Training:
        """Starts the training, unless another run has come to be of that name meanwhile."""
        checked_name(self.studio.root, name)
        return self.studio.trainings.start(self.planned, name)

    def checked(self, call: Callable[[], T]) -> T | None:
        """The result of a call; its complaint is shown in place of it."""
        try:
            return call()
        except (ValueError, OSError) as error:
            ui.notify(str(error), type="negative")
            return None


def _recipes() -> dict[str, int]:
    from fluvial.recipes import RECIPES, get

    return {name: get(name).train.steps for name in RECIPES}
