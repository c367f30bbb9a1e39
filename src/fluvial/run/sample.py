"""Samples any number of images into a folder: part by part, on any number of ranks, continued if interrupted."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.flow.guidance import Guidance
from fluvial.run.load import Sampler, load
from fluvial.sampling import sets
from fluvial.sampling.generate import Batch, batches, decoded
from fluvial.sampling.plan import FORMS, Form, Plan
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.utils.checks import misfit
from fluvial.utils.files import check_room
from fluvial.utils.progress import Bar
from fluvial.utils.tensors import tensors_checksum

SHARD, PARTS = 1000, 16  # images in a part at most, and parts at least, so that ranks can share few images, too
AHEAD = 2  # batches that wait to be decoded and written while the next one is sampled


def sample(
    source: Sampler | Path | str,
    out: Path | str,
    count: int | None = None,
    *,
    form: Form = "npz",
    shard: int | None = None,
    indices: Sequence[int] | None = None,
    classes: int | str | Sequence[int | str] | np.ndarray | Tensor | None = None,
    seed: int = 0,
    steps: int | Sequence[int] | None = None,
    guidance: float | Guidance | None = None,
    solver: AnySolver | None = None,
    nfe: int | None = None,
    settings: SampleConfig | None = None,
    rank: int = 0,
    world: int = 1,
) -> "Drawn":
    """Samples images of a run into a folder, in parts; those that are there are not made again.

    `form` is npz (one file, as ADM's evaluator takes it), png (one file an image), tar (shards of PNG files with class
    ids) or latents (shards of tensors, not decoded); `sampling/sets.py` says what the folder holds. A part has `shard`
    images, by default a sixteenth of all and at most 1,000, or as many as parts that are there. Process `rank` of
    `world` makes every `world`-th part. The other arguments are those of `Sampler.sample`: image i depends on (seed,
    i), its class and the settings alone, and on a CPU it has the same bytes in any batch and on any number of ranks.

    Raises ValueError for what `Sampler.sample` refuses, a folder that holds anything but a part of this set, and a disk
    without room for it; RuntimeError for images that are not finite. Finished parts stay.
    """
    sampler = source if isinstance(source, Sampler) else load(source)
    settings = sampler.settings(settings, steps=steps, guidance=guidance, solver=solver, nfe=nfe)
    asked = sampler.asked(count, indices=indices, classes=classes, seed=seed)
    folder, wanted = Path(out), len(asked.indices)
    shape = _shape(sampler, form)
    if indices is not None and len(set(asked.indices)) < wanted:
        raise ValueError(f"indices must differ, got {list(asked.indices)!r:.100}")
    for name, value, least in (("shard", 1 if shard is None else shard, 1), ("rank", rank, 0), ("world", world, 1)):
        if misfit(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if rank >= world:
        raise ValueError(f"rank must be below world, got {rank} of {world}")
    about = sampler.provenance(seed=seed, settings=settings, classes=None if classes is None else asked.classes)
    about["sampling"]["settings"].pop("batch")  # of no effect on the images
    there = sets.plan_of(folder)
    if shard is None:
        shard = min(SHARD, -(-wanted // PARTS)) if there is None else there.shard
    plan = Plan(
        form=form,
        count=wanted,
        shard=shard,
        shape=shape,
        indices=() if indices is None else tuple(asked.indices),
        classes=asked.classes,
        weights_sha256=tensors_checksum(sampler.model.state_dict()),
        about=about,
    )
    if there is None:
        check_room(folder, plan.bytes, what=f"{wanted:,} images", advice="or choose another disk with --out")
    plan = sets.begin(folder, plan)
    mine = range(rank, plan.parts, world)
    lacking = sorted(set(mine) & set(sets.missing(folder, plan)))
    drawn = Drawn(folder, plan)
    if lacking:
        there = sum(len(plan.part(number)) for number in set(mine) - set(lacking))
        _make(sampler, settings, seed, drawn, lacking, there=there, quiet=rank > 0)
    drawn.record = sets.finish(folder, plan)
    return drawn


@dataclass
class Drawn:
    """The images that a call of `sample` has made."""

    folder: Path
    plan: Plan
    images: int = 0
    """Images made by this call; the others were there."""
    nfe: Counter[str] = field(default_factory=Counter)
    """Evaluations of the network for each image, by branch."""
    network: float = 0.0
    """Seconds of sampling latents."""
    decoding: float = 0.0
    """Seconds of decoding and writing, beside it."""
    record: dict[str, Any] | None = None
    """The content of samples.json; None while other ranks have not finished."""


def _shape(sampler: Sampler, form: Form) -> tuple[int, int, int]:
    """Channels, height and width of images, or latents, in this form. Raises ValueError if it cannot hold them."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r:.100}")
    method, autoencoder = sampler.run.method, sampler.autoencoder
    if form == "latents":
        return (method.channels, *method.size)
    channels = autoencoder.image_channels or method.channels
    if form in ("png", "tar") and channels not in (1, 3):
        raise ValueError(f"PNG has 1 or 3 channels, and the images have {channels}; take npz or latents")
    height, width = method.size
    return channels, height * autoencoder.stride, width * autoencoder.stride


def _make(
    sampler: Sampler,
    settings: SampleConfig,
    seed: int,
    drawn: Drawn,
    numbers: Sequence[int],
    *,
    there: int,
    quiet: bool,
) -> None:
    """Samples the parts of these numbers; `there` images are made already.

    A second thread writes them, and on a GPU decodes them too.
    """
    plan, held, nfe = drawn.plan, list[Tensor](), Counter[str]()  # of the part that is being made
    parts = [plan.part(number) for number in numbers]
    labels = [ids for ids in map(plan.labels, numbers) if ids is not None]
    total = sum(map(len, parts))
    model, draw = sampler.computing(settings)
    device = next(model.parameters()).device
    # on a CPU two threads that compute take each other's cores; and the precision of a GPU's float32 matrix products
    # is one for all threads, so that sampling in another one would reach into the decoder
    beside = device.type != "cpu" and settings.precision == "fp32"

    def values_of(batch: Batch) -> Tensor:
        started = time.perf_counter()
        latents = plan.form == "latents"
        values = batch.latents.cpu() if latents else decoded(sampler.autoencoder.decode, batch.latents)
        drawn.decoding += time.perf_counter() - started
        return values

    def store(batch: Batch, values: Tensor | None) -> None:
        nonlocal nfe
        held.append(values_of(batch) if values is None else values)
        nfe |= batch.nfe  # the largest over batches: dopri5 may differ
        if batch.positions.stop == len(parts[batch.part]):
            sets.write_part(drawn.folder, plan, numbers[batch.part], torch.cat(held), nfe)
            drawn.nfe |= nfe
            held.clear()
            nfe = Counter()
        drawn.images += batch.positions.stop - batch.positions.start
        bar.show(there + drawn.images)

    waiting = deque[Future[None]]()
    with Bar(there + total, there, what="sampling", quiet=quiet) as bar, ThreadPoolExecutor(1) as writer:
        try:
            for batch in batches(model, draw, settings, parts=parts, labels=labels, seed=seed):
                drawn.network += batch.seconds
                waiting.append(writer.submit(store, batch, None if beside else values_of(batch)))
                while len(waiting) > AHEAD:
                    waiting.popleft().result()
            for future in waiting:
                future.result()
        finally:
            writer.shutdown(cancel_futures=True)
