"""`fluvial score`: a run, or images from anywhere, measured against real images, as a card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fluvial.autoencoders import Autoencoder
from fluvial.data.given import Given, image_sets
from fluvial.data.images import DataConfig
from fluvial.evaluation.against import Against, Real, Which, against
from fluvial.evaluation.images import Images
from fluvial.evaluation.memorisation import Memorised, memorised
from fluvial.evaluation.opening import check_images, open_images
from fluvial.evaluation.reference import NEIGHBOURS, Reference, open_reference, reference, save_reference
from fluvial.evaluation.statistics import BATCH, KEPT, Statistics
from fluvial.flow.guidance import Guidance
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.report import sealed
from fluvial.run.folder import RunFolder
from fluvial.run.load import Sampler, load
from fluvial.run.measure import Why, announced, card_of, choice_of, open_for_run
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.training.distributed import ALONE, World
from fluvial.utils import pictures
from fluvial.utils.devices import device_of
from fluvial.utils.errors import together
from fluvial.utils.files import make_folder


def score(
    source: Sampler | Path | str,
    *,
    count: int = 1000,
    seed: int = 0,
    steps: int | Sequence[int] | None = None,
    guidance: float | Guidance | None = None,
    solver: AnySolver | None = None,
    settings: SampleConfig | None = None,
    reference: Path | str = "",
    training: Path | str = "",
    features: str | Callable[..., Any] = "",
    weights: str = "",
    size: int = 0,
    channels: Literal[1, 3] = 3,
    nearest: Path | str | None = None,
    keep: Path | str | None = None,
    data: Given | None = None,
    validation: Given | None = None,
    autoencoder: Autoencoder | Path | str = "",
    step: int | None = None,
    average: str | float = "ema",
    device: torch.device | str | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Measures images against real ones: a card, in which each number stands with what it depends on.

    `source` is a sampler or a run folder, of which `count` images are sampled; or images: a folder, an .npz of the ADM
    suite, or a data set. seed, steps, guidance, solver and settings are those of `Sampler.sample`; step, average and
    autoencoder those of `load`. They are for runs alone.

    `reference` is "test" (the default) or "train" for the two parts of a run's own data, or whatever `open_reference`
    takes, and needed for images; a run without validation images is measured against its training images, which the
    card says. `training` names training images beside another reference. `data` and `validation` stand in for the run's
    own data, as they must for a run trained on images given in Python. The features are pixels for the built-in digits,
    else Inception's, or where that is not installed others that are there, which the card says. `size` crops the images
    of folders and data sets, the reference's too, and with `channels` 1 they are grey. See `measure` for nearest and
    keep.
    Returns the card on the main process, and nothing on others. Raises ValueError for what cannot be measured, with all
    that is missing.
    """
    device, reference, training = device_of(device), str(reference), str(training)
    measured: dict[str, Any] = {
        "nearest": None if nearest is None else Path(nearest),
        "keep": None if keep is None else Path(keep),
        "world": world,
    }
    choosing = {"features": features, "weights": weights, "device": device, "world": world}
    if not isinstance(source, Sampler) and not RunFolder(source).exists():
        return _of_images(
            str(source), reference, training, DataConfig(size=size, channels=channels), choosing, measured
        )

    run = source.run if isinstance(source, Sampler) else RunFolder(source).run()
    loading = {"autoencoder": autoencoder, "device": device, "step": step, "average": average}
    sampler, opened = open_for_run(
        run,
        lambda: source if isinstance(source, Sampler) else load(source, **loading),
        reference=reference,
        training=training,
        size=size,
        channels=channels,
        given=image_sets(data, validation),
        **choosing,
    )
    sampling: SampleConfig = sampler.settings(settings, steps=steps, guidance=guidance, solver=solver)
    samples = sampler.draw(count, seed=seed, settings=sampling)
    samples = samples._replace(name=str(sampler.folder or "samples"))
    return measure(samples, opened.look, opened.which, opened.real, batch=sampling.batch, why=opened.why, **measured)


def _of_images(
    name: str, reference: str, training: str, like: DataConfig, choosing: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
    """The card of images. Raises ValueError if no reference is named, or something is missing."""
    if not reference:
        raise ValueError(f"{name} is not a run folder (it has no run.json), and images need a reference: real images")
    weights, device, world = choosing["weights"], choosing["device"], choosing["world"]
    choice, real, *_ = together(
        lambda: choice_of(choosing["features"], weights, reference, world, name.partition(":")[0]),
        lambda: Real(open_images(training, like), None) if training else None,
        lambda: check_images(reference),
        lambda: check_images(name),
    )
    look = extractor(announced(choice, world).name, weights=weights, device=device)
    classes = None if real is None else real.training.classes
    samples = open_images(name, like, classes)
    which = open_reference(reference, look, like, classes=classes, world=world)
    return measure(samples, look, which, real, why=Why(choice.why), **measured)


def measure(
    samples: Images,
    look: Extractor,
    which: Which,
    real: Real | None,
    *,
    nearest: Path | None = None,
    keep: Path | None = None,
    batch: int = BATCH,
    why: Why = Why(),
    world: World = ALONE,
) -> dict[str, Any]:
    """The card of these samples, on the first rank; empty on others. `why` are reasons that it tells.

    `nearest` is a picture to draw of the samples nearest to training images; `keep` a file for the statistics of the
    samples, which later ones can be measured against.
    """
    for file in (nearest, keep):
        if file is not None:
            make_folder(file.parent)
    there = against(which, real, look, world=world)  # first, as it is the quicker to be refused
    copies = None if nearest is None else _copies(real, there, look, world)
    card, here = card_of(samples, look, there, batch=batch, why=why, world=world)
    if not world.first:
        return {}
    if keep is not None:
        save_reference(Reference(samples.name, card["images"]["hash"], here, samples.about), look, keep)
    if copies is not None and nearest is not None:
        nearby = memorised(here, copies.training, copies.test)
        card["scores"]["closer_to_training"] = nearby.closer._asdict()
        _draw(samples, copies.images, nearby, nearest)
    return sealed(card)


class _Copies(NamedTuple):
    """Training images, in which copies are looked for, and test images, which tell the usual distance to them."""

    images: Images
    training: Statistics
    test: Statistics


def _copies(real: Real | None, there: Against, look: Extractor, world: World) -> _Copies:
    """Raises ValueError if there are no training or no test images, or they are the same."""
    if real is None:
        raise ValueError("the nearest training images need training images: name them with --training")
    images = real.training.some(KEPT)
    training = reference(images, look, kept=KEPT, world=world)
    test = there.reference if real.test is None else reference(real.test.some(NEIGHBOURS), look, world=world)
    if not len(test.statistics.features) or test.hash == training.hash:
        raise ValueError(
            f"test images tell how near to training images is usual, and {test.name} has none that are not of the "
            f"training images; take a --reference of test images"
        )
    return _Copies(images, training.statistics, test.statistics)


def _draw(samples: Images, training: Images, found: Memorised, path: Path) -> None:
    """A row for each of the samples nearest to training images, with those and the distances to them."""
    tiles, captions = [], []
    for sample, neighbours, distances in zip(found.samples, found.neighbours, found.distances, strict=True):
        tiles += [samples.read([int(sample)])[0], training.read(neighbours.tolist())[0]]
        captions += [f"sample {int(sample)}", *(f"{float(d):.3g}" for d in distances)]
    pictures.save_captioned(torch.cat(tiles), captions, path, columns=1 + found.neighbours.shape[1])
