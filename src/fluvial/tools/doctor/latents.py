"""The check that latents of the training data have unit variance in every channel."""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.manifest import is_cache
from fluvial.run.inputs import batches_of, open_inputs
from fluvial.tools.doctor.check import Check, judge
from fluvial.utils.places import HUB

STD, FAR = (0.7, 1.4), (0.5, 2.0)
MEAN = 0.5
BLANK = 0.01  # standard deviation of pixels in [-1, 1] below which there is nothing to see
IMAGES = 64


def training_latents(run: Run, folder: Path, *, fetch: bool = False) -> Float[Tensor, "n c h w"]:
    """A batch of the run's latents, on the CPU.

    Raises ValueError if the data cannot be opened, or would have to be downloaded and `fetch` is False.
    """
    place, cache = run.data.place, folder / "latents"
    if run.data.cache and not is_cache(str(cache)):
        raise ValueError(f"the latents should be cached in {cache}, but are not there")
    if not fetch and place.startswith(HUB):
        raise ValueError(f"{place} is not on this machine; --fetch True gets it")
    name = run.autoencoder.name
    if not fetch and name != AutoencoderConfig().name and not Path(name).expanduser().exists():
        raise ValueError(f"the autoencoder {name} is not on this machine; --fetch True gets it")
    inputs = open_inputs(replace(run, train=replace(run.train, batch=1)), cache=cache)
    sequence = run.method.images_per_sequence or 1
    with torch.no_grad():
        latents, _ = batches_of(inputs, inputs.train, max(1, IMAGES // sequence), "cpu", flip=False)(0)
    return latents.flatten(0, 1) if latents.ndim == 5 else latents


def check_pixels(pixels: Float[Tensor, "n c h w"]) -> Check:
    """Checks that there is something to see in these pixels, whose mean and deviation are those of the images."""
    low, high, std = float(pixels.min()), float(pixels.max()), float(pixels.double().std())
    blank = std < BLANK
    return Check(
        name="pixels",
        found=f"std {std:.2f}, from {low:.2f} to {high:.2f} ({len(pixels)} images)",
        expected=f"std above {BLANK}",
        verdict=judge(blank, blank),
        advice="all images are of one colour: look at the data" if blank else "",
    )


def check_latents(latents: Float[Tensor, "n c h w"]) -> Check:
    """Checks standard deviation and mean of every channel of these latents."""
    values = latents.double().transpose(0, 1).flatten(1)
    std, mean = values.std(1), values.mean(1)
    low, high, centre = float(std.min()), float(std.max()), float(mean.abs().max())
    spread = not (STD[0] <= low and high <= STD[1])
    wrong = not (FAR[0] <= low and high <= FAR[1])
    shifted = not centre <= MEAN
    advice = "the noise has unit variance, and so should the latents: measure their statistics, or set "
    advice += "the shift and scale published with the autoencoder"
    channels = f"{low:.2f}" if len(std) == 1 else f"{low:.2f} to {high:.2f} over {len(std)} channels"
    return Check(
        name="latents",
        found=f"std {channels}, largest mean {centre:.2f} ({len(latents)} images)",
        expected=f"std {STD[0]} to {STD[1]}, mean within {MEAN}",
        verdict=judge(spread or shifted, wrong),
        advice=advice if spread or shifted else "",
        settings={"autoencoder.statistics": "measured"} if spread or shifted else {},
    )
