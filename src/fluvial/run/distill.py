"""Distils a run into one that samples in a few steps, or goes on with the one that is there."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluvial.config import Run
from fluvial.flow.guidance import GuidanceWeight
from fluvial.methods import method_of, name_of
from fluvial.methods.method import Distillable
from fluvial.run.folder import RunFolder
from fluvial.run.learner import build, check_trained, learner_of
from fluvial.run.load import Sampler, draw_preview, load, sampler_of
from fluvial.run.trajectories import Trajectories
from fluvial.sampling import WEIGHTS
from fluvial.sampling.plan import determining, differences
from fluvial.sampling.settings import Euler, SampleConfig
from fluvial.training import checkpoint, distributed, loop
from fluvial.training.config import Distillation
from fluvial.training.distributed import ALONE, World
from fluvial.training.health import Health
from fluvial.training.loop import OnStep
from fluvial.training.optim import OptimConfig
from fluvial.training.step import MicroBatch, loss_of, split, step
from fluvial.utils.atomic import only_one
from fluvial.utils.checks import misfit
from fluvial.utils.devices import device_of, seconds_of
from fluvial.utils.tensors import tensors_checksum

TRAJECTORIES, UPDATES = 10_000, 5_000  # by default
FEWEST, MOST_AT_ONCE, MOST_MINUTES = 64, 100_000, 1e6  # trajectories in all, and in a training step
SHARE, TRAINING = 0.25, 0.93  # of the minutes, for trajectories; of what is left, for training steps alone
TRIED, FEWEST_TRIED = 10, 16  # training steps that are timed, and trajectories at least
LONG_ENOUGH = 1.0  # seconds, to time a batch
POINTS = 128  # of trajectories in a training step, at least, by default
Say = Callable[[str], None]


def distill(
    teacher: Sampler | Path | str,
    out: Path | str,
    *,
    steps: int,
    minutes: float | None = None,
    trajectories: int | None = None,
    updates: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    settings: SampleConfig | None = None,
    device: torch.device | str | None = None,
    on_step: OnStep | None = None,
) -> Sampler:
    """Trains a copy of the teacher that samples in `steps` steps, in the folder `out`, or goes on with the one there.

    The teacher draws trajectories with its own sampling settings, or those given, guidance included; they are stored in
    the folder. The copy learns their chords, see `training/distillation.py`; of FlowAR, whose `steps` are those of each
    scale, the flow head does. With `minutes` the number of trajectories (10,000 at most) and of training steps
    (`updates`) follow from measured speed; else they are 10,000 and 5,000 by default. With 0 trajectories, or without
    room on the disk, every training step draws new ones. `batch` is the number of trajectories in a training step, by
    default such that the network is evaluated as often as in one of the teacher's. `lr`, and `seed` of the trajectories
    and their order, are the teacher's by default.

    Raises ValueError for a teacher whose sampling is no ODE with steps of its own, one that was distilled itself, and a
    folder that holds another run; RuntimeError if weights or trajectories are not finite.
    """
    for name, value, least in (
        ("steps", steps, 1),
        ("trajectories", trajectories, 0),
        ("updates", updates, 1),
        ("batch", batch, 1),
        ("seed", seed, 0),
    ):
        if value is not None and (misfit(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r:.100}")
    if batch is not None and batch > MOST_AT_ONCE:
        raise ValueError(f"batch must be at most {MOST_AT_ONCE:,}, got {batch:,}")
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < MOST_MINUTES):
        raise ValueError(f"minutes must be a number above 0, got {minutes!r:.100}")
    with distributed.world(device_of(device)) as (world, device):
        sampler = teacher if isinstance(teacher, Sampler) else load(teacher, device=device)
        sampler = _drawing_with(sampler, settings, steps)
        folder, say = RunFolder(out), partial(print, flush=True) if world.first else lambda text: None
        with only_one(folder.path) if world.first else nullcontext():
            run, about = None, _drawing(sampler)
            if world.first:
                given = {"trajectories": trajectories, "updates": updates, "batch": batch, "lr": lr, "seed": seed}
                run = _there(folder, sampler, about, steps, given)
                run = run or _planned(sampler, steps, minutes, given, world.size)
                run = _with_room(run, sampler, about, folder, say)
                start = sampler.folder and sampler.folder.path
                folder.claim(run, None, start, {"teacher": about})
            run = world.broadcast(run)
            if world.agree(world.first and folder.taken() >= run.train.steps):
                say(f"{folder} has taken all of its {run.train.steps:,} training steps; for more give more updates")
                return load(folder.path, device=device)
            say(_about(run, sampler))
            source = _source(run, sampler, about, run.train.distillation.trajectories, folder.trajectories)
            source.make(world)
            return _trained(run, folder, sampler, source, world, on_step)


def _drawing_with(sampler: Sampler, settings: SampleConfig | None, steps: int) -> Sampler:
    """The teacher with these settings of sampling, its own by default.

    Raises ValueError for a teacher that has no trajectories to learn from.
    """
    run, settings = sampler.run, sampler.settings(settings)
    solver, distilled = settings.solver_settings, run.train.distillation
    if not isinstance(method_of(run.method), Distillable):
        name = name_of(type(run.method))
        raise ValueError(f"the method {name} has no function `errors_along`, which distillation needs")
    if distilled.steps:
        raise ValueError(f"the teacher was distilled itself ({distilled.told}): take the model that it is from")
    if sampler.guide is not None:
        raise ValueError("a teacher is one model: leave out its guide, or take guidance of its own")
    if solver.is_stochastic or solver.is_adaptive:
        kind = "is no solver of an ODE" if solver.is_stochastic else "chooses its own steps"
        raise ValueError(f"a teacher draws with ab2, heun, midpoint or euler: {solver.name} {kind}")
    if steps > (most := max(settings.each_steps)):
        raise ValueError(f"steps must be at most the {most} of the teacher, got {steps}; or give it more, sample.steps")
    return replace(sampler, run=replace(run, sample=settings))


def _there(
    folder: RunFolder, sampler: Sampler, about: Mapping[str, Any], steps: int, given: Mapping[str, Any]
) -> Run | None:
    """The run that the folder holds, which goes on; None if it holds none.

    Raises ValueError if it is another run, was distilled from another teacher, or with other settings.
    """
    if not folder.exists():
        folder.check(sampler.run)
        return None
    run = folder.run()
    known = run.train.distillation
    if not known.steps:
        raise ValueError(f"{folder} holds a run that was not distilled; choose another folder with --out")
    drawn = folder.record().get("config", {}).get("teacher", {})
    unlike = differences(determining(drawn), determining(about)) if drawn else ["its run.json has lost its teacher"]
    there = {"trajectories": known.trajectories, "batch": run.train.batch, "lr": run.optim.lr, "seed": run.seed}
    there["steps"] = known.steps
    asked = {**given, "steps": steps}
    unlike += [f"{k} is {v} there and {asked[k]} here" for k, v in there.items() if asked[k] not in (None, v)]
    if unlike:
        raise ValueError(
            f"{folder} holds another distillation: {'; '.join(unlike[:3])}. Choose another folder with --out"
        )
    return replace(run, train=replace(run.train, steps=given["updates"] or run.train.steps))


def _drawing(sampler: Sampler) -> dict[str, Any]:
    """The settings and weights that the teacher draws with, as run.json has them."""
    about = sampler.provenance()
    about["sampling"]["settings"].pop("batch")  # of no effect
    return json.loads(json.dumps({**about, WEIGHTS: tensors_checksum(sampler.model.state_dict())}))


def _planned(sampler: Sampler, steps: int, minutes: float | None, given: Mapping[str, Any], world: int) -> Run:
    """The run that is distilled; its length follows from measured speed if the minutes are given."""
    started, teacher, drawn = time.perf_counter(), sampler.run, sampler.run.sample
    method: Any = method_of(teacher.method)
    points = max(POINTS, teacher.images_per_step)
    distillation = Distillation(
        steps=steps,
        trajectories=TRAJECTORIES if given["trajectories"] is None else given["trajectories"],
        teacher=sampler.described,
    )
    run = replace(
        teacher,
        seed=teacher.seed if given["seed"] is None else given["seed"],
        method=method.follower(replace(teacher.method, label_drop=0.0), steps),
        optim=OptimConfig(
            lr=teacher.optim.lr if given["lr"] is None else given["lr"],
            weight_decay=0.0,
            warmup=20,
            schedule="wsd",
            decay=0.6,
            clip="norm",
            clip_at=1.0,
        ),
        sample=SampleConfig(solver=Euler(), steps=steps, batch=drawn.batch, precision=drawn.precision),
        train=replace(
            teacher.train,
            steps=given["updates"] or UPDATES,
            batch=given["batch"] or max(1, points // steps),
            accumulate=1,
            guidance=GuidanceWeight(),
            distillation=distillation,
            ema_decay=0.999,
            ema_warmup=True,
            ema_decays=(),
            ema_lengths=(),
            score_every=0,
            keep_best=False,
            first_sample=0,
        ),
    )
    if minutes is not None:
        run = _within(run, sampler, started + minutes * 60, given, world)
    every = -(-run.train.steps // 10)
    train = replace(run.train, save_every=every, validate_every=every, sample_every=every, log_every=min(100, every))
    return replace(run, train=train)


def _within(run: Run, sampler: Sampler, end: float, given: Mapping[str, Any], world: int) -> Run:
    """The run with as many trajectories and training steps as fit before `end`, by the speed of a few of both."""
    device, train, known = next(sampler.model.parameters()).device, run.train, run.train.distillation
    trial = _source(run, sampler, _drawing(sampler), 0, Path())
    points, labels = trial.drawn(range(FEWEST_TRIED))  # the first may compile, and is not timed
    each = _seconds_each(trial.drawn, sampler.run.sample.batch, device) / world
    rows = torch.arange(max(1, train.batch // world)) % len(points)
    learner = learner_of(
        replace(run, train=replace(train, batch=len(rows), parallel="ddp")), _student(run, sampler), ALONE
    )
    batch = points[rows], None if labels is None else labels[rows]
    numbers, health = count(), Health(device)

    def call() -> None:
        step(learner, lambda number: batch, health, next(numbers))

    call()
    of_step = seconds_of(call, device, TRIED)
    left = max(0.0, end - time.perf_counter())
    drawn = known.trajectories
    if given["trajectories"] is None:
        drawn = max(FEWEST, min(TRAJECTORIES, int(SHARE * left / each)))
    if not drawn:
        of_step += train.batch * each
    updates = max(1, int(TRAINING * (left - drawn * each) / of_step))
    distillation = replace(known, trajectories=drawn)
    return replace(run, train=replace(train, steps=given["updates"] or updates, distillation=distillation))


def _seconds_each(draw: Callable[[Sequence[int]], Any], most: int, device: torch.device) -> float:
    """Seconds of a trajectory, drawn in a batch that takes a second, or is of `most`: more at once are faster."""
    at_once = min(FEWEST_TRIED, most)
    while True:
        seconds = seconds_of(partial(draw, range(at_once)), device)
        if seconds > LONG_ENOUGH or at_once == most:
            return seconds / at_once
        at_once = min(4 * at_once, most)


def _student(run: Run, sampler: Sampler) -> nn.Module:
    """The teacher's copy, of which only the part that is distilled has gradients."""
    method: Any = method_of(run.method)
    model = build(run, next(sampler.model.parameters()).device)
    model.load_state_dict(sampler.model.state_dict())
    model.requires_grad_(False)
    method.followed(model).requires_grad_(True)
    return model


def _source(run: Run, sampler: Sampler, about: Mapping[str, Any], count: int, folder: Path) -> Trajectories:
    """The trajectories that a run learns from; `about` is how its teacher draws."""
    settings, steps = sampler.run.sample, run.train.distillation.steps
    return Trajectories(*sampler.computing(settings), settings, about, steps, count, folder, run.seed)


def _with_room(run: Run, sampler: Sampler, about: Mapping[str, Any], folder: RunFolder, say: Say) -> Run:
    """The run without stored trajectories if the disk has no room for them."""
    known = run.train.distillation
    if not known.trajectories or folder.trajectories.exists():
        return run
    try:
        _source(run, sampler, about, known.trajectories, folder.trajectories).check_room()
    except ValueError as error:
        say(f"{error}. They are not stored: every training step draws new ones, which is slower")
        return replace(run, train=replace(run.train, distillation=replace(known, trajectories=0)))
    return run


def _about(run: Run, sampler: Sampler) -> str:
    """A line on the distillation before it starts."""
    train, known = run.train, run.train.distillation
    drawn = f"{known.trajectories:,} trajectories" if known.trajectories else "new trajectories in every step"
    often = train.steps * train.batch / known.trajectories if known.trajectories else 1
    return (
        f"{sampler.described}\ndistilled to {known.steps} step{'s' if known.steps > 1 else ''}: {drawn} of it, then "
        f"{train.steps:,} training steps of {train.batch}; each trajectory is learned from {often:.3g} times"
    )


def _trained(
    run: Run, folder: RunFolder, sampler: Sampler, source: Trajectories, world: World, on_step: OnStep | None
) -> Sampler:
    """Trains on the trajectories, from the newest checkpoint on."""
    model, device = _student(run, sampler), next(sampler.model.parameters()).device
    average = loop.train(
        learner_of(run, model, world),
        partial(source.batches, run.train.batch, world.share),
        folder.path,
        validate=_validation(run, source, device),
        preview=partial(draw_preview, run, sampler.autoencoder),
        on_step=on_step,
    )
    check_trained(folder, model, average)
    decoder = sampler.autoencoder
    return checkpoint.read(folder.path, lambda place: sampler_of(folder, place, average, run, decoder))


def _validation(run: Run, source: Trajectories, device: torch.device) -> loop.Measure:
    """A function from a model to its loss on trajectories that it does not learn from."""
    objective = run.objective
    points, labels = (None if part is None else part.to(device) for part in source.validation())
    assert points is not None
    whole_batch = MicroBatch(points, labels, objective.draws(run.method, points.shape, device=device))
    weights = torch.tensor(objective.part_weights(run.method), device=device)

    @torch.no_grad()
    def measure(model: nn.Module) -> dict[str, Any]:
        errors = torch.cat([objective.errors(model, *part) for part in split(whole_batch, run.train.batch)])
        return {"held_out_loss": float(loss_of(errors, weights))}

    return measure
