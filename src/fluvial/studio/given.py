"""The images that the studio edits: files that were uploaded, samples of the run, and painted masks."""

import struct
import warnings
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fluvial.studio.editing import Editing, chosen_class
from fluvial.studio.work import Job

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fluvial.run.load import Sampler
    from fluvial.sampling.samples import Samples

MOST_BYTES = 20 * 2**20  # of the files of an upload, in all
MOST_REQUEST = MOST_BYTES + 2**20  # with what a browser writes around them
MOST_PIXELS = 50_000_000  # of a file, by its header
MOST_EXAMPLES = 5


def check_header(content: bytes, name: str) -> None:
    """Raises ValueError for a file that is too large, or whose header tells of too many pixels; decodes nothing."""
    from PIL import Image

    from fluvial.data.crop import PNG
    from fluvial.data.left_out import image_formats

    if len(content) > MOST_BYTES:
        raise ValueError(f"{name[:100]} has {len(content) / 2**20:.0f} MB, and may have {MOST_BYTES // 2**20}")
    size: tuple[int, int] = (0, 0)
    if content.startswith(PNG) and len(content) >= 24:
        size = struct.unpack(">II", content[16:24])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(BytesIO(content), formats=image_formats()) as image:
                    size = image.size
            except Image.DecompressionBombError:
                raise ValueError(
                    f"{name[:100]} has far too many pixels; at most {MOST_PIXELS // 10**6} million"
                ) from None
            except Exception:  # of damaged files nearly any; decoding says what it is
                return
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"{name[:100]} has {size[0]:,} x {size[1]:,} pixels, and at most {MOST_PIXELS // 10**6} million are taken"
        )


def uploaded(content: bytes, name: str, sampler: "Sampler", side: int) -> "Tensor":
    """A file as `fluvial edit --fit` reads it: (1, c, side, side). Raises ValueError for no image, or one too large."""
    import torch
    from PIL import Image

    from fluvial.data import crop

    channels = 1 if 1 in (sampler.autoencoder.image_channels, sampler.run.method.channels) else 3

    def use(image: Image.Image) -> "np.ndarray":
        return crop.to_array(crop.square(crop.upright(image, channels), side, "centre"))

    check_header(content, name)
    return torch.tensor(crop.decode(content, name[:100], use))[None]


def given(sampler: "Sampler", editing: Editing, files: Sequence[tuple[str, bytes]], job: Job) -> "Tensor":
    """The images that are edited (n, c, h, w): of the files (name, content), or else samples of the run."""
    import torch
    from PIL import Image

    from fluvial.data import crop

    several = editing.kind == "context"
    side = editing.side if editing.kind == "grow" and editing.side else sampler.side
    if files:
        chosen = files[:MOST_EXAMPLES] if several else files[:1]
        return torch.cat([uploaded(content, name, sampler, side) for name, content in chosen])
    count, classes = MOST_EXAMPLES if several else 1, chosen_class(sampler, editing.of)
    images = sampler.sample(count, seed=editing.sample, classes=classes, on_step=lambda step: job.check()).images
    if side == sampler.side:
        return images
    arrays = [image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy() for image in images]
    squares = [crop.to_array(crop.square(Image.fromarray(array), side, "centre")) for array in arrays]
    return torch.stack([torch.tensor(square) for square in squares])


class Given:
    """The images that are edited, made anew if anything changes that they depend on."""

    def __init__(self) -> None:
        self._made_of: tuple[Any, ...] = ()
        self._sampler: Sampler | None = None
        self._images: Tensor | None = None

    def images(self, sampler: "Sampler", editing: Editing, files: list[tuple[str, bytes]], job: Job) -> "Tensor":
        """The images, see `given`."""
        source = files or (editing.of, editing.sample)
        made_of = (editing.kind == "context", editing.kind == "grow" and editing.side, source)
        if self._images is None or self._sampler is not sampler or self._made_of != made_of:
            self._images = given(sampler, editing, files, job)
            self._sampler, self._made_of = sampler, made_of
        return self._images


def mask_of(runs: Any, side: int) -> "np.ndarray | None":  # noqa: ANN401 - from the browser
    """The mask (side, side) of lengths of runs that are not painted and painted in turn; None for no such lengths."""
    import numpy as np

    known = isinstance(runs, list) and len(runs) <= side * side + 1
    if (
        not known
        or not all(isinstance(run, int) and 0 <= run <= side * side for run in runs)
        or sum(runs) != side * side
    ):
        return None
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(side, side)


def image_file(images: "Tensor", *, several: bool) -> bytes:
    """The file that the command reads: a PNG of an image, or an .npz of several."""
    from PIL import Image

    from fluvial.utils import pictures

    if several:
        with TemporaryDirectory() as folder:
            return pictures.save_npz(images, None, Path(folder) / "images.npz").read_bytes()
    array = images[0][0].numpy() if images.shape[1] == 1 else images[0].permute(1, 2, 0).numpy()
    return pictures.encoded(Image.fromarray(array), "png")


def shown(images: "Tensor", *, several: bool) -> bytes:
    """The picture of what is edited: the image in its own pixels, or a grid of several."""
    from fluvial.utils import pictures

    return pictures.encoded(pictures.grid(images, 3), "png") if several else image_file(images, several=False)


def npz_file(samples: "Samples") -> bytes:
    """The images and their labels, as `fluvial edit` writes samples.npz."""
    with TemporaryDirectory() as folder:
        samples.save(folder, gif=False)
        return (Path(folder) / "samples.npz").read_bytes()


def mask_file(mask: "np.ndarray") -> bytes:
    """A mask as a PNG, white where it is drawn."""
    import numpy as np
    from PIL import Image

    from fluvial.utils import pictures

    return pictures.encoded(Image.fromarray(mask.astype(np.uint8) * 255), "png")


Scope = MutableMapping[str, Any]


class UploadLimit:
    """An ASGI application that refuses uploads of more bytes than the studio takes, before it reads them."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401
        if scope["type"] == "http" and scope["method"] == "POST" and "/upload/" in scope["path"]:
            length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
            if not length.isdecimal() or int(length) > MOST_REQUEST:
                await send(
                    {"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]}
                )
                return await send({"type": "http.response.body", "body": b"The file is too large."})
        await self.app(scope, receive, send)
