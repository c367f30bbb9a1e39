"""What a run needs before it is started: parameters, FLOPs and memory.

Nothing here is a formula of the models. The run's own model and loss are executed on tensors that have shapes but no
memory (FakeTensorMode), while products and living tensors are counted.
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
    """Model FLOPs of one training step, two for a multiply and an add; attention counts as its two products."""

    forward: int
    backward: int
    """Twice the forward's."""
    recomputed: int
    """The forward of the blocks that are computed again in the backward pass."""

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at the moment of a training step that holds the most."""

    weights: int
    """Parameters and tables."""
    gradients: int
    """Those that there are at that moment: they come as activations go."""
    moments: int
    """AdamW's two moments."""
    average: int
    """Moving averages of the weights."""
    buckets: int
    """DDP's copy of the gradients."""
    gathered: int
    """FSDP's whole weights and gradients of the blocks at work."""
    activations: int
    """What the forward pass left for the backward pass, the batch included."""
    temporary: int
    """Everything else, such as results on their way."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def parameters(run: Run) -> dict[str, int]:
    """Numbers of trainable parameters by part of the model."""
    with FakeTensorMode():
        named = _model(run).named_parameters()
    count = Counter[str]()
    for name, parameter in named:
        count[name.partition(".")[0]] += parameter.numel()
    return dict(count)


def flops(run: Run) -> Flops:
    """The model FLOPs of one training step of all micro-batches and ranks.

    One example is counted, as all cost the same. Norms, activations and the optimizer are left out.
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
    """The model FLOPs of one image that took these evaluations, which are named as `generate` names them.

    The run's own sampler takes two steps, at each scale: the second is one evaluation of the velocity, and what the
    first costs above it is FlowAR's transformer with the cache so far. A null branch costs what the conditional does.
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
    """The shape of the latents of `size` examples, those of a whole training step by default."""
    method = run.method
    sequence = (method.images_per_sequence,) if method.images_per_sequence else ()
    return size or run.train.batch, *sequence, method.channels, *method.size


def memory(run: Run, *, world: int = 1, parallel: Parallel = "none", device: Device = "cpu") -> Memory:
    """The memory of a training step on one of `world` ranks, which share the run's batch.

    On "cuda" attention is a fused kernel also where it has dropout; on a CPU it then is not.

    Left out: the data, the autoencoder, the saving of checkpoints, what PyTorch itself takes, and the room that
    allocators waste. Raises ValueError for ranks without a way to share.
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
    """The most examples of one micro-batch whose step needs at most `capacity` bytes a rank; 0 if not even two fit.

    The options are those of `memory`; nothing is accumulated.
    """
    run = replace(run, train=replace(run.train, batch=world, accumulate=1))
    _check(world, parallel)
    model, two = _moments(run, 2, device)
    _, three = _moments(run, 3, device)
    each = three - two  # every storage grows by the same bytes for every further example, or by none

    def fits(batch: int) -> bool:
        return _fullest(run, model, two + (batch - 2) * each, world, parallel).total <= capacity

    low, high = 0, 2  # the first fits, the second does not
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1 and low:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def tokens_per_image(run: Run) -> int:
    """Tokens of one image in the network's sequence, of all scales together."""
    return method_of(run.method).tokens(run.method)


def _check(world: int, parallel: Parallel) -> None:
    if parallel not in ("none", "ddp", "fsdp"):
        raise ValueError(f"parallel must be none, ddp or fsdp, got {parallel!r}")
    if world < 1:
        raise ValueError(f"world must be at least 1, got {world}")
    if parallel == "none" and world > 1:
        raise ValueError(f"{world} ranks need parallel ddp or fsdp, got none")


def _model(run: Run) -> nn.Module:
    return method_of(run.method).Model(run.method).train()


def _batch(run: Run, size: int | None = None) -> MicroBatch:
    """Latents, labels and draws of `size` examples, those of a whole step by default."""
    method, latents = run.method, torch.empty(batch_shape(run, size))
    labels = torch.zeros(len(latents), dtype=torch.long) if method.classes else None
    return MicroBatch(latents, labels, method_of(method).draws(method, latents.shape, device="cpu"))


def _loss(run: Run, model: nn.Module, batch: MicroBatch) -> Tensor:
    method = method_of(run.method)
    errors = errors_in(run.train.precision, method, model, batch)
    return loss_of(errors, torch.tensor(method.part_weights(run.method)))


def _moments(run: Run, micro: int, device: Device) -> tuple[nn.Module, Moments]:
    """The model, and what its gradients, activations and the rest hold in a step, whenever something is added.

    From the second micro-batch on all are alike; clipping, AdamW and the average work in place and need less.
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
    """The moment that holds the most, and what is held all the time."""
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
    forward = block.forward

    def again(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        with kernel():
            return forward(*args, **named)

    # no memory, so no random numbers whose state would have to be kept
    block.forward = partial(checkpoint, again, use_reentrant=False, preserve_rng_state=False)


def _gathered(model: nn.Module) -> int:
    """Whole weights of what is in no block, of the block at work and the next, and one block's whole gradients."""
    sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks(model).values()]
    rest = sum(p.nbytes for p in model.parameters()) - sum(sizes)
    return rest + 3 * max(sizes, default=0)


class _FusedAttention(TorchFunctionMode):
    """Attention with dropout as a GPU does it: inside the kernel, which keeps no matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)
