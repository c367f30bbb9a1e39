"""Which tensors a training step keeps alive, and when."""

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # neither has a public name
from torch.utils._pytree import tree_leaves

Moments = np.ndarray  # (moments, 3): bytes of gradients, activations, the rest


class Living(TorchDispatchMode):
    """Follows the storages that operations make, from birth to death; those of `model` are left out.

    Works on fake tensors as on real ones. `end_forward` is called between each forward and its backward pass, `end`
    after the last, and `history` then returns what was held.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.alive: dict[int, int] = {}  # number of the storage at an address
        self.events: list[tuple[int, int]] = []  # number, and bytes that came or went
        self.kept: set[int] = set()
        self.gradients: set[int] = set()
        self.born = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self.known or address in self.alive:
            return
        self.alive[address], size = self.born, storage.nbytes()
        self.events.append((self.born, size))
        weakref.finalize(storage, self._gone, address, self.born, size)
        self.born += 1

    def _gone(self, address: int, number: int, size: int) -> None:
        self.events.append((number, -size))
        if self.alive.get(address) == number:
            del self.alive[address]

    def end_forward(self) -> None:
        """Counts the tensors alive now, which wait for the backward pass or are gradients."""
        self.kept |= set(self.alive.values())

    def end(self, gradients: Iterable[Tensor | None]) -> None:
        self.gradients = {self.alive[g.untyped_storage()._cdata] for g in gradients if g is not None}

    def history(self) -> Moments:
        """Bytes of gradients, activations and the rest after every birth."""
        held, moments = [0, 0, 0], [(0, 0, 0)]
        for number, size in self.events:
            held[0 if number in self.gradients else 1 if number in self.kept else 2] += size
            if size > 0:
                moments.append((held[0], held[1], held[2]))
        return np.array(moments)
