"""An autoencoder of your own, given as an object: here Haar wavelets, latents of half the side and four channels.

python examples/own_autoencoder.py          two or three minutes on one CPU core
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import fluvial
from fluvial.autoencoders import Pixels

HAAR = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2  # its own inverse


class Haar(Pixels):
    """Grey images in [-1, 1] to the four Haar coefficients of each 2 x 2 pixels, and back without loss."""

    stride = 2  # pixels to a side of a latent
    channels, image_channels = 4, 1
    identity = hash = "haar"  # recorded in the run: no autoencoder of another hash decodes its latents

    def moments(self, images: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", HAAR.to(images), pixel_unshuffle(images, 2))

    def decode(self, latents: Tensor) -> Tensor:
        return pixel_shuffle(torch.einsum("ij,bjhw->bihw", HAAR.to(latents), latents), 2).clamp(-1, 1)


def main(out: Path | str = "runs/digits-haar", steps: int = 1200) -> None:
    run = fluvial.recipes.get("digits-sit")
    run = replace(
        run,
        method=replace(run.method, size=(4, 4), channels=4, patch=1),
        optim=replace(run.optim, warmup=min(run.optim.warmup, steps // 10)),
        train=replace(run.train, steps=steps, batch=64),
    )
    fluvial.train(run, out, autoencoder=Haar())
    sampler = fluvial.load(out, autoencoder=Haar())  # an object is not in the folder: it is given again
    sampler.sample(100, trajectory=True).save(Path(out) / "samples")


if __name__ == "__main__":
    main()
