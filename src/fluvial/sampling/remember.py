"""Evaluations of a network that are remembered by the content of their inputs, so that none is made twice.

Samples of the same noise under several settings of guidance share the beginning of their trajectories: the first step
is common to all weights, and so is all that comes before an interval opens. A branch of guidance that has been
evaluated at some (x, t, state, labels) gives the tensors of that time again, so the samples are the same to the bit.
"""

import copy
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fluvial.flow.guidance import Guidance
from fluvial.sampling.settings import SampleConfig

LIMIT = 2**31  # bytes of remembered tensors
PLAIN = (bool, int, float, str, range, type(None))


class _Outcome(NamedTuple):
    """The value of an evaluation, its size in bytes, and the walk that asked for it last."""

    value: Any
    size: int
    walk: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Values of evaluations by the content of their inputs, as many as fit into `limit` bytes.

    Settings are walked one after another, in an order in which neighbours share most: see `by_shared_steps`. What the
    present walk has not asked for gives way first, the oldest before others; what it has asked for stays, and later
    values are then not kept, since walks part at their ends.
    """

    limit: int = LIMIT
    asked: Counter[str] = field(default_factory=Counter)
    """Evaluations that were asked for, by the name of the function."""
    made: Counter[str] = field(default_factory=Counter)
    """Those of them that were made."""
    _kept: OrderedDict[bytes, _Outcome] = field(default_factory=OrderedDict)
    _known: Any = field(default_factory=WeakTensorKeyDictionary)
    """By tensor, its digest and version: that of what was made here follows from its inputs, without reading it."""
    _walks: list[int] = field(default_factory=lambda: [0])

    def begin(self) -> None:
        """Begins another walk."""
        self._walks[0] += 1

    @property
    def held(self) -> int:
        """Bytes of the values that are kept."""
        return sum(outcome.size for outcome in self._kept.values())

    def recall(self, name: str, inputs: Any, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - any function's
        """The value that `name` has for these inputs, made if it is not known.

        Inputs of other kinds than tensors, numbers, text, ranges, None and tuples of them are not remembered.
        """
        self.asked[name] += 1
        inside = self._digest(inputs)
        key = None if inside is None else hashlib.blake2b(name.encode() + b":" + inside, digest_size=32).digest()
        if key is not None and key in self._kept:
            found = self._kept.pop(key)
            self._kept[key] = found._replace(walk=self._walks[0])
            return found.value
        self.made[name] += 1
        value = make()
        if key is not None:
            self._keep(key, value)
        return value

    def _keep(self, key: bytes, value: Any) -> None:  # noqa: ANN401
        """Keeps a value, if there is room for it or can be made."""
        parts = list(_tensors(value))
        for i, part in enumerate(parts):
            self._known[part] = hashlib.blake2b(key + str(i).encode(), digest_size=32).digest(), part._version
        size, held = sum(part.nbytes for part in parts), self.held
        while self._kept and held + size > self.limit:
            oldest = next(iter(self._kept))
            if self._kept[oldest].walk == self._walks[0]:
                break
            held -= self._kept.pop(oldest).size
        if held + size <= self.limit:
            self._kept[key] = _Outcome(value, size, self._walks[0])

    def _digest(self, value: Any) -> bytes | None:  # noqa: ANN401
        """A digest of the content of inputs; None for what has none."""
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, tuple | list):
            parts = [self._digest(part) for part in value]
            return None if None in parts else b"(" + b",".join(part or b"" for part in parts) + b")"
        return repr(value).encode() if isinstance(value, PLAIN) else None

    def _of_tensor(self, tensor: Tensor) -> bytes:
        """The digest of a tensor: of its values, unless it is known and nothing was written to it since."""
        digest, version = self._known.get(tensor, (b"", -1))
        if version != tensor._version:
            about = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device} ".encode()
            content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
            digest = hashlib.blake2b(content, digest_size=32, key=hashlib.sha256(about).digest()).digest()
            self._known[tensor] = digest, tensor._version
        return digest


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors in a value: of a tuple or list, those of its parts in turn."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def remembered(function: Callable[..., Any], memory: Memory, name: str) -> Callable[..., Any]:
    """The function, which is evaluated only for inputs that the memory does not know under this name.

    Its values must be a function of the inputs alone, and nothing may write into them.
    """

    @wraps(function)
    def call(*given: Any, **options: Any) -> Any:  # noqa: ANN401
        inputs = (given, tuple(sorted(options.items())))
        return memory.recall(name, inputs, lambda: function(*given, **options))

    return call


def remembering(model: nn.Module, memory: Memory) -> nn.Module:
    """The model with its weights, whose evaluations go through the memory; the model that is given stays as it is.

    They are its forward, or the functions that it names as `evaluated`, where sampling calls others.
    """
    found = _sharing(model)
    for name in getattr(model, "evaluated", ("forward",)):
        *path, last = name.split(".")
        owner, real = found, model
        for part in path:
            real = real.get_submodule(part)
            if owner.get_submodule(part) is real:
                owner._modules[part] = _sharing(real)
            owner = owner.get_submodule(part)
        setattr(owner, last, remembered(getattr(real, last), memory, name))
    found.remembers = True  # type: ignore[assignment] - see `flow/guidance.py`
    return found


def _sharing(module: nn.Module) -> nn.Module:
    """A copy with the same parameters, buffers and modules, whose attributes can be set by themselves."""
    found = copy.copy(module)
    found._modules = dict(module._modules)
    return found


def by_shared_steps(settings: Sequence[SampleConfig], *, scales: int = 0) -> list[int]:
    """The order to walk settings in that differ in guidance, such that each shares most with the one before it.

    It is that of the weights at the times of the grid, one after another: of all settings walked before, the last one
    then has the longest beginning in common with the next. `scales` are those of FlowAR, 0 for methods without.
    """
    count = max(1, scales)

    def course(i: int) -> list[list[float]]:
        guidance, grids = settings[i].guidance, settings[i].times()
        return [
            _weights(guidance.at_scale(scale, count), grids[scale] if isinstance(grids, list) else grids)
            for scale in range(count)
        ]

    return sorted(range(len(settings)), key=course)


def _weights(guidance: Guidance, times: Tensor) -> list[float]:
    """The weight of guidance at each of these times."""
    low, high = guidance.interval
    return torch.where((low <= times) & (times <= high), guidance.weight_at(times), 1.0).tolist()
