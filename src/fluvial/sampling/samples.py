"""What was drawn: images with their labels, and the steps on the way."""

from collections.abc import Callable

from jaxtyping import UInt8
from torch import Tensor

from fluvial.data.pixels import to_uint8
from fluvial.flow.solvers import Step

SAMPLES = "samples.npz"  # the images that `fluvial sample` writes
RECORD = "samples.json"  # how they were drawn


class Frames:
    """An `on_step` that keeps the first `count` images of a run at every step, for a GIF of the trajectory.

    With `ends_only` it decodes and keeps no more than what each integral ended with.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], count: int, *, ends_only: bool = False) -> None:
        self.decode, self.count, self.ends_only = decode, count, ends_only
        self.images: list[UInt8[Tensor, "n c h w"]] = []
        self.ends: list[UInt8[Tensor, "n c h w"]] = []
        """What each integral ended with: the image, or in FlowAR the map of each scale."""
        self._last = 0

    def __call__(self, step: Step) -> None:
        if step.number <= self._last:
            self.count = 0  # a second batch begins
        self._last = step.number
        ended = step.t > 1 - 1e-9
        if self.count and (ended or not self.ends_only):
            self.images.append(to_uint8(self.decode(step.x[: self.count])).cpu())
            if ended:
                self.ends.append(self.images[-1])
