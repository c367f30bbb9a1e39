"""The trainings that run, wait or have failed, with the buttons that end them."""

from nicegui import ui

from fluvial.studio.aside import aside
from fluvial.studio.gallery import run_address
from fluvial.studio.shared import Studio
from fluvial.studio.training import Training

LOOKS_EVERY = 1.5  # seconds
Line = tuple[Training, list[str], list[str]]


def queue(studio: Studio, run: str = "") -> None:
    """The trainings of all runs, or of the run of this name, kept up to date."""
    trainings = studio.trainings
    box = ui.column().classes("queue").classes("at-queue")
    before: list[Line] = []

    def read() -> list[Line]:
        shown = [each for each in trainings.all() if (each.active or each.state == "failed") and run in ("", each.run)]
        lines = [12 if each.state == "failed" else 1 for each in shown]
        return [(each, trainings.before(each), trainings.output(each, n)) for each, n in zip(shown, lines, strict=True)]

    async def look() -> None:
        found = await aside(read)
        if found == before:
            return
        before[:] = found
        box.clear()
        box.set_visibility(bool(found))
        with box:
            for line in found:
                _row(studio, *line)

    box.set_visibility(False)
    ui.timer(LOOKS_EVERY, look)


def _row(studio: Studio, training: Training, before: list[str], output: list[str]) -> None:
    with ui.card().classes("queue-row"), ui.row().classes("queue-line"):
        failed, waiting = training.state == "failed", training.state == "waiting"
        state = "failed" if failed else "waits" if waiting else "is ending" if training.stopping else "trains"
        ui.link(training.run, run_address(training.run)).classes("title")
        ui.label(state).classes("state wrong" if failed else "state dim" if waiting else "state running")
        said = f"after {', '.join(before)}" if waiting else "" if failed else "".join(output[-1:])
        ui.label(said).classes("dim small queue-said")
        if failed:
            button = ui.button("Dismiss", on_click=lambda: studio.trainings.forget(training))
        else:
            label = "Remove" if waiting else "Stop at once" if training.stopping else "Stop"
            button = ui.button(label, on_click=lambda: stop(studio, training.run))
        button.props("flat dense no-caps").classes("at-stop")
        if failed:
            ui.label("\n".join(output) or "It printed nothing.").classes("code")


def stop(studio: Studio, run: str) -> None:
    """Asks a training to save and end, and says so."""
    try:
        asked = studio.trainings.stop(run)
    except ValueError as error:
        return ui.notify(str(error), type="negative")
    ui.notify(f"{run} saves and ends" if asked.state == "running" else f"{run} does not begin")
