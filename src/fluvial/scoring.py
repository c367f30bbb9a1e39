"""`fluvial score`: a run, or images from anywhere, measured against real images, as a card."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch

import fluvial
from fluvial import experiment, pictures
from fluvial.data.images import BUILT_IN, DataConfig, ImageSet
from fluvial.data.latents import is_cache
from fluvial.evaluation.against import BESIDE, Against, Real, Which, against, real_images
from fluvial.evaluation.images import Images, open_images
from fluvial.evaluation.memorisation import memorised
from fluvial.evaluation.reference import Reference, open_reference, save_reference
from fluvial.evaluation.scores import Scores
from fluvial.evaluation.statistics import BATCH, KEPT, Statistics, statistics
from fluvial.generate import SampleConfig
from fluvial.metrics import Estimate
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.report import KIND
from fluvial.train.distributed import ALONE, World

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
    trained = experiment.load(folder, autoencoder=autoencoder, device=device)
    data = trained.run.data
    samples = trained.draw(count, seed=seed, settings=settings)._replace(name=str(folder))
    look = extractor(features or _usual(data.path or data.name), weights=weights, device=device)
    side = trained.run.method.size[0] * trained.autoencoder.stride
    if 1 in (trained.autoencoder.image_channels, trained.run.method.channels):  # latents have more
        channels = 1
    like = DataConfig(size=size or data.size or side * is_cache(data.path or data.name), channels=channels)
    own, which = None, cast(Which, reference)
    if reference in ("test", "train"):
        own = real_images(data, real, held_out)
    else:
        which = open_reference(reference, look, like, world=world)
    if training:
        own = Real(open_images(training, like), None if own is None else own.test)
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
    samples = open_images(name, like)
    which = open_reference(reference, look, like, world=world)
    real = Real(open_images(training, like), None) if training else None
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
    beside = KEPT if nearest else BESIDE
    if nearest and real is None:
        raise ValueError("the nearest training images need training images: name them with --training")
    there = against(which, real, look, beside=beside, world=world)  # first, as it is the quicker to be refused
    here = statistics(samples, look, batch=batch, world=world)
    if not world.first:
        return {}
    if keep is not None:
        save_reference(Reference(samples.name, samples.digest(), here, samples.about), look, keep)
    found = there.measure(here)
    if nearest is not None:
        assert real is not None
        found.values["closer_to_training"] = _nearest(samples, here, real.training.some(beside), there, nearest)
    return _card(samples, here, look, there, found)


def _card(samples: Images, here: Statistics, look: Extractor, there: Against, found: Scores) -> dict[str, Any]:
    about, reference = dict(samples.about), there.reference
    sampling = dict(about.pop("sampling", {}))
    if seconds := sampling.pop("seconds", 0):
        sampling["images_per_second"] = round(samples.n / seconds, 1)
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
        "images": {"count": here.n, "shape": list(here.shape), "hash": samples.digest(), **about},
        "extractor": {"name": look.name, "hash": look.hash, "resize": look.resize, "dtype": look.dtype},
        "reference": {
            "name": reference.name,
            "hash": reference.hash,
            "count": reference.statistics.n or None,
            "neighbours": len(reference.statistics.features),
            **{key: value for key, value in reference.about.items() if value is not None},
        },
        "training": {} if there.training is None else {"name": there.training.name, "hash": there.training.hash},
        "sampling": sampling,
        "warnings": found.warnings,
        "made_by": {
            "fluvial": fluvial.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _nearest(samples: Images, here: Statistics, training: Images, there: Against, path: Path) -> Estimate:
    """Draws the picture, and says how often samples are closer than test images are."""
    assert there.training is not None
    if there.test is None:
        raise ValueError(
            "how near is near is told from test images, of which there are none; take a --reference of them"
        )
    found = memorised(here, there.training.statistics, there.test.statistics)
    tiles, captions = [], []
    for sample, neighbours, distances in zip(found.samples, found.neighbours, found.distances, strict=True):
        tiles += [samples.read([int(sample)])[0], training.read(neighbours.tolist())[0]]
        captions += [f"sample {int(sample)}", *(f"{float(d):.3g}" for d in distances)]
    pictures.save_captioned(torch.cat(tiles), captions, path, columns=1 + found.neighbours.shape[1])
    return found.closer


def _usual(name: str) -> str:
    return "pixels" if name in BUILT_IN else FEATURES
