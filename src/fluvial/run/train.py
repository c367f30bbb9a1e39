"""Trains a run in a folder, or goes on with the one that is there."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.autoencoders import Autoencoder
from fluvial.config import Run
from fluvial.data.given import Given
from fluvial.evaluation.against import against
from fluvial.evaluation.statistics import statistics
from fluvial.methods import name_of
from fluvial.metrics.features import extractor
from fluvial.run import by_heart, finetune
from fluvial.run.folder import RunFolder
from fluvial.run.inputs import (
    Inputs,
    batches_in_order,
    batches_of,
    check_data,
    on_the_hub,
    open_autoencoder,
    open_inputs,
    validation_of,
    with_data,
)
from fluvial.run.learner import build, check_trained, learner_of
from fluvial.run.load import Sampler, draw_preview, sampler_of
from fluvial.training import checkpoint, distributed, loop
from fluvial.training.log import rows_of, validated
from fluvial.training.loop import OnStep
from fluvial.utils.atomic import check_unlocked, only_one
from fluvial.utils.devices import device_of

Say = Callable[[str], None]


def train(
    run: Run,
    out: Path | str,
    *,
    data: Given | Path | str | None = None,
    validation: Given | Path | str | None = None,
    autoencoder: Autoencoder | None = None,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    start: Path | str | None = None,
    device: torch.device | str | None = None,
    start_over: bool = False,
    on_step: OnStep | None = None,
) -> Sampler:
    """Trains a run in the folder `out`, or goes on with the run there, and returns a sampler of its average.

    `data` stands in for the images that `run.data` names: a folder or the name of a data set; a uint8 tensor
    (n, c, h, w), or a pair of that and labels (n,); or a map-style torch Dataset. `validation` are images that are not
    trained on. With method.classes 0 labels are left aside. `autoencoder` stands in for the one that run.autoencoder
    names. `recipe` and `config` are kept in run.json: the name of a recipe, or the record of a configuration file.
    `start` is a run folder with the weights to start from, which may have other classes and another image size:
    changes to them are printed. `on_step(number, metrics)` is called after every step. `start_over` trains from the
    start again where none of the run's checkpoints is whole, which is refused otherwise.

    Raises ValueError if the folder holds a run with other settings or no whole checkpoint, if the images do not fit the
    model, or a class is too small for its sequences; RuntimeError if the weights are not finite at the end.
    """
    if not isinstance(run, Run):
        raise ValueError(f"run must be a Run, such as fluvial.recipes.get('digits-arflow'), got {run!r:.100}")
    with distributed.world(device_of(device)) as (world, device):
        folder, say = RunFolder(out), partial(print, flush=True) if world.first else lambda text: None
        run, images, held_out = with_data(run, data, validation)
        run = continued(run, folder, start)
        with world.one_by_one():  # the main process writes the cache of latents
            options = {"images": images, "held_out": held_out, "cache": folder.latents, "device": device, "tell": say}
            inputs = open_inputs(run, autoencoder=autoencoder, **options)
        run, decoder = inputs.run, inputs.autoencoder
        batches = partial(batches_in_order, inputs, device, world.share)
        batches(0)  # like the two after it, raises for data that will not do before anything is written
        validate = validation_of(inputs, device)
        if validate is not None:
            sample = partial(some_samples, inputs)
            validate, on_step = by_heart.watched(validate, on_step, folder, inputs, sample, say)
        score = scorer(inputs, device) if run.train.score_every and world.first else None
        model = build(run, device)
        with only_one(folder.path) if world.first else nullcontext():
            if world.first:
                folder.check_room(run, model)
                write_first(folder, run, recipe, start, model, config=config, start_over=start_over)
                say(about(inputs, model, device))
            world.barrier()
            average = loop.train(
                learner_of(run, model, world),
                batches,
                folder.path,
                validate=validate,
                score=score,
                preview=partial(draw_preview, run, decoder),
                on_step=on_step,
                start_over=start_over,
            )
            if run.train.keep_best and world.first and (told := best_of(folder)):
                say(told)
            check_trained(folder, model, average)
            return checkpoint.read(folder.path, lambda place: sampler_of(folder, place, average, run, decoder))


def check(run: Run, out: Path | str, *, start: Path | str | None = None, tell: Say = print) -> int | None:
    """Makes the checks that `train` makes before its first step, on the CPU, and writes nothing to `out`.

    Returns the number of training images; None if they are on the hub, from where nothing is downloaded. `tell` is
    called with the checks left out, the images left out of the data, and the changes to the weights of `start`. Raises
    ValueError as `train` does.
    """
    folder = RunFolder(out)
    run = continued(run, folder, start)
    check_unlocked(folder.path)
    if changed := folder.next_rate(run):
        tell(changed)
    first = folder.first_weights(start)
    unchecked = on_the_hub(run)
    for what in unchecked.values():
        tell(f"not checked: {what}")
    if checkpoint.newest(folder.path) is not None:
        tell(f"not checked: the checkpoints in {folder.path / 'checkpoints'}; they are verified when training goes on")
    if run.train.score_every:
        tell("not checked: what train.score_every measures against; it is read when training starts")
    if "data" in unchecked:
        if "autoencoder" not in unchecked:
            open_autoencoder(run.autoencoder)
        return None
    if "autoencoder" in unchecked:
        return len(check_data(run, tell)[0])
    inputs = open_inputs(replace(run, data=replace(run.data, cache=False)), tell=tell)
    batches_of(inputs, inputs.train, run.train.batch, "cpu")  # raises for classes that are too small
    folder.check(replace(inputs.run, data=replace(inputs.run.data, cache=run.data.cache)))
    if first is not None:
        first_weights(first, inputs.run, build(run), tell)
    return len(inputs.train[0])


def best_of(folder: RunFolder) -> str:
    """A line on the checkpoint with the lowest validation loss; "" if that is the newest, or there is none."""
    step = folder.best()
    if step is None or step == folder.taken():
        return ""
    lowest = validated(rows_of(folder.path))[step]
    return f"lowest validation loss {lowest:.4g} at step {step}, kept: fluvial sample {folder} --step {step}"


def about(inputs: Inputs, model: nn.Module, device: torch.device) -> str:
    """A line on a run before its first step: model, images, device, length, and when pictures are drawn."""
    run, images = inputs.run, len(inputs.train[0])
    train, parameters = run.train, sum(p.numel() for p in model.parameters())
    first = train.first_sample or train.sample_every
    pictures = f"a picture at step {min(first, train.steps):,}" if first else "no pictures"
    pictures += ", then more" if 0 < first < train.steps else ""
    return (
        f"{name_of(type(run.method))} of {parameters:,} parameters on {images:,} images, {device}: {train.steps:,} "
        f"steps of {run.images_per_step}, {train.steps * run.images_per_step / images:,.3g} epochs; {pictures}"
    )


def continued(run: Run, folder: RunFolder, start: Path | str | None) -> Run:
    """The run as it goes on in the folder, or as weights start it. Raises ValueError if the folder is not for it."""
    run.check_trained_on_images()
    if start is not None:
        run = finetune.fitted(run, RunFolder(start).run())
    run = folder.completed(run)
    folder.check(run)
    run.check_guidance()  # before hours of training, after which its pictures would be refused
    return run


def scorer(inputs: Inputs, device: torch.device) -> loop.Measure:
    """A function from a model to the scores of its samples against validation images."""
    run = inputs.run
    features = extractor(run.train.score_extractor, device=device)
    measure = against("test", by_heart.real_of(inputs), features).measure

    def score(model: nn.Module) -> dict[str, Any]:
        drawn = Sampler(model=model, run=run, autoencoder=inputs.autoencoder).draw(run.train.score_count)
        found = measure(statistics(drawn, features, batch=run.sample.batch, quiet=True))
        values = {name: estimate.value for name, estimate in found.values.items()}
        real = {f"{name}_real": value for name, value in found.real.items() if name in values}
        known = {"extractor": features.name, "extractor_hash": features.hash, "count": drawn.n}
        return {**values, **real, **known}

    return score


def some_samples(inputs: Inputs, model: nn.Module, count: int) -> Tensor:
    """Images of a model that is being trained, uint8."""
    return Sampler(model=model, run=inputs.run, autoencoder=inputs.autoencoder).sample(count).images


def write_first(
    folder: RunFolder,
    run: Run,
    recipe: str | None,
    start: Path | str | None,
    model: nn.Module,
    *,
    config: Mapping[str, Any] | None = None,
    start_over: bool,
) -> None:
    """Writes run.json, and the weights that the run starts from, if it starts from those of another."""
    first = folder.first_weights(start, start_over=start_over)
    if changed := folder.next_rate(run):
        print(changed, flush=True)
    weights = None if first is None else first_weights(first, run, model)
    folder.claim(run, recipe, start, config)
    if weights is not None:
        checkpoint.write_weights(folder.path, 0, weights, {})


def first_weights(
    start: Path | str, run: Run, model: nn.Module, tell: Say = partial(print, flush=True)
) -> dict[str, Tensor]:
    """The weights of another run for this one; `tell` is called with what was changed in them."""
    there = RunFolder(start)
    adapted, changes = finetune.adapted(there.weights()[0], there.run(), run, model.state_dict())
    tell("\n".join([f"starts from the weights in {start}", *changes]))
    return adapted
