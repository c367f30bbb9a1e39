"""Between images in [-1, 1] and latents of about unit standard deviation. The only owner of shift and scale.

An autoencoder gives the moments of an image's posterior, (mean | log variance) or, where it has no variance, the mean
alone. Latents are a draw from it, z = mean + exp(logvar / 2) noise, standardised: (z - shift) * scale.
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
    name: str = setting("pixels", changeable=True)  # its weights are checked by their hash
    """"pixels" trains on the images themselves; else a diffusers AutoencoderKL, AutoencoderTiny or AutoencoderDC by its
    name on the Hugging Face hub or its folder, or a file of MAR's KL-16 (kl16.ckpt)."""
    statistics: Literal["published", "measured"] = "published"
    """Where shift and scale come from if they are not given: the autoencoder's configuration, or the training data, as
    the mean and one over the standard deviation of each channel."""
    shift: tuple[float, ...] = ()
    """Latents are (z - shift) * scale: one number, or one a channel. Found when training starts, and kept."""
    scale: tuple[float, ...] = ()
    """See shift."""
    hash: str = setting("", found=True)
    """Of the weights; found when training starts, so that no other autoencoder decodes these latents."""

    def __post_init__(self) -> None:
        as_declared(self)
        if bool(self.shift) != bool(self.scale):
            raise ValueError(f"give both shift and scale or neither, got shift {self.shift} and scale {self.scale}")
        if not all(0 < scale < math.inf for scale in self.scale) or not all(map(math.isfinite, self.shift)):
            raise ValueError(f"scale must be above 0, shift and scale finite, got {self.scale} and {self.shift}")


def load(name: str) -> Autoencoder:
    """The autoencoder of that name with its published shift and scale; "pixels" is the identity.

    Raises ValueError if there is none of that name, or diffusers is not installed.
    """
    return Pixels() if name == "pixels" else from_pretrained(name)
