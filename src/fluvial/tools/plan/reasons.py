"""The reasons of a plan: what was chosen, why, and the option that changes it."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fluvial.config import Run
from fluvial.methods import method_of, name_of
from fluvial.tools.plan import pace
from fluvial.tools.plan.dataset import ASYMMETRY, Dataset
from fluvial.tools.plan.draft import PIXELS
from fluvial.tools.plan.result import Choice, Plan
from fluvial.utils.progress import duration

MOST_NAMES = 4
NETWORK = ("method.depth", "method.width", "method.patch")  # settings that fix the size of a network


def choices(
    plan: Plan, minutes: float | None, *, fixed: Mapping[str, Any], size: str | None, base: Run | None, measured: int
) -> Iterator[Choice]:
    """The choices of a plan, in the order a reader asks; those `fixed` by the user have no other reason.

    `minutes` are those asked for, if that is how the length was given, and so is `size`; `base` is the run whose
    weights are the start; so many precisions were `measured`.
    """
    run = plan.run
    method, train = run.method, run.train

    def choice(what: str, chosen: str, why: str, option: str, *settings: str) -> Choice:
        given = any(name in fixed for name in settings)
        return Choice(what=what, chosen=chosen, why="as given" if given else why, option=option)

    yield choice("classes", *_classes(plan.dataset, run), "--method.classes", "method.classes")
    yield choice("pixels", *_pixels(plan.dataset, run, base), "--data.size", "data.size")
    yield choice("mirror images", *_mirrored(plan.dataset, run), "--data.flip", "data.flip")
    yield choice("validation", *_validation(plan, run), "--data.test-path", "data.test_path", "data.validation")
    yield choice(
        "method", name_of(type(method)), "the default" if base is None else "of the weights", "--method", "method"
    )
    tokens = method_of(method).tokens(method)
    shape = f"{plan.parameters / 1e6:.2g}M parameters, {tokens} tokens an image"
    why = "of the weights" if base is not None else "as given" if size else "for the time and the images"
    yield choice("network", shape, why, "--size", *(name for name in fixed if name in NETWORK))
    yield choice("length", *_length(plan, minutes), "--minutes" if minutes is not None else "--steps")
    yield choice("batch", f"{run.images_per_step} images", "for enough steps", "--batch", "train.batch")
    yield choice("learning rate", f"{run.optim.lr:g}", f"for a width of {method.width}", "--lr", "optim.lr")
    why = "the quickest measured here" if measured > 1 else "no other is quick on this device"
    yield choice("precision", train.precision, why, "--train.precision", "train.precision")
    if train.compile:
        yield choice("compilation", "yes", "quicker as measured here", "--train.no-compile", "train.compile")


def too_short(plan: Plan, minutes: float, costs: pace.Costs) -> str:
    """The message for a time in which training does not see every image once."""
    one = plan.seconds / plan.epochs  # seconds of steps
    epochs = pace.usable(minutes, costs) / one
    needed = next(n for n in itertools.count(math.ceil(one / 60)) if pace.usable(float(n), costs) >= 1.1 * one)
    return (
        f"--minutes {minutes:g} is too short for {plan.images:,} images: on this machine it is {epochs:.2g} epochs. "
        f"Give --minutes {needed} or more, or --epochs 1, or fewer images"
    )


def _classes(dataset: Dataset, run: Run) -> tuple[str, str]:
    sizes = {name: n for name, n in dataset.class_sizes.items() if n}
    if not sizes:
        return "none", "the images are unlabelled (a folder for each class makes classes)"
    if not run.method.classes:
        few = f"{len(sizes)} classes have too few images each to tell them apart"
        return "none", "there is one class only" if len(sizes) == 1 else few
    names = sorted(sizes, key=lambda name: -sizes[name])
    shown = [f"{name} {sizes[name]:,}" for name in names[:MOST_NAMES]]
    small = f"; the smallest has {min(sizes.values())}, repeated" if run.data.small_classes == "repeat" else ""
    return f"{run.method.classes}", ", ".join(shown) + (", ..." if len(names) > MOST_NAMES else "") + small


def _pixels(dataset: Dataset, run: Run, base: Run | None) -> tuple[str, str]:
    side = run.data.size
    chosen = f"{side} x {side} {'grey' if run.data.channels == 1 else 'colour'}"
    encoder, (height, width) = run.autoencoder.name, dataset.sides
    if encoder != "pixels":
        h, w = run.method.size
        return chosen, f"as {h} x {w} latents of {encoder}"
    if dataset.is_one_size and (height, width) == (side, side):
        return chosen, "as they are"
    if base is not None:
        return chosen, "as the weights know"
    if side == PIXELS:
        return chosen, "cropped; for more, train on latents: --autoencoder"
    return chosen, f"the smallest image has {width} x {height}"


def _mirrored(dataset: Dataset, run: Run) -> tuple[str, str]:
    if run.data.flip:
        return "yes", "images and mirror images look alike"
    why = "the cache has none" if dataset.encoded else "images and mirror images differ, as letters do"
    return "no", why if dataset.asymmetry >= ASYMMETRY else "as given"


def _validation(plan: Plan, run: Run) -> tuple[str, str]:
    if run.data.test_path:
        return run.data.test_path, "as given"
    if plan.dataset.has_validation:
        return "its own images", "the data has a split for them"
    held_out = plan.dataset.count - plan.images
    return f"{held_out:,} images", f"{run.data.validation:.0%} of {plan.dataset.count:,}, as there is no split for them"


def _length(plan: Plan, minutes: float | None) -> tuple[str, str]:
    steps = f"{plan.run.train.steps:,} steps, {plan.epochs:,.{0 if plan.epochs >= 100 else 2}f} epochs"
    if minutes is not None:
        return steps, f"{minutes:g} minute{'' if minutes == 1 else 's'} at the speed measured here"
    return steps, f"about {duration(plan.seconds + plan.beside)} at the speed measured here"
