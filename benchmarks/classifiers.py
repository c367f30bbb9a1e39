"""Feature extractors for CIFAR-10 and Fashion-MNIST: classifiers of their ten classes, written as TorchScript.

    python benchmarks/classifiers.py cifar10 [--weights FILE] [--test FILE] [--out data/cifar10-resnet56.pt]
    python benchmarks/classifiers.py fashion [--train FILE] [--test FILE] [--out data/fashion-cnn.pt]
                                             [--epochs 6] [--seed 0]

cifar10 converts the published weights of a ResNet-56 (akamaster/pytorch_resnet_cifar10, as safetensors); fashion trains
a small network, in a few minutes on one thread. Either prints its accuracy on the test images and the SHA-256 of the
file, which `fluvial score --extractor FILE` prints too and writes into the card. Seed, thread and libraries being
equal, a second training writes the same file, byte for byte.
"""

import argparse
import time
import zipfile
from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fluvial.data.images import DataConfig, ImageSet, load
from fluvial.metrics.features import extractor
from fluvial.utils.atomic import write_bytes
from fluvial.utils.files import checksum

CLASSES = 10
CIFAR10_MEAN, CIFAR10_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in the release
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)  # of the training images
BATCH, RATE, DECAY, MOMENTUM = 128, 0.2, 5e-4, 0.9


class Block(nn.Module):
    """A basic block whose shortcut has no weights (arXiv 1512.03385, option A): every second pixel, zero channels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.pad = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return (y + shortcut).relu()


class ResNet(nn.Module):
    """The ResNet for CIFAR-10 (arXiv 1512.03385, section 4.2), of 6n + 2 layers: images to 64 features."""

    def __init__(self, n: int = 9) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n)
        self.layer2 = _stage(16, 32, n)
        self.layer3 = _stage(32, 64, n)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


def _stage(before: int, after: int, n: int) -> nn.Sequential:
    first = Block(before, after, stride=after // before)
    return nn.Sequential(first, *(Block(after, after, stride=1) for _ in range(n - 1)))


class FashionNet(nn.Module):
    """Four convolutions with batch norm, two of them before a halving of the map: grey images to 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_convolution(1, 16), nn.MaxPool2d(2)),
            *(_convolution(16, 32), nn.MaxPool2d(2)),
            *(_convolution(32, 64), _convolution(64, 64)),
        )
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mean(dim=1, keepdim=True)).mean(dim=(2, 3))


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Classifier(nn.Module):
    """A network with its normalisation: uint8 (b, c, h, w) in 0 ... 255 to features (b, 64), those to logits (b, 10).

    Images have the side that the network knows, or are `padded` to a larger one, of which the middle is taken.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: ResNet | FashionNet, mean: tuple[float, ...], std: tuple[float, ...], side: int, padded: int
    ) -> None:
        super().__init__()
        self.network, self.side, self.padded = network, side, padded
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.size(2), images.size(3)
        if height != width or (height != self.side and height != self.padded):
            raise ValueError(f"it takes images of {self.side} x {self.side} pixels, not of {height} x {width}")
        edge = (height - self.side) // 2
        images = images[:, :, edge : edge + self.side, edge : edge + self.side]
        return self.network((images.float() / 255 - self.mean) / self.std)

    @torch.jit.export
    def logits(self, features: Tensor) -> Tensor:
        """The last layer alone."""
        return self.network.linear(features)


def cifar10(weights: Path) -> Classifier:
    """The ResNet-56 of published weights, for evaluation. Raises RuntimeError if keys or shapes are others."""
    network = ResNet()
    network.load_state_dict(load_file(weights))
    return Classifier(network, CIFAR10_MEAN, CIFAR10_STD, side=32, padded=32).eval()


def fashion(images: ImageSet, *, epochs: int = 6, seed: int = 0) -> Classifier:
    """A classifier trained on grey images of 28 x 28, half of them mirrored, with one cycle of the learning rate."""
    labels = images.labels
    assert labels is not None
    pixels = images.rows(torch.arange(len(labels)))
    torch.manual_seed(seed)
    made = Classifier(FashionNet(), FASHION_MEAN, FASHION_STD, side=28, padded=32).train()
    steps = epochs * (len(pixels) // BATCH)
    optimizer = torch.optim.SGD(
        made.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pixels))[: steps // epochs * BATCH].split(BATCH):
            batch = pixels[chosen]
            batch = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, batch, batch.flip(-1))
            loss = functional.cross_entropy(made.logits(made(batch)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return made.eval()


def torchscript(classifier: Classifier) -> bytes:
    """The classifier as a TorchScript file, whose bytes follow from its weights.

    Records of source lines, which name folders, and the serial number are left out. Constants of a module are listed by
    name, as their order would change from process to process.
    """
    whole, kept = BytesIO(), BytesIO()
    torch.jit.save(torch.jit.script(classifier), whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(kept, "w") as new:
        for name in old.namelist():
            if name.endswith((".debug_pkl", "/serialization_id")):
                continue
            content = old.read(name)
            new.writestr(zipfile.ZipInfo(name), _ordered(content) if name.endswith(".py") else content)
    return kept.getvalue()


def _ordered(code: bytes) -> bytes:
    """The code with each run of constants sorted."""
    runs = groupby(code.splitlines(keepends=True), key=lambda line: b" : Final[" in line)
    return b"".join(b"".join(sorted(run) if is_constant else run) for is_constant, run in runs)


def accuracy(file: Path, images: ImageSet) -> float:
    """The share of images whose class the file tells, read as an extractor is."""
    look, hits = extractor(str(file)), 0
    assert images.labels is not None
    for chosen in torch.arange(len(images.labels)).split(250):
        logits = look.extract(images.rows(chosen)).logits
        assert logits is not None
        hits += int((logits.argmax(1) == images.labels[chosen]).sum())
    return hits / len(images.labels)


def read(path: str, channels: Literal[1, 3]) -> ImageSet:
    """The images of a file, decoded when they are needed."""
    images = load(DataConfig(path=path, channels=channels), "train", scan=False)
    assert images is not None
    return images


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = options.add_subparsers(dest="kind", required=True)
    parts = {"cifar10": kinds.add_parser("cifar10"), "fashion": kinds.add_parser("fashion")}
    parts["cifar10"].add_argument("--weights", type=Path, default="data/classifiers/cifar10-resnet56.safetensors")
    parts["cifar10"].add_argument("--test", default="data/cifar10-test.parquet", help="labelled images")
    parts["cifar10"].add_argument("--out", type=Path, default="data/cifar10-resnet56.pt", help="the file to write")
    parts["fashion"].add_argument("--train", default="data/fashion-mnist-train.parquet", help="labelled images")
    parts["fashion"].add_argument("--test", default="data/fashion-mnist-test.parquet", help="labelled images")
    parts["fashion"].add_argument("--out", type=Path, default="data/fashion-cnn.pt", help="the file to write")
    parts["fashion"].add_argument("--epochs", type=int, default=6)
    parts["fashion"].add_argument("--seed", type=int, default=0)
    given = options.parse_args(argv)
    torch.set_num_threads(1)  # sums over several threads would round in another order
    test = read(given.test, 3 if given.kind == "cifar10" else 1)
    if given.kind == "cifar10":
        made = cifar10(given.weights)
    else:
        train, started = read(given.train, 1), time.process_time()
        made = fashion(train, epochs=given.epochs, seed=given.seed)
        seconds = time.process_time() - started
        print(f"{given.epochs} epochs of {len(train.pixels):,} images in {seconds:.0f} s of one core")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(given.out, torchscript(made))
    share = accuracy(given.out, test)
    print(f"{given.out}: accuracy {share:.4f} on {len(test.pixels):,} images, SHA-256 {checksum(given.out)}")


if __name__ == "__main__":
    main()
