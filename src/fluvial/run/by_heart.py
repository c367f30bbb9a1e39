"""A model that learns its training images by heart: its validation loss rises, and its samples come near to them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fluvial.data.images import ImageSet
from fluvial.evaluation.against import Real, real_images
from fluvial.evaluation.images import Images
from fluvial.metrics.neighbours import closer, nearest
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import Inputs
from fluvial.training.log import rows_of, validated
from fluvial.training.loop import Measure, OnStep
from fluvial.training.step import StepMetrics

LAST, RISEN = 3, 1.02  # validations that have to be so much above the lowest
USUAL = 0.5  # nearness of samples that are no copies
OLD = 0.25  # of the steps so far, since the lowest
SAMPLES, OTHERS = 64, 500  # samples that are compared, with so many validation images at most
NUMBERS = 2**26  # pixels of training images that are compared at most: half a gigabyte in float64
ADVICE = "Stop here, or train with fewer steps, more images, or a smaller model"


def rises_since(losses: Mapping[int, float], step: int) -> int | None:
    """The step of the lowest validation loss, if it is long before `step` and the last ones are above; else None."""
    if not losses:
        return None
    lowest = min(losses, key=losses.__getitem__)
    last = sorted(losses)[-LAST:]
    above = lowest not in last and all(losses[at] > RISEN * losses[lowest] for at in last)
    return lowest if above and step - lowest > OLD * step else None


def watched(
    validate: Measure,
    on_step: OnStep | None,
    folder: RunFolder,
    inputs: Inputs,
    sample: Callable[[nn.Module, int], Tensor],
    say: Callable[[str], None],
) -> tuple[Measure, OnStep]:
    """`validate` and `on_step` that also tell, once in a run, when the validation loss has begun to rise.

    Its row of the log then has `rises_since`, the step of the lowest, and `closer_to_training`, the `nearness`
    of samples to the training images; so has the row of the last step. `sample(model, count)` draws images.
    """
    at, end = folder.taken(), inputs.run.train.steps

    def count(step: int, metrics: StepMetrics) -> None:
        nonlocal at
        at = step
        if on_step is not None:
            on_step(step, metrics)

    def measure(model: nn.Module) -> dict[str, Any]:
        found = validate(model)
        rows = [row for row in rows_of(folder.path) if row["step"] < at]
        losses = validated([*rows, {"step": at, **found}])
        since, told = rises_since(losses, at), any("rises_since" in row for row in rows)
        in_first_epoch = at * inputs.run.images_per_step < len(inputs.train[0])  # no image has been seen twice
        if since is None or in_first_epoch or at not in losses or (told and at < end):
            return found
        share = nearness(inputs, partial(sample, model))
        say(_line(since, losses[since], losses[at], share))
        return {**found, "rises_since": since, "closer_to_training": share}

    return measure, count


def _line(since: int, lowest: float, now: float, share: float | None) -> str:
    seen = ": the model begins to learn the training images by heart"
    if share is not None:
        seen = seen if share >= USUAL else ""
        seen += f"; a sample is nearer to training images than a validation image in {share:.0%} of cases "
        seen += "(50% is usual)"
    return f"the validation loss rises since step {since} ({lowest:.4g} -> {now:.4g}){seen}. {ADVICE}"


def nearness(inputs: Inputs, sample: Callable[[int], Tensor]) -> float | None:
    """The probability that an image of `sample(count)` is nearer, in pixels, to the training images than others are.

    The others are validation images. 0.5 is usual, near 1 are copies. None where it cannot be measured, as the images
    themselves are not at hand (cached latents) or samples are not finite.
    """
    try:
        real = real_of(inputs)
        samples = sample(SAMPLES)
    except (ValueError, OSError, RuntimeError):  # no reason to end a training
        return None
    if real.test is None:
        return None
    samples = samples.flatten(1).float()
    others = _pixels(real.test.some(OTHERS))
    if samples.shape[1] != others.shape[1]:
        return None
    training = _pixels(real.training.some(max(1, NUMBERS // samples.shape[1])))
    samples, others = (nearest(part, training)[0][:, 0] for part in (samples, others))
    return closer(samples, others).value


def real_of(inputs: Inputs) -> Real:
    """The training and validation images of a run. Raises ValueError for cached latents."""
    given = [part if isinstance(part, ImageSet) else None for part in (inputs.train, inputs.held_out)]
    return real_images(inputs.run.data, *given, labelled=inputs.run.method.classes > 0)


def _pixels(images: Images) -> Float[Tensor, "n d"]:
    return images.read(range(images.n))[0].flatten(1).float()
