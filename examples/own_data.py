"""Images of your own from Python: any map-style Dataset of PyTorch, here one that draws discs and squares.

python examples/own_data.py                 two minutes on one CPU core
"""

from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw
from torch.utils.data import Dataset

import fluvial


class Shapes(Dataset[tuple[Image.Image, int]]):
    """Images and class ids. Images are PIL images or uint8 tensors (c, h, w), all of one size and not yet floats."""

    classes = ("disc", "square")  # their names, in the order of the ids; may be left out

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label, radius, shift = index % 2, 3 + index // 2 % 4, index // 8 % 5 - 2
        picture, centre = Image.new("L", (16, 16)), 8 + shift
        box = (centre - radius, centre - radius, centre + radius, centre + radius)
        draw = ImageDraw.Draw(picture)
        (draw.rectangle if label else draw.ellipse)(box, fill=255)
        return picture, label


def main(out: Path | str = "runs/shapes", steps: int = 1200, count: int = 400) -> None:
    run = fluvial.recipes.get("digits-sit")
    run = replace(
        run,
        method=replace(run.method, size=(16, 16), channels=1, classes=len(Shapes.classes)),
        optim=replace(run.optim, warmup=min(run.optim.warmup, steps // 10)),
        train=replace(run.train, steps=steps, batch=32),
    )
    sampler = fluvial.train(run, out, data=Shapes(count), validation=Shapes(40))
    for name in Shapes.classes:
        sampler.sample(20, classes=name, guidance=2, seed=1).save(Path(out) / "samples" / name)


if __name__ == "__main__":
    main()
