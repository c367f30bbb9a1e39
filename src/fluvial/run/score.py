"""`fluvial score`: a run, or images from anywhere, measured against real images, as a card."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

import fluvial
from fluvial.data.images import BUILT_IN, DataConfig, ImageSet, checked
from fluvial.data.labels import Classes
from fluvial.data.manifest import is_cache
from fluvial.evaluation.against import Against, Real, Which, against, real_images
from fluvial.evaluation.images import Images
from fluvial.evaluation.memorisation import Memorised, memorised
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.reference import NEIGHBOURS, Reference, open_reference, reference, save_reference
from fluvial.evaluation.scores import Scores
from fluvial.evaluation.statistics import BATCH, KEPT, Statistics, statistics
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.report import KIND, sealed
from fluvial.run import experiment
from fluvial.sampling.settings import SampleConfig
from fluvial.training.distributed import ALONE, World
from fluvial.utils import pictures

FEATURES = "inception"  # what images are compared in, if nothing is said


def score_run(
    folder: Path | str,
    *,
    count: int = 1000,
    seed: int = 0,
    settings: SampleConfig | None = None,
    reference: str = "test",
    training: str = "",
    features: str | Callable[..., Any] = "",
    weights: str = "",
    size: int = 0,
    channels: Literal[1, 3] = 3,
    nearest: Path | None = None,
    keep: Path | None = None,
    real: ImageSet | None = None,
    held_out: ImageSet | None = None,
    autoencoder: str = "",
    step: int | None = None,
    device: torch.device | str | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Draws `count` images of a run and measures them: their card.

    `reference` is "test" or "train" for the two parts of the run's own data, or whatever `open_reference` takes; the
    training images beside another reference are named by `training`. `real` and `held_out` stand in for the run's own
    data, as they must for a run trained on given images. The features are pixels for the built-in digits, else
    Inception's. See `measure` for the rest.
    """
    folder, device = Path(folder), torch.device(device or experiment.default_device())
    if held_out is not None and real is None:
        raise ValueError("held-out images were given without training images: give both (real and held_out)")
    real = None if real is None else checked(real)
    held_out = None if held_out is None else checked(held_out, "held-out images")
    trained = experiment.load(folder, autoencoder=autoencoder, device=device, step=step)
    data = trained.run.data
    samples = trained.draw(count, seed=seed, settings=settings)._replace(name=str(folder))
    look = extractor(features or _usual(data.path or data.name), weights=weights, device=device)
    side = trained.run.method.size[0] * trained.autoencoder.stride
    if 1 in (trained.autoencoder.image_channels, trained.run.method.channels):  # latents have more
        channels = 1
    like = DataConfig(size=size or data.size or side * is_cache(data.path or data.name), channels=channels)
    classes = Classes(data.class_names, data.class_names, False) if trained.run.method.classes else None
    own, which = None, cast(Which, reference)
    if reference in ("test", "train"):
        own = real_images(data, real, held_out, labelled=trained.run.method.classes > 0)
    else:
        which = open_reference(reference, look, like, classes=classes, world=world)
    if training:
        own = Real(open_images(training, like, classes), None if own is None else own.test)
    batch = (settings or trained.run.sample).batch
    options: dict[str, Any] = {"nearest": nearest, "keep": keep, "batch": batch, "world": world}
    return measure(samples, look, which, own, **options)


def score_images(
    name: str,
    *,
    reference: str,
    training: str = "",
    features: str | Callable[..., Any] = "",
    weights: str = "",
    size: int = 0,
    channels: Literal[1, 3] = 3,
    nearest: Path | None = None,
    keep: Path | None = None,
    device: torch.device | str | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Measures the images of a folder, .npz or data set: see `open_images`, `open_reference` and `measure`.

    `size` crops the images of folders and data sets, the reference's too, and with `channels` 1 they are grey.
    """
    device = torch.device(device or experiment.default_device())
    look = extractor(features or _usual(name.partition(":")[0]), weights=weights, device=device)
    like = DataConfig(size=size, channels=channels)
    real = Real(open_images(training, like), None) if training else None
    classes = None if real is None else real.training.classes
    samples = open_images(name, like, classes)
    which = open_reference(reference, look, like, classes=classes, world=world)
    return measure(samples, look, which, real, nearest=nearest, keep=keep, world=world)


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
    """What copies are looked for in: training images, and test images to know how near is usual."""

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
