"""The classifiers of benchmarks/: the network of the published weights, files that give what was made, and sets."""

import os
import subprocess
import sys
from pathlib import Path

import classifiers
import extractors
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from conftest import shared
from fluvial.data.images import DataConfig, ImageSet, load
from fluvial.metrics.features import extractor
from fluvial.utils.files import checksum

WEIGHTS = "data/classifiers/cifar10-resnet56.safetensors"


def random_images(count=6, channels=3, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def sets(count, side=28):
    """Images that tell their class by their brightness."""
    labels = torch.arange(count) % 10
    pixels = random_images(count, 1, side).float() * 0.2 + 20 * labels[:, None, None, None]
    return ImageSet(pixels.byte(), labels, ())


# ResNet-56


def test_the_resnet_has_the_parameters_of_the_published_file():
    weights, network = load_file(shared(WEIGHTS)), classifiers.ResNet()
    ours = {name: tuple(x.shape) for name, x in network.state_dict().items() if "num_batches" not in name}
    assert ours == {name: tuple(x.shape) for name, x in weights.items()}
    assert sum(p.numel() for p in network.parameters()) == 853_018  # 0.85M: arXiv 1512.03385, table 6


def test_the_normalisation_is_that_of_the_published_file():
    with safe_open(shared(WEIGHTS), "pt") as file:
        told = file.metadata()["input"]
    mean, std = (f"({','.join(map(str, values))})" for values in (classifiers.CIFAR10_MEAN, classifiers.CIFAR10_STD))
    assert told == f"RGB in [0,1], minus {mean}, over {std}, 32x32"


@pytest.mark.parametrize("change", ["missing", "another", "shape"])
def test_other_weights_are_refused(tmp_path, change):
    tensors = {k: v for k, v in classifiers.ResNet().state_dict().items() if "num_batches" not in k}
    if change == "missing":
        del tensors["layer2.4.bn1.bias"]
    elif change == "another":
        tensors["layer2.0.shortcut.weight"] = torch.zeros(2)
    else:
        tensors["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match=r"layer2\.4\.bn1\.bias|layer2\.0\.shortcut\.weight|conv1\.weight"):
        classifiers.cifar10(tmp_path / "other.safetensors")


@torch.no_grad()
def test_a_block_is_the_formula():
    """A shortcut of every second pixel, between as many channels of zeros on either side."""
    torch.manual_seed(1)
    block = classifiers.Block(4, 8, stride=2).eval()
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 6, 6)

    def norm(y, bn):
        mean, var, weight, bias = (v[:, None, None] for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    y = norm(functional.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    y = norm(functional.conv2d(y, block.conv2.weight, padding=1), block.bn2)
    y[:, 2:6] += x[:, :, [0, 2, 4]][..., [0, 2, 4]]
    torch.testing.assert_close(block(x), y.clamp(min=0))


@pytest.mark.slow
def test_the_resnet_knows_cifar10(tmp_path):
    """Of the original images 93.6 %; these are copies of them as JPEG of quality 75, 83.2 % of all 10,000."""
    test = load(DataConfig(path=str(shared("data/cifar10-test.parquet"))), "train", scan=False)
    file = tmp_path / "resnet.pt"
    file.write_bytes(classifiers.torchscript(classifiers.cifar10(shared(WEIGHTS))))
    assert classifiers.accuracy(file, test.subset(torch.arange(500))) >= 0.8


# what is written


@pytest.fixture(params=["cifar10", "fashion"])
def made(request):
    """A classifier with random weights, and averages that are not those of a new one."""
    torch.manual_seed(0)
    if request.param == "cifar10":
        made = classifiers.Classifier(
            classifiers.ResNet(1), classifiers.CIFAR10_MEAN, classifiers.CIFAR10_STD, side=32, padded=32
        )
    else:
        made = classifiers.Classifier(
            classifiers.FashionNet(), classifiers.FASHION_MEAN, classifiers.FASHION_STD, side=28, padded=32
        )
    made.train()(random_images(16, side=made.side))
    return made.eval()


@torch.no_grad()
def test_a_written_classifier_is_an_extractor_that_gives_what_the_module_gives(made, tmp_path):
    file = tmp_path / "classifier.pt"
    file.write_bytes(classifiers.torchscript(made))
    look, x = extractor(str(file)), random_images(5, side=made.side)
    assert (look.name, look.hash) == ("torchscript classifier.pt", checksum(file))
    found = look.extract(x)
    assert found.pooled.shape == (5, 64) and found.logits.shape == (5, 10)
    torch.testing.assert_close(found.pooled, made(x), rtol=0, atol=0)
    torch.testing.assert_close(found.logits, made.logits(made(x)), rtol=0, atol=0)
    assert found.pooled.std(0).mean() > 1e-4  # the images matter


@torch.no_grad()
def test_bytes_are_normalised(made):
    seen = []
    made.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    made(torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, made.side, made.side))
    mean, std = (v.flatten().expand(3) for v in (made.mean, made.std))
    for value, x in zip((0, 0.2, 1), seen[0], strict=True):
        torch.testing.assert_close(x.amax((1, 2)), (value - mean) / std)
        torch.testing.assert_close(x.amin((1, 2)), (value - mean) / std)


def test_what_is_written_names_no_folder_and_depends_on_the_weights_alone(made):
    first = classifiers.torchscript(made)
    assert classifiers.torchscript(made) == first
    assert b"classifiers.py\x00" not in first and b"debug_pkl" not in first
    with torch.no_grad():
        made.network.linear.bias[0] += 1e-3
    assert classifiers.torchscript(made) != first


def test_what_is_written_is_the_same_in_every_process(tmp_path):
    """Sets of names are ordered by their hashes, which differ from process to process."""
    code = (
        "import hashlib, torch, classifiers as c; torch.manual_seed(0); "
        "made = c.Classifier(c.ResNet(1), c.CIFAR10_MEAN, c.CIFAR10_STD, side=32, padded=32).eval(); "
        "print(hashlib.sha256(c.torchscript(made)).hexdigest())"
    )
    found = set()
    for seed in ("0", "1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(classifiers.__file__).parent)}
        found |= {subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path)}
    assert len(found) == 1


def test_images_of_another_size_are_refused(made, tmp_path):
    file = tmp_path / "classifier.pt"
    file.write_bytes(classifiers.torchscript(made))
    with pytest.raises(ValueError, match=rf"takes images of {made.side} x {made.side} pixels, not of 64 x 64"):
        extractor(str(file)).extract(random_images(side=64))


# Fashion-MNIST


def test_padded_grey_images_are_those_without_a_frame():
    made = classifiers.fashion(sets(classifiers.BATCH), epochs=1)
    x = random_images(channels=1, side=28)
    with torch.no_grad():
        expected = made(x)
        torch.testing.assert_close(made(functional.pad(x, (2,) * 4)), expected, rtol=0, atol=0)
        torch.testing.assert_close(made(x.expand(-1, 3, -1, -1)), expected)  # as an extractor gets them


def test_training_learns_and_is_repeated_by_its_seed_to_the_byte():
    images = sets(4 * classifiers.BATCH)
    first = classifiers.fashion(images, epochs=3, seed=1)
    again = classifiers.torchscript(classifiers.fashion(images, epochs=3, seed=1))
    assert classifiers.torchscript(first) == again
    assert classifiers.torchscript(classifiers.fashion(images, epochs=3, seed=2)) != again
    assert not first.training


# extractors compared


def test_sets_are_balanced_and_apart():
    images = sets(200)
    first, other = extractors.balanced(images, 45), extractors.balanced(images, 45, skip=45)
    assert first.labels.bincount().tolist() == [5] * 5 + [4] * 5
    assert other.labels.bincount().tolist() == [4] * 5 + [5] * 5
    rows = {tuple(row.tolist()) for row in torch.cat([first.pixels, other.pixels]).flatten(1)}
    assert len(rows) == 90
    few = extractors.balanced(images, 45, classes=4).labels
    assert few.bincount().tolist() == [12, 11, 11, 11]
    with pytest.raises(SystemExit, match="there are 40 images of 2 classes"):
        extractors.balanced(images, 45, classes=2)


def test_a_blur_is_scipys_and_noise_has_its_deviation():
    from scipy.ndimage import gaussian_filter

    x = random_images(2, 3, 12)
    for sigma in extractors.BLURS:
        expected = gaussian_filter(x.numpy().astype(float), (0, 0, sigma, sigma), mode="mirror", truncate=3)
        assert (extractors.blurred(x, sigma).double() - torch.from_numpy(expected)).abs().max() <= 0.51
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    apart = extractors.noisy(grey, 0.1).float() - 128
    assert apart.std() == pytest.approx(25.5, rel=0.02) and abs(apart.mean()) < 0.5


def test_what_is_out_of_order_is_told():
    worse = [extractors.Step(family, name, sets(10)) for family, name in (("", "real"), ("blur", "a"), ("blur", "b"))]
    scores = [("frechet_distance", (1, 2, 3)), ("class_accuracy", (0.9, 0.9, 0.5)), ("kernel_distance", (1, 3, 2))]
    found = [{name: extractors.Estimate(values[i], 0.1) for name, values in scores} for i in range(3)]
    told = list(extractors.disordered(worse, found))
    assert told == ["kernel distance: 3 of a, 2 of b", "class accuracy: 0.9 of real, 0.9 of a"]


def test_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extractors, "read", lambda path, channels: sets(200 if "train" in path else 100, 8))
    extractors.main(["pixels", "--train", "train", "--test", "test", "--count", "50", "--channels", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "pixels (SHA-256 none), 50 images each" in lines
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert names[2:4] == ["training images", "other test images"] and names[-1] == "5 of 10 classes"
    distance = {line.split("|")[1].strip(): float(line.split("|")[2].split("±")[0]) for line in lines if "±" in line}
    assert distance["training images"] < distance["8 of 10 classes"] < distance["5 of 10 classes"]
