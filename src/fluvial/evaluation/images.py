"""Images to be measured, read a few at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from fluvial.data.labels import Classes
from fluvial.utils.randomness import numpy_generator


class Images(NamedTuple):
    """Images that are read a few at a time, and where they come from."""

    name: str
    n: int
    read: Callable[[Sequence[int]], tuple[UInt8[Tensor, "b c h w"], Int[Tensor, "b"] | None]]
    digest: Callable[[Sequence[int]], str]
    """SHA-256 of the content of some of them, labels included; "" where it is drawn anew."""
    about: dict[str, Any]
    """What a card says of them: how they were cut, rounded, labelled, and for samples how they were drawn."""
    classes: Classes | None = None
    """What their labels mean; None without labels."""

    def some(self, most: int) -> "Images":
        """At most so many of them, at random but always the same ones, in their order."""
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
