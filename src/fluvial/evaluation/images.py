"""The images of an evaluation, read in batches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from fluvial.data.labels import Classes
from fluvial.utils.randomness import numpy_generator


class Images(NamedTuple):
    """A set of images that is read in batches, with its name, content hash and facts for the score card."""

    name: str
    n: int
    read: Callable[[Sequence[int]], tuple[UInt8[Tensor, "b c h w"], Int[Tensor, "b"] | None]]
    digest: Callable[[Sequence[int]], str]
    """SHA-256 of the content of these images, labels included; "" for samples that are drawn when read."""
    about: dict[str, Any]
    """Facts for the score card: how images were cropped, rounded and labelled, and how samples were drawn."""
    classes: Classes | None = None
    """The classes that labels refer to; None without labels."""

    def some(self, most: int) -> "Images":
        """A fixed random subset of at most `most` images, in their order."""
        if self.n <= most:
            return self
        kept = np.sort(numpy_generator(0, "some").permutation(self.n)[:most]).tolist()
        about = {**self.about, "chosen": f"{most} of {self.n} at random"}
        return self._replace(
            n=most,
            read=lambda wanted: self.read([kept[i] for i in wanted]),
            digest=lambda wanted: self.digest([kept[i] for i in wanted]),
            about=about,
        )
