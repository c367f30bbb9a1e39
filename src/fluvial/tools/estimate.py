"""Estimates of parameters, FLOPs and memory of a run, before it is started.

There are no formulas for single models: the run's model and loss are executed on tensors with shapes but no memory
(FakeTensorMode), while matrix products and live tensors are counted.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # no public name; meta tensors do not mix with tables
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.training.distributed import blocks, checkpointed_blocks
from fluvial.training.living import Living, Moments
from fluvial.training.step import MicroBatch, errors_in, loss_of, split

Parallel = Literal["none", "ddp", "fsdp"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Model FLOPs of a training step: two per multiply-add; of attention its two matrix products count."""

    forward: int
    backward: int
    """Twice those of the forward pass."""
    recomputed: int
    """The forward pass of blocks with activation checkpointing, repeated in the backward pass."""

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank at the peak of a training step, by use."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    """Gradients that exist at the peak; they appear as activations are freed."""
    moments: int
    """AdamW's two moments."""
    average: int
    """Moving averages of the weights."""
    buckets: int
    """DDP's copy of the gradients."""
    gathered: int
    """FSDP's unsharded weights and gradients of the current blocks."""
    activations: int
    """Tensors saved by the forward pass for the backward pass, including the batch."""
    temporary: int
    """All other tensors, such as intermediate results."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def parameters(run: Run) -> dict[str, int]:
    """Numbers of trainable parameters, by submodule of the model."""
    with FakeTensorMode():
        named = _model(run).named_parameters()
    count = Counter[str]()
    for name, parameter in named:
        count[name.partition(".")[0]] += parameter.numel()
    return dict(count)


def flops(run: Run) -> Flops:
    """Model FLOPs of one training step, over all micro-batches and ranks.

    They are counted for one example and multiplied. Norms, activations and the optimizer are left out.
    """
    one = replace(run, train=replace(run.train, batch=1, accumulate=1, precision="fp32"))
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = _model(run)
        _loss(one, model, _batch(one))
    counts = counter.get_flop_counts()
    again = sum(
        sum(counts[f"{type(model).__name__}.{name}"].values())
        for name in checkpointed_blocks(model, run.train.activation_checkpointing)
    )
    forward = counter.get_total_flops()
    return Flops(
        forward=run.train.batch * forward, backward=2 * run.train.batch * forward, recomputed=run.train.batch * again
    )


def sampling_flops(run: Run, evaluations: Mapping[str, int]) -> int:
    """Model FLOPs of sampling one image with these numbers of evaluations, by branch as `generate` counts them.

    They are measured by two sampling steps per scale: the second is one evaluation of the velocity, and what the first
    costs above that is FlowAR's transformer. A null branch costs the same as the conditional branch.
    """
    scales = [f" {name}" for name in method_of(run.method).scales(run.method)] or [""]
    times, counts = torch.linspace(0, 1, 3), [0]
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        method_of(run.method).sample(
            _model(run).eval(),
            torch.zeros(1, dtype=torch.long) if run.method.classes else None,
            noise=torch.empty(1, *run.method.noise_shape),
            times=[times] * len(scales) if scales[0] else times,
            on_step=lambda step: counts.append(counter.get_total_flops()),
        )
    cost = dict[str, int]()
    for scale, before, first, second in zip(scales, counts[:-1:2], counts[1::2], counts[2::2], strict=True):
        velocity = second - first
        cost |= {f"conditional{scale}": velocity, f"null{scale}": velocity}
        cost[f"transformer{scale}"] = first - before - velocity
    return sum(count * cost[name] for name, count in evaluations.items())


def batch_shape(run: Run, size: int | None = None) -> tuple[int, ...]:
    """The shape of a batch of latents with `size` examples, by default of a whole training step."""
    method = run.method
    if run.train.distillation.steps:
        return size or run.train.batch, run.train.distillation.steps + 1, *method.noise_shape
    sequence = (method.images_per_sequence,) if method.images_per_sequence else ()
    return size or run.train.batch, *sequence, method.channels, *method.size


def memory(run: Run, *, world: int = 1, parallel: Parallel = "none", device: Device = "cpu") -> Memory:
    """The memory of a training step on one of `world` ranks, which share the run's batch.

    Attention with dropout is a fused kernel on "cuda", but not on a CPU. Not included: data, autoencoder, saving of
    checkpoints, PyTorch itself, and fragmentation. Raises ValueError for several ranks with `parallel` none.
    """
    _check(world, parallel)
    model, moments = _moments(run, max(1, -(-run.train.batch // (run.train.accumulate * world))), device)
    return _fullest(run, model, moments, world, parallel)


def largest_batch(
    run: Run,
    capacity: float | int,
    *,
    world: int = 1,
    parallel: Parallel = "none",
    device: Device = "cpu",
) -> int:
    """The largest micro-batch whose step needs at most `capacity` bytes per rank; 0 if not even two examples fit.

    The options are those of `memory`; there is no gradient accumulation.
    """
    run = replace(run, train=replace(run.train, batch=world, accumulate=1))
    _check(world, parallel)
    model, two = _moments(run, 2, device)
    _, three = _moments(run, 3, device)
    each = three - two  # every storage grows linearly with the number of examples, or not at all

    def fits(batch: int) -> bool:
        return _fullest(run, model, two + (batch - 2) * each, world, parallel).total <= capacity

    low, high = 0, 2  # `low` fits, `high` does not
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1 and low:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def tokens_per_image(run: Run) -> int:
    """Tokens of one image, over all scales."""
    return method_of(run.method).tokens(run.method)


def _check(world: int, parallel: Parallel) -> None:
    """Raises ValueError for an invalid number of ranks or way to share."""
    if parallel not in ("none", "ddp", "fsdp"):
        raise ValueError(f"parallel must be none, ddp or fsdp, got {parallel!r}")
    if world < 1:
        raise ValueError(f"world must be at least 1, got {world}")
    if parallel == "none" and world > 1:
        raise ValueError(f"{world} ranks need parallel ddp or fsdp, got none")


def _model(run: Run) -> nn.Module:
    return method_of(run.method).Model(run.method).train()


def _batch(run: Run, size: int | None = None) -> MicroBatch:
    """Latents, labels and draws of `size` examples, by default of a whole step."""
    method, latents = run.method, torch.empty(batch_shape(run, size))
    labels = torch.zeros(len(latents), dtype=torch.long) if method.classes else None
    return MicroBatch(latents, labels, method_of(method).draws(method, latents.shape, device="cpu"))


def _loss(run: Run, model: nn.Module, batch: MicroBatch) -> Tensor:
    method = run.objective
    errors = errors_in(run.train.precision, method, model, batch)
    return loss_of(errors, torch.tensor(method.part_weights(run.method)))


def _moments(run: Run, micro: int, device: Device) -> tuple[nn.Module, Moments]:
    """The model, and the bytes of gradients, activations and other tensors during a step, at every allocation.

    Two micro-batches are run, as all later ones are like the second; clipping, AdamW and EMA need less memory.
    """
    kernel = _FusedAttention if device == "cuda" else nullcontext
    with FakeTensorMode():
        model = _model(run)
        for block in checkpointed_blocks(model, run.train.activation_checkpointing).values():
            _recompute(block, kernel)
        with Living(model) as living:
            for part in split(_batch(run, micro * run.train.accumulate), micro)[:2]:
                with kernel():
                    value = _loss(run, model, part)
                living.end_forward()
                value.backward()
            living.end(p.grad for p in model.parameters())
    return model, living.history()


def _fullest(run: Run, model: nn.Module, moments: Moments, world: int, parallel: Parallel) -> Memory:
    """The peak of these moments, with the memory that is held all the time."""
    shards = world if parallel == "fsdp" else 1
    moments = np.stack([-(-moments[:, 0] // shards), moments[:, 1], moments[:, 2]], axis=1)
    gradients, activations, temporary = map(int, moments[moments.sum(axis=1).argmax()])
    tables, trained = sum(b.nbytes for b in model.buffers()), sum(p.nbytes for p in model.parameters())
    share = -(-trained // shards)
    return Memory(
        weights=share + tables,
        gradients=gradients,
        moments=2 * share,
        average=0 if run.train.ema_device == "cpu" else (1 + len(run.train.ema_decays + run.train.ema_lengths)) * share,
        buckets=trained if parallel == "ddp" else 0,
        gathered=_gathered(model) if parallel == "fsdp" else 0,
        activations=activations,
        temporary=temporary,
    )


def _recompute(block: nn.Module, kernel: Callable[[], Any]) -> None:
    """Switches activation checkpointing of a block on."""
    forward = block.forward

    def again(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        with kernel():
            return forward(*args, **named)

    # fake tensors draw no random numbers, so there is no state to preserve
    block.forward = partial(checkpoint, again, use_reentrant=False, preserve_rng_state=False)


def _gathered(model: nn.Module) -> int:
    """Bytes that FSDP gathers: weights outside blocks and of two blocks, and the gradients of one block."""
    sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks(model).values()]
    rest = sum(p.nbytes for p in model.parameters()) - sum(sizes)
    return rest + 3 * max(sizes, default=0)


class _FusedAttention(TorchFunctionMode):
    """Attention with dropout as on a GPU: a fused kernel that stores no attention matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)
