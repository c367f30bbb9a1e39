"""Autoencoders: from images in [-1, 1] to latents of standard deviation about 1, and back.

An autoencoder gives the moments of an image's posterior, (mean | log variance) or, where it has no variance, the mean
alone. Latents are a draw from it, z = mean + exp(logvar / 2) noise, standardised: (z - shift) * scale. Shift and scale
are applied nowhere else.
"""

import math
from dataclasses import dataclass
from typing import Literal

from fluvial.autoencoders.pixels import Pixels
from fluvial.autoencoders.vae import Vae, from_pretrained
from fluvial.utils.checks import as_declared, setting

Autoencoder = Pixels | Vae


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The autoencoder of a run, and the shift and scale of its latents."""

    name: str = setting("pixels", changeable=True)  # its weights are checked by their hash
    """"pixels" trains on the images themselves; else a diffusers AutoencoderKL, AutoencoderTiny or AutoencoderDC by its
    name on the Hugging Face hub or its folder, or a file of MAR's KL-16 (kl16.ckpt)."""
    statistics: Literal["published", "measured"] = "published"
    """Source of shift and scale if they are not given: the autoencoder's configuration, or the training data (the mean
    and one over the standard deviation of each channel)."""
    shift: tuple[float, ...] = ()
    """Latents are (z - shift) * scale: one number, or one per channel. Determined when training starts, then fixed."""
    scale: tuple[float, ...] = ()
    """See shift."""
    hash: str = setting("", found=True)
    """Hash of the weights, recorded when training starts, so that no other autoencoder decodes these latents."""

    def __post_init__(self) -> None:
        as_declared(self)
        if bool(self.shift) != bool(self.scale):
            raise ValueError(f"give both shift and scale or neither, got shift {self.shift} and scale {self.scale}")
        if not all(0 < scale < math.inf for scale in self.scale) or not all(map(math.isfinite, self.shift)):
            raise ValueError(f"scale must be above 0, shift and scale finite, got {self.scale} and {self.shift}")


def load(name: str) -> Autoencoder:
    """The autoencoder of this name with its published shift and scale; "pixels" is the identity.

    Raises ValueError if there is no autoencoder of this name, or diffusers is not installed.
    """
    return Pixels() if name == "pixels" else from_pretrained(name)
