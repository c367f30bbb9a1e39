"""`fluvial score`: a run, or images from anywhere, measured against real images, as a card."""

import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

import fluvial
from fluvial.autoencoders import Autoencoder
from fluvial.data.given import Given, image_sets
from fluvial.data.images import BUILT_IN, DataConfig, ImageSet
from fluvial.data.labels import Classes
from fluvial.data.manifest import is_cache
from fluvial.evaluation.against import Against, Real, Which, against, real_images
from fluvial.evaluation.images import Images
from fluvial.evaluation.memorisation import Memorised, memorised
from fluvial.evaluation.opening import check_images, open_images
from fluvial.evaluation.reference import NEIGHBOURS, Reference, extractor_of, open_reference, reference, save_reference
from fluvial.evaluation.scores import SVM_IMAGES, Scores
from fluvial.evaluation.statistics import BATCH, KEPT, Statistics, statistics
from fluvial.flow.guidance import Guidance
from fluvial.metrics.choice import Choice, chosen, lacking
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.report import KIND, sealed
from fluvial.run.folder import RunFolder
from fluvial.run.load import Sampler, load
from fluvial.sampling.settings import AnySolver, SampleConfig
from fluvial.training.distributed import ALONE, World
from fluvial.utils import pictures
from fluvial.utils.devices import device_of
from fluvial.utils.errors import together
from fluvial.utils.files import make_folder
from fluvial.utils.progress import phase

OWN = ("", "test", "train")  # references that are parts of a run's own data


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
    choose = partial(_choice, features, weights, reference, world)
    if not isinstance(source, Sampler) and not RunFolder(source).exists():
        if not reference:
            raise ValueError(f"{source} is not a run folder (it has no run.json), and images need a reference")
        name, like = str(source), DataConfig(size=size, channels=channels)
        choice, real, _ = together(
            lambda: choose(name.partition(":")[0]),
            lambda: Real(open_images(training, like), None) if training else None,
            lambda: check_images(reference),
        )
        look = extractor(_announced(choice, world).name, weights=weights, device=device)
        classes = None if real is None else real.training.classes
        samples = open_images(name, like, classes)
        which = open_reference(reference, look, like, classes=classes, world=world)
        return measure(samples, look, which, real, why=Why(choice.why), **measured)

    given = image_sets(data, validation)
    run = source.run if isinstance(source, Sampler) else RunFolder(source).run()
    config, labelled = run.data, run.method.classes > 0
    loading = {"autoencoder": autoencoder, "device": device, "step": step, "average": average}
    sampler, choice, own, _, _ = together(
        lambda: source if isinstance(source, Sampler) else load(source, **loading),
        lambda: choose(config.path or config.name),
        lambda: _own(reference, config, given, labelled),
        lambda: check_images(reference) if reference not in OWN else None,
        lambda: check_images(training) if training else None,
    )
    which, against_what = _part(reference, own)
    sampling: SampleConfig = sampler.settings(settings, steps=steps, guidance=guidance, solver=solver)
    samples = sampler.draw(count, seed=seed, settings=sampling)
    samples = samples._replace(name=str(sampler.folder or "samples"))
    look = extractor(_announced(choice, world).name, weights=weights, device=device)
    if 1 in (sampler.autoencoder.image_channels, run.method.channels):  # latents have more
        channels = 1
    cut = size or config.size or sampler.side * is_cache(config.path or config.name)
    like = DataConfig(size=cut, channels=channels)
    classes = Classes(config.class_names, config.class_names, False) if labelled else None
    if which not in OWN:
        which = open_reference(reference, look, like, classes=classes, world=world)
    if training:
        own = Real(open_images(training, like, classes), None if own is None else own.test)
    why = Why(choice.why, against_what)
    return measure(samples, look, cast(Which, which), own, batch=sampling.batch, why=why, **measured)


def _choice(features: str | Callable[..., Any], weights: str, reference: str, world: World, data: str) -> Choice:
    """The features that were named; else those of the reference's statistics, pixels for built-in data, or `chosen`.

    Raises ValueError if they are not here.
    """
    if not isinstance(features, str):
        return Choice(features)
    if not features and weights:
        features = "inception"
    if not features and data in BUILT_IN:
        features = extractor_of(reference) or "pixels"
    name = features or extractor_of(reference)
    if not name:
        return world.broadcast(chosen() if world.first else None)
    if why := lacking(name, weights):
        raise ValueError(f"{why}; other features: pixels, which need nothing")
    return Choice(name)


def _announced(choice: Choice, world: World) -> Choice:
    """The choice of features, printed before work that takes minutes if nobody named them."""
    if choice.why and choice.name != "pixels" and world.first:
        print(f"features of {choice.name}: {choice.why}; --features pixels is quick", flush=True)
    return choice


def _own(
    reference: str, config: DataConfig, given: tuple[ImageSet | None, ImageSet | None], labelled: bool
) -> Real | None:
    """The run's own images, if they are to be the reference. Raises ValueError if they are not there."""
    if reference not in OWN:
        return None
    own = real_images(config, *given, labelled=labelled)
    if reference == "test" and own.test is None:
        raise ValueError(f"{own.training.name} has no test images: name others with --reference, or train")
    return own


def _part(reference: str, own: Real | None) -> tuple[str, str]:
    """The part of the run's own data that is the reference, and the reason if it is not the usual one."""
    if reference or own is None or own.test is not None:
        return reference or "test", ""
    return "train", "the run has no validation images (--reference names others)"


class Why(NamedTuple):
    """Reasons for what was chosen where nothing was named; "" for what is usual."""

    extractor: str = ""
    reference: str = ""


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
    expected = there.reference.statistics.shape
    here = statistics(samples, look, shape=expected, batch=batch, world=world)
    if not world.first:
        return {}
    digest = samples.digest(range(samples.n))
    if keep is not None:
        save_reference(Reference(samples.name, digest, here, samples.about), look, keep)
    with phase(f"scores of {here.n:,} images{_fitted(here, there)}"):
        found = there.measure(here)
    card = _card(samples, digest, here, look, there, found, world)
    for part, reason in (("extractor", why.extractor), ("reference", why.reference)):
        card[part] |= {"why": reason} if reason else {}
    if copies is not None and nearest is not None:
        nearby = memorised(here, copies.training, copies.test)
        card["scores"]["closer_to_training"] = nearby.closer._asdict()
        _draw(samples, copies.images, nearby, nearest)
    return sealed(card)


def _fitted(here: Statistics, there: Against) -> str:
    """The end of the name of a phase in which the SVM of class accuracy is fitted."""
    labels = None if there.training is None else there.training.statistics.labels
    return "" if here.labels is None or labels is None else f", with an SVM fitted to {min(len(labels), SVM_IMAGES):,}"


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
