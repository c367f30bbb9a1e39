"""Between images in [-1, 1] and latents of about unit standard deviation. The only owner of shift and scale."""

from fluvial.autoencoders.pixels import Pixels

Autoencoder = Pixels


def load(name: str) -> Autoencoder:
    """The autoencoder of that name. "pixels" is the identity: the latents are the image."""
    if name == "pixels":
        return Pixels()
    raise ValueError(f"unknown autoencoder {name!r}: this version of fluvial has 'pixels'")
