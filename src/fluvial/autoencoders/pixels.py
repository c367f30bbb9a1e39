"""The identity autoencoder, for methods trained on pixels."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Pixels(nn.Module):
    """The identity: latents are the images."""

    stride = 1
    channels = image_channels = None  # as many as the images have
    shift, scale = (0.0,), (1.0,)
    identity = "pixels"
    hash = "pixels"

    def standardised(self, shift: tuple[float, ...], scale: tuple[float, ...]) -> "Pixels":
        """This object, unchanged. Raises ValueError for a shift other than 0 or a scale other than 1."""
        if (shift, scale) != (self.shift, self.scale):
            raise ValueError(f"pixels are not shifted or scaled, got shift {shift} and scale {scale}")
        return self

    def moments(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images in [-1, 1], as the mean; there is no variance."""
        return images

    def latents(
        self,
        moments: Float[Tensor, "b c h w"],
        generator: torch.Generator | None = None,
        part: tuple[slice, int] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The images, unchanged."""
        return moments

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1]: the latents, clamped."""
        return latents.clamp(-1, 1)
