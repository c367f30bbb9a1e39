"""`fluvial score`: a run, or images from anywhere, measured against real images, as a card."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

import fluvial
from fluvial.autoencoders import Autoencoder
from fluvial.data.given import Given, image_sets
from fluvial.data.images import BUILT_IN, DataConfig
from fluvial.data.labels import Classes
from fluvial.data.manifest import is_cache
from fluvial.evaluation.against import Against, Real, Which, against, real_images
from fluvial.evaluation.images import Images
from fluvial.evaluation.memorisation import Memorised, memorised
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.reference import NEIGHBOURS, Reference, open_reference, reference, save_reference
from fluvial.evaluation.scores import Scores
from fluvial.evaluation.statistics import BATCH, KEPT, Statistics, statistics
from fluvial.flow.guidance import Guidance
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.report import KIND, sealed
from fluvial.run.folder import RunFolder
from fluvial.run.load import Sampler, default_device, load
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.training.distributed import ALONE, World
from fluvial.utils import pictures

FEATURES = "inception"  # what images are compared in, if nothing is said


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
    takes, and needed for images. `training` names training images beside another reference. `data` and `validation`
    stand in for the run's own data, as they must for a run trained on images given in Python. The features are pixels
    for the built-in digits, else Inception's. `size` crops the images of folders and data sets, the reference's too,
    and with `channels` 1 they are grey. See `measure` for nearest and keep.

    Returns the card on the main process, and nothing on others. Raises ValueError for what cannot be measured.
    """
    device, reference, training = torch.device(device or default_device()), str(reference), str(training)
    measured: dict[str, Any] = {
        "nearest": None if nearest is None else Path(nearest),
        "keep": None if keep is None else Path(keep),
        "world": world,
    }
    if not isinstance(source, Sampler) and not RunFolder(source).exists():
        if not reference:
            raise ValueError(f"{source} is not a run folder (it has no run.json), and images need a reference")
        name, like = str(source), DataConfig(size=size, channels=channels)
        look = extractor(features or _usual(name.partition(":")[0]), weights=weights, device=device)
        real = Real(open_images(training, like), None) if training else None
        classes = None if real is None else real.training.classes
        samples = open_images(name, like, classes)
        which = open_reference(reference, look, like, classes=classes, world=world)
        return measure(samples, look, which, real, **measured)

    images, held_out = image_sets(data, validation)
    sampler = source
    if not isinstance(sampler, Sampler):
        sampler = load(sampler, autoencoder=autoencoder, device=device, step=step, average=average)
    settings = sampler.settings(settings, steps=steps, guidance=guidance, solver=solver)
    config, labelled = sampler.run.data, sampler.run.method.classes > 0
    name = str(sampler.folder or "samples")
    samples = sampler.draw(count, seed=seed, settings=settings)._replace(name=name)
    own, which = None, cast(Which, reference or "test")
    if which in ("test", "train"):  # before the extractor, which may have to be downloaded
        own = real_images(config, images, held_out, labelled=labelled)
    look = extractor(features or _usual(config.path or config.name), weights=weights, device=device)
    if 1 in (sampler.autoencoder.image_channels, sampler.run.method.channels):  # latents have more
        channels = 1
    like = DataConfig(
        size=size or config.size or sampler.side * is_cache(config.path or config.name), channels=channels
    )
    classes = Classes(config.class_names, config.class_names, False) if labelled else None
    if which not in ("test", "train"):
        which = open_reference(reference, look, like, classes=classes, world=world)
    if training:
        own = Real(open_images(training, like, classes), None if own is None else own.test)
    return measure(samples, look, which, own, batch=settings.batch, **measured)


def measure(
    samples: Images,
    look: Extractor,
    which: Which,
    real: Real | None,
    *,
    nearest: Path | None = None,
    keep: Path | None = None,
    batch: int = BATCH,
    world: World = ALONE,
) -> dict[str, Any]:
    """The card of these samples, on the first rank; empty on others.

    `nearest` is a picture to draw of the samples nearest to training images; `keep` a file for the statistics of the
    samples, which later ones can be measured against.
    """
    for file in (nearest, keep):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    there = against(which, real, look, world=world)  # first, as it is the quicker to be refused
    copies = None if nearest is None else _copies(real, there, look, world)
    expected = there.reference.statistics.shape
    here = statistics(samples, look, shape=expected, batch=batch, world=world)
    if not world.first:
        return {}
    digest = samples.digest(range(samples.n))
    if keep is not None:
        save_reference(Reference(samples.name, digest, here, samples.about), look, keep)
    card = _card(samples, digest, here, look, there, there.measure(here), world)
    if copies is not None and nearest is not None:
        found = memorised(here, copies.training, copies.test)
        card["scores"]["closer_to_training"] = found.closer._asdict()
        _draw(samples, copies.images, found, nearest)
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


def _card(
    samples: Images, digest: str, here: Statistics, look: Extractor, there: Against, found: Scores, world: World
) -> dict[str, Any]:
    about, reference = dict(samples.about), there.reference
    sampling = dict(about.pop("sampling", {}))
    drawn, seconds = sampling.pop("drawn", 0), sampling.pop("seconds", 0)
    if seconds:
        sampling["images_per_second"] = round(drawn / seconds, 1)  # of one rank
    scores = {
        name: {
            "value": estimate.value,
            "error": estimate.error,
            **({"bias": found.bias[name]} if name in found.bias else {}),
            **({"real": found.real[name]} if name in found.real else {}),
        }
        for name, estimate in found.values.items()
    }
    return {
        "kind": KIND,
        "of": samples.name,
        "scores": scores,
        "images": {"count": here.n, "shape": list(here.shape), "hash": digest, **about},
        "extractor": {
            "name": look.name,
            "hash": look.hash or ("no weights" if look.name == "pixels" else None),
            "resize": look.resize,
            "dtype": look.dtype,
        },
        "reference": {
            "name": reference.name,
            "hash": reference.hash,
            "count": reference.statistics.n or None,
            "neighbours": len(reference.statistics.features),
            **{key: value for key, value in reference.about.items() if value is not None},
        },
        "real": {"count": found.real_count},
        "training": {} if there.training is None else {"name": there.training.name, "hash": there.training.hash},
        "sampling": sampling,
        "warnings": found.warnings,
        "made_by": {
            "fluvial": fluvial.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(look.device),
            "ranks": world.size,
        },
    }


def _draw(samples: Images, training: Images, found: Memorised, path: Path) -> None:
    """A row for each of the samples nearest to training images, with those and the distances to them."""
    tiles, captions = [], []
    for sample, neighbours, distances in zip(found.samples, found.neighbours, found.distances, strict=True):
        tiles += [samples.read([int(sample)])[0], training.read(neighbours.tolist())[0]]
        captions += [f"sample {int(sample)}", *(f"{float(d):.3g}" for d in distances)]
    pictures.save_captioned(torch.cat(tiles), captions, path, columns=1 + found.neighbours.shape[1])


def _usual(name: str) -> str:
    return "pixels" if name in BUILT_IN else FEATURES
