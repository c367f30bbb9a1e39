"""Diagnosis of a run: checks of log, settings and latents, with likely causes and what to do."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from fluvial import recipes
from fluvial.config import Run, differences
from fluvial.recipes.expected import EXPECTED
from fluvial.run.folder import RunFolder
from fluvial.tools.doctor import losses, progress, settings
from fluvial.tools.doctor.check import Check, not_checked
from fluvial.tools.doctor.latents import check_latents, training_latents
from fluvial.tools.doctor.level import level
from fluvial.training import log

COMPARED = ("method", "optim.", "data.", "autoencoder.", "train.steps", "train.batch", "train.log_every")


def doctor(folder: Path | str, *, fetch: bool = False) -> list[Check]:
    """Runs all checks of a run folder. Raises ValueError if it is not one, or has no log.

    Latents are not checked if data or autoencoder would have to be downloaded and `fetch` is False.
    """
    folder = Path(folder)
    run, rows, record = RunFolder(folder).run(), log.read(folder), RunFolder(folder).record()
    try:
        latents: Tensor | str = training_latents(run, folder, fetch=fetch)
    except (ValueError, OSError) as error:
        latents = str(error)
    return examine(run, rows, latents=latents, recipe=record.get("recipe"), continued=record.get("start") is not None)


def examine(
    run: Run,
    rows: Sequence[log.Row],
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
    return [
        losses.check_finite(rows),
        losses.check_start(run, rows, expected, continued=continued),
        losses.check_fall(run, rows, expected),
        losses.check_rise(rows),
        losses.check_recipe(rows, bands, changed(run, recipe) if recipe and bands else ()),
        losses.check_validation(rows),
        progress.check_spikes(rows),
        progress.check_clipping(run, rows),
        *progress.check_events(rows),
        progress.check_speed(rows),
        not_checked("latents", str(latents)) if known is None else check_latents(known),
        settings.check_rate(run),
        settings.check_schedule(run),
        settings.check_average(run, rows),
        settings.check_together(run),
    ]


def changed(run: Run, recipe: str) -> list[str]:
    """The settings that affect the loss and differ from the recipe."""
    keys = differences(run, recipes.get(recipe))
    return [key for key in keys if key.startswith(COMPARED) and not key.startswith(settings.FOUND)]
