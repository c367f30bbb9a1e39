"""Diagnosis of a run: checks of log, settings and latents, with likely causes and what to do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from fluvial import recipes
from fluvial.config import Run, differences
from fluvial.recipes.expected import EXPECTED
from fluvial.run.folder import RunFolder
from fluvial.tools.doctor import losses, progress, settings
from fluvial.tools.doctor.check import Check, not_checked
from fluvial.tools.doctor.latents import check_latents, check_pixels, training_latents
from fluvial.tools.doctor.level import level
from fluvial.training import log
from fluvial.training.rows import Row

SET_BY_DISTILLATION = ("settings together", "learning rate", "schedule", "moving average")
COMPARED = ("method", "optim.", "data.", "autoencoder.", "train.steps", "train.batch", "train.log_every")


def doctor(folder: Path | str, *, fetch: bool = False) -> list[Check]:
    """Runs all checks of a run folder. Raises ValueError if it is not one, or has no log.

    Latents are not checked if data or autoencoder would have to be downloaded and `fetch` is False.
    """
    folder = Path(folder)
    run, record = RunFolder(folder).run(), RunFolder(folder).record()
    if not _has_begun(folder):
        return [_not_begun(run), settings.check_rate(run), settings.check_schedule(run), settings.check_together(run)]
    rows = log.read(folder)
    try:
        latents: Tensor | str = training_latents(run, folder, fetch=fetch)
    except (ValueError, OSError) as error:
        latents = str(error)
    found = examine(run, rows, latents=latents, recipe=record.get("recipe"), continued=record.get("start") is not None)
    return [_of_distilled(check) for check in found] if run.train.distillation.steps else found


def _of_distilled(check: Check) -> Check:
    """A check of a run that was distilled, whose settings `fluvial distill` has chosen."""
    if check.verdict == "ok" or not (check.settings or check.command.startswith("fluvial train")):
        return check
    if check.name in SET_BY_DISTILLATION:
        return not_checked(check.name, "`fluvial distill` sets it")
    advice = f"{check.advice}. For a run that was distilled: distil again, with other options"
    return replace(check, advice=advice.removeprefix(". "), settings={}, command="")


def _has_begun(folder: Path) -> bool:
    """False for a run folder without a line of log and without weights."""
    file = folder / "log.jsonl"
    return (file.is_file() and file.stat().st_size > 0) or (folder / "checkpoints").is_dir()


def _not_begun(run: Run) -> Check:
    """The check of a run that has not come to its first line of log."""
    return Check(
        name="steps",
        found="no line of log",
        expected=f"{run.train.steps:,} steps, a line every {run.train.log_every:,}",
        verdict="wrong",
        advice="training has not begun, or was ended before its first line: start it, or wait",
        command="fluvial train RUN",
    )


def examine(
    run: Run,
    rows: Sequence[Row],
    *,
    latents: Float[Tensor, "n c h w"] | str = "no latents were given",
    recipe: str | None = None,
    continued: bool = False,
) -> list[Check]:
    """Runs all checks on a run and the rows of its log.

    `latents` are some of its training latents, or the reason why there are none; `recipe` is the name of the recipe it
    was started from; `continued` is True if training started from the weights of another run.
    """
    known = None if isinstance(latents, str) else latents
    expected = level(run.method, known)
    bands = EXPECTED.get(recipe or "", {})
    look_at = check_pixels if run.autoencoder.name == "pixels" else check_latents
    return [
        losses.check_finite(run, rows),
        losses.check_start(run, rows, expected, continued=continued),
        losses.check_fall(run, rows, expected),
        losses.check_rise(run, rows),
        losses.check_recipe(rows, bands, changed(run, recipe) if recipe and bands else ()),
        losses.check_validation(rows),
        progress.check_spikes(run, rows),
        progress.check_clipping(run, rows),
        *progress.check_events(run, rows),
        progress.check_speed(rows),
        not_checked("latents", str(latents)) if known is None else look_at(known),
        settings.check_rate(run),
        settings.check_schedule(run),
        settings.check_average(run, rows),
        settings.check_together(run),
    ]


def changed(run: Run, recipe: str) -> list[str]:
    """The settings that affect the loss and differ from the recipe."""
    keys = differences(run, recipes.get(recipe))
    return [key for key in keys if key.startswith(COMPARED) and not key.startswith(settings.FOUND)]
