"""The parts of a measurement: feature extractor and real images as a score chooses them, and the card of samples."""

import platform
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch

import fluvial
from fluvial.autoencoders import Autoencoder
from fluvial.config import Run
from fluvial.data.images import BUILT_IN, DataConfig, ImageSet
from fluvial.data.labels import Classes
from fluvial.data.manifest import is_cache
from fluvial.evaluation.against import Against, Real, Which, real_images
from fluvial.evaluation.images import Images
from fluvial.evaluation.opening import check_images, open_images
from fluvial.evaluation.reference import extractor_of, open_reference
from fluvial.evaluation.scores import SVM_IMAGES, Scores
from fluvial.evaluation.statistics import BATCH, Statistics, statistics
from fluvial.metrics.choice import Choice, chosen, lacking
from fluvial.metrics.features import Extractor, extractor
from fluvial.metrics.report import KIND
from fluvial.training.distributed import ALONE, World
from fluvial.utils.errors import together
from fluvial.utils.progress import phase

OWN = ("", "test", "train")  # references that are parts of a run's own data


@runtime_checkable
class Drawing(Protocol):
    """A sampler, as far as the choice of real images depends on it."""

    @property
    def autoencoder(self) -> Autoencoder: ...

    @property
    def side(self) -> int:
        """Height of the images in pixels."""
        ...


S = TypeVar("S", bound=Drawing)


class Why(NamedTuple):
    """Reasons for what was chosen where nothing was named; "" for what is usual."""

    extractor: str = ""
    reference: str = ""


class Opened(NamedTuple):
    """The feature extractor and the real images that samples of a run are measured with."""

    look: Extractor
    which: Which
    real: Real | None
    why: Why


def open_for_run(
    run: Run,
    loaded: Callable[[], S],
    *,
    reference: str,
    training: str,
    features: str | Callable[..., Any],
    weights: str,
    size: int,
    channels: Literal[1, 3],
    given: tuple[ImageSet | None, ImageSet | None],
    device: torch.device,
    world: World,
) -> tuple[S, Opened]:
    """The sampler that `loaded` returns, and what its samples are measured with, as `score` chooses it.

    Raises ValueError with all that is missing.
    """
    config, labelled = run.data, run.method.classes > 0
    sampler, choice, own, _, _ = together(
        loaded,
        lambda: choice_of(features, weights, reference, world, config.path or config.name),
        lambda: _own(reference, config, given, labelled),
        lambda: check_images(reference) if reference not in OWN else None,
        lambda: check_images(training) if training else None,
    )
    which, against_what = _part(reference, own)
    look = extractor(announced(choice, world).name, weights=weights, device=device)
    if 1 in (sampler.autoencoder.image_channels, run.method.channels):  # latents have more
        channels = 1
    cut = size or config.size or sampler.side * is_cache(config.path or config.name)
    like = DataConfig(size=cut, channels=channels)
    classes = Classes(config.class_names, config.class_names, False) if labelled else None
    if which not in OWN:
        which = open_reference(reference, look, like, classes=classes, world=world)
    if training:
        own = Real(open_images(training, like, classes), None if own is None else own.test)
    return sampler, Opened(look, cast(Which, which), own, Why(choice.why, against_what))


def choice_of(features: str | Callable[..., Any], weights: str, reference: str, world: World, data: str) -> Choice:
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


def announced(choice: Choice, world: World) -> Choice:
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


def card_of(
    samples: Images,
    look: Extractor,
    there: Against,
    *,
    batch: int = BATCH,
    quiet: bool = False,
    why: Why = Why(),
    world: World = ALONE,
) -> tuple[dict[str, Any], Statistics]:
    """The card of these samples, without a checksum, and their statistics; no card on other ranks than the first.

    `quiet` shows no progress of the extractor.
    """
    expected = there.reference.statistics.shape
    here = statistics(samples, look, shape=expected, batch=batch, quiet=quiet, world=world)
    if not world.first:
        return {}, here
    digest = samples.digest(range(samples.n))
    with phase(f"scores of {here.n:,} images{_fitted(here, there)}"):
        found = there.measure(here)
    card = _card(samples, digest, here, look, there, found, world)
    for part, reason in (("extractor", why.extractor), ("reference", why.reference)):
        card[part] |= {"why": reason} if reason else {}
    return card, here


def _fitted(here: Statistics, there: Against) -> str:
    """The end of the name of a phase in which the SVM of class accuracy is fitted."""
    labels = None if there.training is None else there.training.statistics.labels
    return "" if here.labels is None or labels is None else f", with an SVM fitted to {min(len(labels), SVM_IMAGES):,}"


def _card(
    samples: Images, digest: str, here: Statistics, look: Extractor, there: Against, found: Scores, world: World
) -> dict[str, Any]:
    about, reference = dict(samples.about), there.reference
    sampling = dict(about.pop("sampling", {}))
    drawn, seconds = sampling.pop("drawn", 0), sampling.pop("seconds", 0)
    if seconds:  # of one rank
        sampling["images_per_second"] = round(drawn / seconds, 1)
        sampling |= {key: round(sampling[key], 2) for key in ("seconds_network", "seconds_decoding")}
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
