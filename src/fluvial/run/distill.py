"""Distils a run into one that samples in a few steps, or goes on with the one that is there."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.config import Run
from fluvial.data.given import Given, is_place
from fluvial.data.images import ImageSet
from fluvial.methods import method_of, name_of
from fluvial.methods.method import Distillable, Editable
from fluvial.run.distillation_plan import FEWEST_TRIED, Trial, draft, planned, seconds_each, student, with_intervals
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import Inputs, batches_in_order, class_names_of, open_inputs, with_data
from fluvial.run.learner import check_trained, learner_of
from fluvial.run.lessons import Lessons, from_images, from_trajectories
from fluvial.run.load import Sampler, draw_preview, load, sampler_of
from fluvial.run.trajectories import Trajectories
from fluvial.sampling import WEIGHTS
from fluvial.sampling.plan import determining, differences
from fluvial.sampling.settings import SampleConfig
from fluvial.sampling.trajectories import velocities
from fluvial.training import checkpoint, distributed, loop
from fluvial.training.distillation import Teacher
from fluvial.training.distributed import World
from fluvial.training.loop import OnStep
from fluvial.utils.atomic import only_one
from fluvial.utils.checks import misfit
from fluvial.utils.devices import device_of
from fluvial.utils.tensors import tensors_checksum

FEW = 100  # training steps, that teach little
MOST_AT_ONCE, MOST_MINUTES = 100_000, 1e6  # trajectories or images in a training step
FIXED = "The model's settings are its teacher's: give images that fit them (--data; in Python images=)"
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
    images: bool | Given | Path | str = False,
    settings: SampleConfig | None = None,
    device: torch.device | str | None = None,
    start_over: bool = False,
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

    With `images` True the copy learns from the images of the run instead, and the velocities that the teacher has
    between noise and images; or from other images, a folder or whatever else `fluvial.train` takes as data.
    `start_over` trains from the start where none of the run's checkpoints is whole.

    Raises ValueError for a teacher whose sampling is no ODE with steps of its own, one that was distilled itself, and a
    folder that holds another run; RuntimeError if weights or trajectories are not finite.
    """
    started, (images, data) = time.perf_counter(), _images(images)
    lengths = {"trajectories": trajectories, "updates": updates, "batch": batch, "seed": seed}
    given = {name: _whole(name, value) for name, value in lengths.items()}
    given |= {"lr": None if lr is None else float(lr), "images": images}
    steps = _whole("steps", steps) or 0
    _check_options(minutes, given, settings)
    with distributed.world(device_of(device)) as (world, device):
        sampler = teacher if isinstance(teacher, Sampler) else load(teacher, device=device)
        sampler = _drawing_with(sampler, settings, steps)
        if images and not isinstance(method_of(sampler.run.method), Editable):
            raise ValueError("the method has no function `ends`, which distillation from images needs")
        folder, say = RunFolder(out), partial(print, flush=True) if world.first else lambda text: None
        if not folder.exists():
            folder.check(sampler.run)
        described = sampler.described
        drafted = draft(sampler.run, described, steps, given)
        with _alone(folder) if world.first else nullcontext():
            about = _drawing(sampler)
            begun = world.broadcast(_there(folder, about, steps, given) if world.first else None)
            if begun is not None and minutes is not None:
                say(f"minutes plan a start; this goes on to its {begun.train.steps:,} training steps; more: --updates")
            run = begun or drafted
            if run.train.batch < world.size:
                raise ValueError(f"batch must be at least the number of ranks, {world.size}, got {run.train.batch}")
            if begun is not None and not start_over and world.agree(world.first and folder.taken() == run.train.steps):
                if data is not None:
                    say("a finished run learns from no more images: these are not looked at")
                return _finished(run, folder, sampler, device, say)  # also where its images are gone
            inputs = _inputs(run, data, sampler, folder, world, device, say) if images else None
            run = run if inputs is None else inputs.run
            if world.first:
                if begun is None and minutes is not None:
                    trial = _trial(run, sampler, about, inputs, world.size)
                    run = planned(run, student(run, sampler.model), trial, started + 60 * minutes, given)
                run = _with_room(with_intervals(run), sampler, about, folder, say)
                _claim(run, folder, sampler, about, start_over, say)
            run = world.broadcast(run)
            say(f"{described}\n{_told(run, inputs)}")
            lessons = _lessons(run, sampler, about, inputs, folder, device)
            return _trained(run, folder, sampler, lessons, world, on_step, start_over)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Locks the folder; where no run has begun in it when an error comes, nothing that was made for it stays."""
    there, cached = folder.path.exists(), folder.latents.exists()
    try:
        with only_one(folder.path):
            yield
    except ValueError:
        if not folder.exists():
            if not cached:
                shutil.rmtree(folder.latents, ignore_errors=True)
            if not there:
                (folder.path / ".lock").unlink(missing_ok=True)
                with suppress(OSError):
                    folder.path.rmdir()
        raise


def _claim(run: Run, folder: RunFolder, sampler: Sampler, about: Mapping[str, Any], start_over: bool, say: Say) -> None:
    """Writes run.json. Raises ValueError if a whole run was to start over."""
    folder.first_weights(None, start_over=start_over)
    if told := folder.next_rate(run):
        say(told)
    folder.claim(run, None, sampler.folder and sampler.folder.path, {"teacher": about})


def _finished(run: Run, folder: RunFolder, sampler: Sampler, device: torch.device, say: Say) -> Sampler:
    """The sampler of a run that has taken all of its steps. Raises CheckpointError if its weights are damaged."""
    say(f"{folder} has taken all of its {run.train.steps:,} training steps; for more, give more --updates")
    try:
        return load(folder.path, device=device, autoencoder=sampler.autoencoder)
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{error}. Or train from the start again with --start-over") from error


def _check_options(minutes: float | None, given: Mapping[str, Any], settings: SampleConfig | None) -> None:
    """Raises ValueError for options that are no numbers of their kind, or exclude one another."""
    if minutes is not None and (isinstance(minutes, bool) or misfit(minutes, float) or not 0 < minutes < MOST_MINUTES):
        raise ValueError(f"minutes must be a number above 0 and below {MOST_MINUTES:,.0f}, got {minutes!r:.100}")
    updates, trajectories = given["updates"], given["trajectories"]
    if minutes is not None and updates is not None:
        raise ValueError(f"give minutes or updates, got {minutes} and {updates}")
    if given["images"] and trajectories is not None:
        raise ValueError(f"give images or trajectories to learn from, got images and trajectories {trajectories}")
    if settings is not None and not isinstance(settings, SampleConfig):
        raise ValueError(f"settings must be a SampleConfig, such as run.sample, got {settings!r:.100}")


def _images(given: Any) -> tuple[bool, Given | Path | str | None]:  # noqa: ANN401 - numpy's booleans, too
    """True to learn from images, and those that were given in place of the run's. Raises ValueError for no images."""
    if isinstance(given, bool | np.bool_):
        return bool(given), None
    if given is None or (isinstance(given, str) and not given):
        raise ValueError(f"images must be True for those of the run, a folder, or images, got {given!r:.100}")
    return True, given


def _whole(name: str, value: Any) -> int | None:  # noqa: ANN401 - numpy's integers, too
    """The value as a Python integer. Raises ValueError if it is none, or too small or large for what it is."""
    if value is None and name != "steps":
        return None
    least, most = int(name not in ("trajectories", "seed")), MOST_AT_ONCE if name == "batch" else 2**63 - 1
    if misfit(value, int) or not least <= (value or 0) <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most:,}, got {value!r:.100}")
    return int(value or 0)


def _drawing_with(sampler: Sampler, settings: SampleConfig | None, steps: int) -> Sampler:
    """The teacher with these settings of sampling, its own by default.

    Raises ValueError for a teacher that has no trajectories to learn from.
    """
    run, settings = sampler.run, sampler.settings(settings)
    solver, distilled = settings.solver_settings, run.train.distillation
    if not isinstance(method_of(run.method), Distillable):
        name = name_of(type(run.method))
        raise ValueError(f"the method {name} has no function `velocities_along`, which distillation needs")
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


def _there(folder: RunFolder, about: Mapping[str, Any], steps: int, given: Mapping[str, Any]) -> Run | None:
    """The run that the folder holds, which goes on; None if it holds none.

    Raises ValueError if it is another run, was distilled from another teacher, or with other settings.
    """
    if not folder.exists():
        return None
    run = folder.run()
    known = run.train.distillation
    if not known.steps:
        raise ValueError(f"{folder} holds a run that was not distilled; choose another folder with --out")
    try:
        unlike = differences(determining(folder.record()["config"]["teacher"]), determining(about))
    except (KeyError, TypeError, AttributeError):
        unlike = ["its run.json has lost its teacher"]
    there: dict[str, Any] = {"batch": run.train.batch, "lr": run.optim.lr, "seed": run.seed}
    there |= {"steps": known.steps, "images": known.images}
    if known.trajectories:  # else there was no room for them
        there["trajectories"] = known.trajectories
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
    about["sampling"]["settings"].pop("batch")  # of no effect, like the autoencoder on latents
    about["sampling"].pop("autoencoder")
    return json.loads(json.dumps({**about, WEIGHTS: tensors_checksum(sampler.model.state_dict())}))


def _inputs(
    run: Run,
    data: Given | Path | str | None,
    sampler: Sampler,
    folder: RunFolder,
    world: World,
    device: torch.device,
    say: Say,
) -> Inputs:
    """The images that a run learns from: those given, or its own. Raises ValueError if they do not fit it."""
    before, (run, images, held_out) = run.data, with_data(run, data, None)
    if is_place(data) and before.test_path:
        if Path(before.test_path).exists():
            run = replace(run, data=replace(run.data, test_path=before.test_path))
        else:
            say(f"the validation images {before.test_path} are not there: there is no validation loss")
    try:
        if data is not None:
            _check_classes(run, images, say)
        with world.one_by_one():  # the main process writes the cache of latents
            options = {"images": images, "held_out": held_out, "cache": folder.latents, "device": device, "tell": say}
            inputs = open_inputs(run, autoencoder=sampler.autoencoder, **options)
        batches_in_order(inputs, device, world.share, 0)  # raises for data that will not do, before anything is written
    except ValueError as error:
        raise ValueError(f"images to distil from: {error}. {FIXED}") from error
    folder.check(inputs.run)
    if data is None and not folder.exists() and inputs.run.data.digest != before.digest:
        say("these are not the images that the teacher was trained on: files were added, removed, renamed or changed")
    return inputs


def _check_classes(run: Run, images: ImageSet | None, say: Say) -> None:
    """Raises ValueError for images in place of the run's whose classes have other names than the run's.

    Classes that the user named for the teacher have no other names in its folder: then a line says which is which.
    """
    known = run.data
    own = class_names_of(run, images) if run.method.classes else ()
    if own and known.class_names and set(own) != set(known.class_names):
        there, here = (", ".join(names)[:200] for names in (known.class_names, own))
        if known.names_given and len(own) == len(known.class_names):
            return say(f"the classes {here} are learned, in this order, as {there}")
        raise ValueError(f"the classes are {here}, those of the teacher are {there}")


def _source(run: Run, sampler: Sampler, about: Mapping[str, Any], count: int, folder: Path) -> Trajectories:
    """The trajectories that a run learns from; `about` is how its teacher draws."""
    settings, steps = sampler.run.sample, run.train.distillation.steps
    return Trajectories(*sampler.computing(settings), settings, about, steps, count, folder, run.seed)


def _teacher(sampler: Sampler) -> Teacher:
    """The velocities that samples of the teacher follow."""
    model, sample = sampler.computing(sampler.run.sample)

    def at(x: Tensor, t: Tensor, labels: Tensor | None, ends: Sequence[Tensor]) -> Tensor:
        return velocities(model, sample, sampler.run.sample, x, t, labels, ends)

    return at


def _lessons(
    run: Run,
    sampler: Sampler,
    about: Mapping[str, Any],
    inputs: Inputs | None,
    folder: RunFolder,
    device: torch.device,
) -> Lessons:
    """The objective and examples of a run: its inputs, or the teacher's trajectories."""
    if inputs is not None:
        return from_images(run, inputs, _teacher(sampler), device)
    source = _source(run, sampler, about, run.train.distillation.trajectories, folder.trajectories)
    return from_trajectories(run, source, device)


def _trial(run: Run, sampler: Sampler, about: Mapping[str, Any], inputs: Inputs | None, world: int) -> Trial:
    """A batch of one of so many ranks in a training step of the run, to time it."""
    device, rows = next(sampler.model.parameters()).device, max(1, run.train.batch // world)
    if inputs is not None:
        lessons = from_images(run, inputs, _teacher(sampler), device)
        return Trial(lessons.batches(lambda count: slice(0, rows), 0)(0), lessons.objective, 0.0)
    source = _source(run, sampler, about, 0, Path())
    points, labels = source.drawn(range(FEWEST_TRIED))  # the first may compile, and is not timed
    each = seconds_each(source.drawn, sampler.run.sample.batch, device) / world
    some = torch.arange(rows) % len(points)
    return Trial((points[some], None if labels is None else labels[some]), run.objective, each)


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


def _told(run: Run, inputs: Inputs | None) -> str:
    """A line on the distillation before it starts."""
    train, known = run.train, run.train.distillation
    taken = f"{train.steps:,} training step{'s' * (train.steps > 1)} of {train.batch}"
    if inputs is not None:
        seen, there = train.steps * run.images_per_step, len(inputs.train[0])
        often = f", each of them {seen / there:.3g} times" if seen >= there else ""
        learned = f"{taken} on {min(seen, there):,} images{often or f' of {there:,}'}"
    elif known.trajectories:
        each = train.steps * train.batch / known.trajectories
        learned = (
            f"{known.trajectories:,} trajectories of it, and some to validate, then {taken}: each {each:.3g} times"
        )
    else:
        learned = f"{taken} on new trajectories of it"
    short = ". So few training steps teach little: give more" if train.steps < FEW else ""
    return f"distilled to {known.steps} step{'s' * (known.steps > 1)}: {learned}{short}"


def _trained(
    run: Run,
    folder: RunFolder,
    sampler: Sampler,
    lessons: Lessons,
    world: World,
    on_step: OnStep | None,
    start_over: bool,
) -> Sampler:
    """Makes the lessons, and trains on them from the newest checkpoint on."""
    model = student(run, sampler.model)
    if world.first:
        folder.check_room(run, model)
    try:
        lessons.make(world)
    except KeyboardInterrupt:
        kept = f"interrupted: finished parts of the trajectories stay in {folder}; the same command goes on"
        raise KeyboardInterrupt(kept) from None
    average = loop.train(
        learner_of(run, model, world, lessons.objective),
        partial(lessons.batches, world.share),
        folder.path,
        validate=lessons.validate(),
        preview=partial(draw_preview, run, sampler.autoencoder),
        on_step=on_step,
        start_over=start_over,
    )
    check_trained(folder, model, average)
    decoder = sampler.autoencoder
    return checkpoint.read(folder.path, lambda place: sampler_of(folder, place, average, run, decoder))
