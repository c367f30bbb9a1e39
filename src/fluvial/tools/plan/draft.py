"""The settings of a run that follow from its data: pixels, channels, classes, mirror images, autoencoder."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.flow.guidance import Guidance
from fluvial.methods import method_of
from fluvial.run.inputs import open_autoencoder
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.plan import network
from fluvial.tools.plan.dataset import ASYMMETRY, Dataset
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig

PIXELS, LATENT_PIXELS = 64, {"cpu": 128, "cuda": 256}  # sides of images without and with an autoencoder
TOKENS = {"cpu": 64, "cuda": 256}  # of an image at most
VALIDATION = 0.05  # share of images held out where there are none
FEW_A_CLASS = 3  # images a class below which labels are left aside


def applied(run: Run, settings: Mapping[str, Any]) -> Run:
    """The run with single settings replaced, named by their path as in run.json: {"train.batch": 64}.

    Raises ValueError naming a setting that the run does not have.
    """
    for path, value in settings.items():
        run = _with(run, path.split("."), value, path)
    return run


def _with(part: Any, names: list[str], value: Any, path: str) -> Any:  # noqa: ANN401 - settings of any kind
    first, *rest = names
    known = [field.name for field in fields(part)] if is_dataclass(part) else []
    if first not in known:
        raise ValueError(f"there is no setting {path}; here there are {', '.join(known) or 'none'}")
    old = getattr(part, first)
    if path == first and is_dataclass(old) and type(value) is not type(old):
        example = f"{path}.{fields(old)[0].name}"
        raise ValueError(f"{path} is a group of settings, got {value!r}; give single ones, as {example}")
    return replace(part, **{first: _with(old, rest, value, path) if rest else value})  # type: ignore[type-var]


def part_of(config: Any, name: str, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """One part of the settings with those that were given for it."""
    for path, value in settings.items():
        if path.startswith(f"{name}."):
            config = _with(config, path.split(".")[1:], value, path)
    return config


def draft(
    dataset: Dataset, method: str, autoencoder: str, device: torch.device, given: Mapping[str, Any], base: Run | None
) -> Run:
    """The run with all that follows from the data, and the smallest network."""
    data, encoder, latent = _frame(dataset, autoencoder, device, given, base)
    size, channels = (latent[1], latent[2]), latent[0]
    labelled = dataset.classes > 1 and dataset.count >= FEW_A_CLASS * dataset.classes
    classes = given.get("method.classes", len(dataset.class_sizes) if labelled else 0)
    if base is not None:
        config = replace(base.method, classes=classes)
    else:
        is_latent = encoder.name != "pixels"
        patch = given.get("method.patch") or _patch(min(size), channels, device, given, is_latent=is_latent)
        shape = {"size": size, "channels": channels, "classes": classes, "patch": patch}
        depth, width = network.LADDER[0]
        config = network.known(method).proportioned(depth=depth, width=width, **shape)
    small = min((n for n in dataset.class_sizes.values() if n), default=dataset.count)
    if labelled and (config.images_per_sequence or 0) > small * (1 - data.validation):
        data = replace(data, small_classes="repeat")
    scales = len(method_of(config).scales(config))
    steps = tuple(round(32 - 24 * i / max(1, scales - 1)) for i in range(scales)) if scales else 20
    return Run(
        method=config,
        data=data,
        autoencoder=encoder,
        optim=OptimConfig(clip="norm", clip_at=1.0, schedule="wsd"),
        train=TrainConfig(ema_decay=0.9999, ema_warmup=True, keep=2, keep_best=True),
        sample=SampleConfig(solver="ab2", steps=steps, guidance=Guidance(weight=1.5 if classes else 1.0)),
    )


def _patch(side: int, channels: int, device: torch.device, given: Mapping[str, Any], *, is_latent: bool) -> int:
    """The patch for a side of a latent. Raises ValueError for a data.size that patches do not divide well."""
    smallest = 1 if is_latent else 2
    if network.is_divisible(side, smallest=smallest):
        patch = network.patch_of(side, TOKENS.get(device.type, 64), smallest=smallest)
        return patch if is_latent or device.type == "cuda" else network.coarser(side, patch, channels)
    if "data.size" in given:
        size = given["data.size"]
        stride = max(1, size // side)
        near = next(n for n in range(side + 1, 2 * side + 9) if network.is_divisible(n, smallest=smallest))
        raise ValueError(
            f"data.size {size} cannot be cut into patches that make {network.FEWEST_TOKENS} to {network.TOKENS} tokens "
            f"an image; give data.size {near * stride}, or method.patch as well"
        )
    return network.patch_of(side, 4 * network.TOKENS, smallest=smallest)


def _frame(
    dataset: Dataset, autoencoder: str, device: torch.device, given: Mapping[str, Any], base: Run | None
) -> tuple[Any, AutoencoderConfig, tuple[int, int, int]]:
    """The settings of the data and of the autoencoder, and the shape of a latent."""
    data, encoder = dataset.config, AutoencoderConfig()
    if base is not None:
        encoder = base.autoencoder
        data = replace(data, size=base.data.size, channels=base.data.channels, cache=base.data.cache)
    elif dataset.encoded is not None:
        encoder = AutoencoderConfig(name=autoencoder or dataset.encoded.autoencoder)
    elif autoencoder:
        encoder = AutoencoderConfig(name=autoencoder)
    if dataset.encoded is not None:
        plan, side = dataset.encoded, dataset.encoded.image_size // dataset.encoded.stride
        data = replace(data, size=plan.image_size, crop=plan.crop)
        latent = (dataset.channels, side, side)
    elif base is not None:
        latent = (base.method.channels, *base.method.size)
    else:
        opened = open_autoencoder(encoder)
        side = given.get("data.size") or _side(dataset, opened.stride, device, is_latent=encoder.name != "pixels")
        channels = opened.image_channels or given.get("data.channels", dataset.channels)
        data = replace(
            data, size=side, channels=channels, cache=encoder.name != "pixels" and dataset.config.name != "given"
        )
        latent = (opened.channels or channels, side // opened.stride, side // opened.stride)
    data = replace(
        data,
        flip=dataset.asymmetry < ASYMMETRY,
        validation=0.0 if dataset.has_validation else VALIDATION,
        unreadable="skip",
    )
    return part_of(data, "data", given), encoder, latent


def _side(dataset: Dataset, stride: int, device: torch.device, *, is_latent: bool) -> int:
    """The side of the square that images are cropped to, in pixels."""
    if is_latent:
        most = LATENT_PIXELS.get(device.type, LATENT_PIXELS["cpu"])
        return network.pixel_side(dataset.sides, most=most, multiple=2 * stride, stride=stride)
    if dataset.is_one_size and dataset.sides[0] == dataset.sides[1] and dataset.sides[0] <= PIXELS:
        return network.pixel_side(dataset.sides, most=PIXELS, multiple=2)
    return network.pixel_side(dataset.sides, most=PIXELS, multiple=4)
