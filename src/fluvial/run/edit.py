"""Edits of images by a trained run: inpainting, variations, super-resolution, SDEdit, inversion, examples.

Images are uint8 tensors (n, c, h, w), a mask is a bool tensor (h, w). Result i is an edit of image i // copies; its
noise depends on (seed, i). An edit is a function of solvers in `sampling/edit.py`, which stand in place of the solver
of the sampling settings.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluvial.flow.guidance import Guidance
from fluvial.flow.solvers import Solver
from fluvial.methods import method_of, name_of
from fluvial.methods.method import Editable
from fluvial.run.load import Sampler
from fluvial.sampling import edit
from fluvial.sampling.samples import Samples
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.sampling.work import Work, check_at_least, check_between, latent_mask, latents_of
from fluvial.utils.checks import misfit
from fluvial.utils.randomness import address, normal
from fluvial.utils.tensors import tensors_checksum

PASSES = 5  # of inpainting by scales
RESAMPLING, EXAMPLES = 2**41, 2**42  # addresses of noise, beyond those of solver steps
CLASSES = int | str | Sequence[int | str] | np.ndarray | Tensor | None


class How(TypedDict, total=False):
    """The arguments that every edit takes."""

    classes: CLASSES
    """Class of all images, or of each; by name or id. None draws without a class."""
    copies: int
    """Results for each image."""
    seed: int
    settings: SampleConfig | None
    """Sampling settings; the run's own by default, of which steps, guidance and solver replace some."""
    steps: int | Sequence[int] | None
    guidance: float | Guidance | None
    solver: AnySolver | None


def inpaint(
    sampler: Sampler,
    images: Tensor,
    mask: Tensor,
    *,
    repeats: int = 4,
    jump: int = 2,
    passes: int | None = None,
    **how: Unpack[How],
) -> Samples:
    """The images with the pixels of the mask (True) drawn anew, to fit the others; also for what is outside of them.

    Known pixels are kept exactly; in an autoencoder's latents, those are known whose pixels all are, and decoding
    changes known pixels by as much as it does. `repeats` is how often steps are taken again, `jump` how many at a time
    (see `inpainted`). Methods that draw by scales (FlowAR) have the mask at every scale. A coarse part is a mean of
    known and unknown pixels, so all scales are drawn `passes` times (5 by default), each time with the coarsest of the
    image so far.

    Raises ValueError for a mask of another size, or one that leaves nothing to draw or nothing known, and for passes
    with a method that does not draw by scales.
    """
    free = latent_mask(mask, sampler.autoencoder.stride, sampler.run.method.size)
    work = _begin(sampler, images, how)
    check_at_least(0, "repeats", repeats)
    check_at_least(1, "jump", jump)
    if passes is not None:
        check_at_least(1, "passes", passes)
        _by_scales(work, "passes")
    parts = work.ends(work.latents)
    known = [part == 1 for part in work.ends((~free).float().expand(1, *work.latents.shape[1:]))]
    passes = 1 if len(parts) == 1 else PASSES if passes is None else passes
    coarsest, nfe = None, Counter[str]()
    drawn = work.latents
    for last in reversed(range(passes)):
        seed = address(work.seed, "inpaint", last) if last else work.seed

        def solvers(
            solver: Solver, positions: slice, coarsest: Tensor | None = coarsest, seed: int = seed
        ) -> Solver | list[Solver]:
            draws = work.noise(positions, RESAMPLING, seed)
            fitted = [
                edit.inpainted(solver, part[positions], fixed, draw, repeats=repeats, jump=jump, path=work.path)
                for part, fixed, draw in zip(parts, known, draws, strict=True)
            ]
            return _one_or_all(fitted if coarsest is None else [edit.kept(coarsest[positions]), *fitted[1:]])

        drawn, evaluated = work.drawn(solvers, seed=seed)
        nfe += evaluated
        coarsest = work.ends(drawn)[0]
    how_often = {"repeats": repeats, "jump": jump, "passes": passes}
    return work.result(drawn, nfe, edit="inpaint", mask_sha256=tensors_checksum({"mask": mask}), **how_often)


def vary(sampler: Sampler, images: Tensor, *, keep: int, **how: Unpack[How]) -> Samples:
    """Variations: the `keep` coarsest scales of the images, the others drawn anew; of another class, if one is given.

    Raises ValueError for a method without scales, or `keep` that is not from 0 to one below their number.
    """
    work = _begin(sampler, images, how)
    parts = work.ends(work.latents)
    _by_scales(work, "variations")
    if misfit(keep, int) or not 0 <= keep < len(parts):
        raise ValueError(
            f"keep must be from 0 to {len(parts) - 1}, as the model has {len(parts)} scales ({work.scales}), got {keep}"
        )

    def solvers(solver: Solver, positions: slice) -> list[Solver]:
        return [edit.kept(part[positions]) if i < keep else solver for i, part in enumerate(parts)]

    return work.samples(solvers, edit="vary", keep=keep)


def grow(sampler: Sampler, images: Tensor, *, agree: bool = False, **how: Unpack[How]) -> Samples:
    """Large images from small ones, of the size of one of the scales: the finer scales are drawn.

    With `agree` the result is changed as little as needed so that, pooled by area, it is the small image again: in
    latents and before pixels are rounded to 256 levels. Raises ValueError for a method without scales, or images of
    another size than one of its scales but the last.
    """
    config: Any = sampler.run.method
    method = method_of(config)
    maps = [
        tuple(clean.shape[-2:]) for _, clean in method.targets(config, torch.zeros(1, config.channels, *config.size))
    ]
    work = _begin(sampler, images, how, sizes=maps[:-1])
    _by_scales(work, "growing images")
    size = (int(work.latents.shape[-2]), int(work.latents.shape[-1]))
    last = maps.index(size)
    parts = work.ends(edit.lifted(work.latents, config.size))

    def solvers(solver: Solver, positions: slice) -> list[Solver]:
        return [edit.kept(part[positions]) if i <= last else solver for i, part in enumerate(parts)]

    drawn, nfe = work.drawn(solvers)
    if agree:
        bounds = (-1.0, 1.0) if sampler.autoencoder.identity == "pixels" else None
        drawn = edit.agreeing(drawn, work.latents.to(drawn), bounds)
    return work.result(drawn, nfe, edit="grow", from_size=list(size), agree=agree)


def redraw(sampler: Sampler, images: Tensor, *, at: float, **how: Unpack[How]) -> Samples:
    """The images with noise, at time `at` (0 all noise, 1 none), and drawn from there (SDEdit); at every scale.

    Raises ValueError for a time that is not between 0 and 1.
    """
    work = _begin(sampler, images, how)
    _check_time(sampler, at)
    parts = work.ends(work.latents)

    def solvers(solver: Solver, positions: slice) -> Solver | list[Solver]:
        return _one_or_all([edit.started(solver, part[positions], float(at), path=work.path) for part in parts])

    return work.samples(solvers, edit="redraw", at=at)


class Inverted(NamedTuple):
    """The noise of images, and the way back from it."""

    noise: Float[Tensor, "n c h w"]
    """The noise that sampling without a history takes to the images."""
    back: Samples
    """The images that it takes this noise to."""
    error: Float[Tensor, " n"]
    """Root mean square difference of their latents from those of the images."""


def invert(sampler: Sampler, images: Tensor, **how: Unpack[How]) -> Inverted:
    """The noise of the images by the ODE run backwards, and the images that it leads to again.

    Without guidance unless it is given. ARFlow is followed without its history. Raises ValueError for a method that
    draws by scales, each of which has an ODE of its own.
    """
    sampler.run.check_ode()
    how = {"guidance": 1.0, **how} if not how.get("settings") else how
    work = _begin(sampler, images, how)
    if work.scales:
        raise ValueError(f"{work.method} draws by scales ({work.scales}), and has no one ODE to run backwards")
    noise, _ = work.drawn(lambda solver, positions: edit.placed(edit.inverted(solver), work.latents[positions]))
    latents, nfe = work.drawn(lambda solver, positions: edit.placed(edit.unremembered(solver), noise[positions]))
    error = (latents - work.latents.to(latents)).square().flatten(1).mean(1).sqrt()
    return Inverted(noise, work.result(latents, nfe, edit="invert"), error)


def in_context(
    sampler: Sampler,
    examples: Tensor,
    count: int = 16,
    *,
    alone: bool = True,
    **how: Unpack[How],
) -> Samples:
    """`count` images that are drawn with these examples as ARFlow's history; see `shown`.

    Without classes it is the null label's, which leaves the class to the examples. Raises ValueError for a method
    without a history.
    """
    check_at_least(1, "count", count)
    if sampler.run.method.images_per_sequence is None:
        raise ValueError(
            f"examples are shown in a history, which only ARFlow has, not {name_of(type(sampler.run.method))}"
        )
    _no_copies(how)
    work = replace(_begin(sampler, examples, how), count=count)
    if work.settings.history == 0:
        raise ValueError("examples are shown in the history, and sample.history 0 leaves none; give another number")
    if not work.settings.solver_settings.is_adaptive and max(work.settings.each_steps) < 2:
        raise ValueError("examples are shown after the first step, and 1 step leaves none to see them; give more steps")
    labels = None if work.labels is None else work.labels[torch.arange(count) % len(work.labels)]
    work, shape = replace(work, labels=labels), work.latents.shape

    def solvers(solver: Solver, positions: slice) -> Solver:
        rows = torch.arange(positions.start, positions.stop).unsqueeze(1) + torch.arange(shape[0])
        noise = normal(work.seed, range(positions.start, positions.stop), tuple(shape), step=EXAMPLES)
        return edit.shown(solver, work.latents[rows % shape[0]], noise, alone=alone, path=work.path)

    return work.samples(solvers, edit="context", examples=shape[0], alone=alone)


def fork(sampler: Sampler, index: int = 0, count: int = 16, *, at: float, **how: Unpack[How]) -> Samples:
    """`count` images that share the trajectory of image `index` until time `at`, and its history.

    Raises ValueError for a method that draws by scales, whose `vary` does the like.
    """
    check_at_least(1, "count", count)
    check_at_least(0, "index", index)
    _check_time(sampler, at)
    _no_copies(how)
    work = replace(_begin(sampler, None, how, from_noise=True), count=count)
    if work.scales:
        raise ValueError(f"{work.method} draws by scales: for images that share the coarse ones take edit.vary")
    if work.labels is not None:
        if len(work.labels) > 1:
            raise ValueError(f"images that begin as one are of one class, got {len(work.labels)} classes")
        work = replace(work, labels=work.labels.expand(count))
    trunk = normal(work.seed, [index], sampler.run.method.noise_shape)

    def solvers(solver: Solver, positions: slice) -> Solver:
        return edit.forked(
            solver, trunk.expand(positions.stop - positions.start, *trunk.shape[1:]), float(at), path=work.path
        )

    return work.samples(solvers, edit="fork", index=index, at=at)


def _begin(
    sampler: Sampler,
    images: Tensor | None,
    how: How | dict[str, Any],
    sizes: Sequence[tuple[int, ...]] | None = None,
    *,
    from_noise: bool = False,
) -> Work:
    """The work of an edit. Raises ValueError for images or classes that do not fit the run, or a stochastic solver."""
    given: dict[str, Any] = dict(how)
    classes, copies, seed = given.pop("classes", None), given.pop("copies", 1), given.pop("seed", 0)
    settings = sampler.settings(given.pop("settings", None), **given)
    config: Any = sampler.run.method
    if settings.solver_settings.is_stochastic:
        raise ValueError(
            f"edits need the solver of an ODE, got {settings.solver_settings.name}; take euler, ab2 or heun"
        )
    if not isinstance(method_of(config), Editable):
        raise ValueError(f"the method {name_of(type(config))} has no function `ends`, which edits need")
    check_at_least(1, "copies", copies)
    asked = sampler.asked(1, classes=classes, seed=seed)
    latents = torch.zeros(0, config.channels, *config.size)
    if not from_noise:
        latents = latents_of(
            sampler.autoencoder,
            images,
            channels=config.channels,
            sizes=sizes or [config.size],
            device=next(sampler.model.parameters()).device,
        )
        latents = latents.repeat_interleave(copies, dim=0)
    ids = None if classes is None else asked.classes
    if ids is None and config.classes and not config.label_drop:
        why = "distilled" if sampler.run.train.distillation.steps else "trained without label drop"
        raise ValueError(f"the run was {why} and draws nothing without a class: give classes (--classes)")
    count = len(images) if images is not None else 1
    if ids is not None and images is not None and len(ids) not in (1, count):
        raise ValueError(f"classes must be one, or one for each of {count} images, got {len(ids)}")
    labels = None if ids is None else torch.tensor(ids if len(ids) > 1 else ids * count).repeat_interleave(copies)
    model, draw = sampler.computing(settings)
    return Work(
        model=model,
        draw=draw,
        autoencoder=sampler.autoencoder,
        settings=settings,
        latents=latents,
        labels=labels,
        seed=seed,
        count=len(latents),
        given={} if images is None else {"images_sha256": tensors_checksum({"images": images})},
        record=partial(_record, sampler, seed, settings, ids),
    )


def _record(
    sampler: Sampler, seed: int, settings: SampleConfig, classes: tuple[int, ...] | None, nfe: Counter[str]
) -> dict[str, Any]:
    about = sampler.provenance(seed=seed, settings=settings, classes=classes, evaluations=nfe)
    return about if classes is not None else {**about, "labels": "none"}  # not all classes in turn


def _check_time(sampler: Sampler, at: float) -> None:
    """Raises ValueError for a time that is not between 0 and 1, or that a model that was distilled has no step from."""
    check_between(at)
    steps = sampler.run.train.distillation.steps
    if steps and not math.isclose(at * steps, round(at * steps), abs_tol=1e-6):
        if steps == 1:
            raise ValueError("the model was distilled to 1 step, which begins at 0, from noise alone: take its teacher")
        known = " ".join(f"{i / steps:g}" for i in range(1, steps))
        raise ValueError(
            f"the model was distilled to {steps} steps, and at must be where one begins: {known}; got {at:g}"
        )


def _no_copies(how: How) -> None:
    if (copies := how.get("copies", 1)) != 1:
        raise ValueError(f"the number of images is count; copies are of images that are edited, got {copies}")


def _by_scales(work: Work, what: str) -> None:
    if not work.scales:
        raise ValueError(f"{what} need a method that draws by scales (flowar), and the run is of {work.method}")


def _one_or_all(solvers: list[Solver]) -> Solver | list[Solver]:
    return solvers[0] if len(solvers) == 1 else solvers
