"""fluvial.plan: from a data set and a time to the settings of a run, each with its reason."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fluvial.data.given import Given, image_set, is_place
from fluvial.data.images import DataConfig
from fluvial.run.folder import RunFolder
from fluvial.tools import estimate
from fluvial.tools.plan import network, pace
from fluvial.tools.plan.dataset import config_of, look_at
from fluvial.tools.plan.draft import applied, draft, part_of
from fluvial.tools.plan.fitting import (
    Budget,
    Size,
    Speed,
    accumulated,
    autoencoder_seconds,
    compiled,
    costs_of,
    measured,
    quickest,
    rate_of,
    sized,
)
from fluvial.tools.plan.reasons import choices, too_short
from fluvial.tools.plan.result import Plan
from fluvial.tools.timing import seconds_a_step
from fluvial.training import checkpoint
from fluvial.utils.devices import device_of


def plan(
    data: Given | Path | str,
    *,
    method: str = network.METHOD,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    size: Size | None = None,
    autoencoder: str = "",
    start: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    speed: Speed = seconds_a_step,
) -> Plan:
    """Chooses the settings of a run for these images, so that training takes so many minutes on this machine.

    `data` is a place as for `fluvial train`, or images in Python as for `fluvial.train`. One of `minutes` (30 by
    default), `steps` and `epochs` says how long to train. `size` fixes the network, which otherwise follows from the
    time. `autoencoder` is the folder or name of one whose latents are trained on. `start` is a run folder with the
    weights to start from, whose network is kept. `settings` fixes single settings, as {"train.batch": 64}. `speed`
    measures the seconds of a training step of a run, for which steps of a few networks are taken.

    Raises ValueError for data that cannot be trained on, settings that do not exist, and a time too short for an epoch.
    """
    device = device_of(device)
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"settings must be a mapping such as {{'train.batch': 64}}, got {settings!r:.100}")
    given = dict(settings or {})
    if "train.steps" in given and (minutes or epochs or steps):
        raise ValueError("train.steps is set, and minutes, steps or epochs are given as well: give one of them")
    budget = Budget.of(minutes, given.get("train.steps", steps), epochs)
    network.known(method)
    if size is not None and size not in network.SIZES:
        raise ValueError(f"size must be one of {', '.join(network.SIZES)}, or None, got {size!r}")
    base = None if start is None else RunFolder(start).run()
    images = None if is_place(data) else image_set(data)
    config = config_of(data) if images is None else DataConfig(name="given")  # type: ignore[arg-type] - a place
    dataset = look_at(part_of(config, "data", given), images)
    if given.get("train.batch", 0) > dataset.count:
        raise ValueError(f"train.batch is {given['train.batch']:,}, and there are {dataset.count:,} images")
    first = draft(dataset, method, autoencoder, device, given, base)
    count = dataset.count - round(first.data.validation * dataset.count)
    rate = rate_of(first, device, speed)
    run = sized(first, budget, rate, count, size, given, base)
    measure = partial(measured, rate=rate, device=device, speed=speed)
    run, seconds = quickest(run, measure, device, given)
    encoding, decoding = autoencoder_seconds(run, device)
    costs = costs_of(run, seconds, rate, decoding)
    training = budget.steps_of(run, seconds, count, costs) * seconds
    run, seconds = compiled(run, seconds, training, measure, device, given)
    run = replace(run, train=replace(run.train, steps=budget.steps_of(run, seconds, count, costs)))
    run, memory = accumulated(run, device, given)
    run = applied(pace.timed(run, seconds, costs), given)
    parameters = sum(estimate.parameters(run).values())
    found = Plan(
        run=run,
        dataset=dataset,
        parameters=parameters,
        images=count,
        seconds=run.train.steps * seconds,
        beside=pace.measures(run.train.steps * seconds, costs).seconds,
        encoding=encoding * count * (2 if run.data.flip else 1),
        memory=memory,
        checkpoints=parameters * checkpoint.BYTES * (run.train.keep + 2),
    )
    if budget.minutes is not None and found.epochs < 1:
        raise ValueError(too_short(found, budget.minutes, costs))
    asked: dict[str, Any] = {"fixed": given if method == network.METHOD else {**given, "method": method}}
    asked |= {"size": size, "base": base, "measured": len(pace.precisions(device))}
    return replace(found, choices=tuple(choices(found, budget.minutes, **asked)))
