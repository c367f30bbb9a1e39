"""The identity: a method trains on the pixels themselves."""

from jaxtyping import Float
from torch import Tensor, nn


class Pixels(nn.Module):
    """Latents are the images."""

    def encode(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] to latents."""
        return images

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents to images in [-1, 1], clamped."""
        return latents.clamp(-1, 1)
