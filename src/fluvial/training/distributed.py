"""One process or many, on PyTorch's own engine: torchrun's environment, DDP, FSDP2, and a rank's share of a batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined] - public, and not in its __all__
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")
Parallel = Literal["auto", "ddp", "fsdp"]
STATE = 20  # bytes a parameter in training: weight, gradient, two moments and an average, in float32


class World(NamedTuple):
    rank: int = 0
    size: int = 1
    local_size: int = 1
    control: Any = None
    """A group of its own for what hosts tell one another: never behind the device's work."""
    saving: Any = None
    """A group for checkpoints, which are written beside training."""

    @property
    def first(self) -> bool:
        """True for the main process, which prints and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's part of `count` rows: parts differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def agree(self, flag: bool) -> bool:
        """True if any rank's flag is set."""
        if self.size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def broadcast(self, value: Any) -> Any:  # noqa: ANN401
        """The first rank's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """The first rank does it before the others."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.control)


ALONE = World()


def ranks() -> tuple[int, int]:
    """RANK and WORLD_SIZE, as torchrun sets them; 0 and 1 if neither is set. Raises ValueError for anything else."""
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    try:
        rank, size = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size or (size > 1 and "RANK" not in given):
        got = " and ".join(f"{name}={given.get(name, ' (not set)')}" for name in ("RANK", "WORLD_SIZE"))
        raise ValueError(
            f"the environment has {got}; expected whole numbers, 0 <= RANK < WORLD_SIZE, as torchrun sets them, or "
            f"neither of the two"
        )
    return rank, size


@contextmanager
def world(device: torch.device, *, timeout: float = 600.0) -> Iterator[tuple[World, torch.device]]:
    """The processes that torchrun has started, joined, and this one's device; one process alone without torchrun.

    Raises RuntimeError naming the ranks that have not come after `timeout` seconds, and ValueError as `ranks` does.
    """
    rank, size = ranks()
    if size == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    store, *_ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout)))
    # the store may be that of workers which were killed, with their addresses
    store = PrefixStore(f"fluvial/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    _meet(store, rank, size, timeout)
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=wait)
    try:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        control, saving = (dist.new_group(backend="gloo", timeout=wait) for _ in range(2))
        yield World(rank, size, local_size, control, saving), device
    finally:
        dist.destroy_process_group()


def _meet(store: Store, rank: int, size: int, timeout: float) -> None:
    """Waits for all ranks by name."""
    names = [f"rank {other}" for other in range(size)]
    store.set(names[rank], "here")
    try:
        store.wait(names, timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = [name for name in names if not store.check([name])]
        raise RuntimeError(
            f"{', '.join(missing)} of {size} did not start within {timeout:.0f} s; look at its log, or at its machine"
        ) from error


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks by name: what is compiled, checkpointed and sharded one by one.

    They are the members of an nn.ModuleList or nn.Sequential that have layers of their own; where a model has none, its
    parts that have parameters.
    """
    found = dict[str, nn.Module]()
    for name, stack in model.named_modules():
        inside = any(name == block or name.startswith(f"{block}.") for block in found)
        if isinstance(stack, (nn.ModuleList, nn.Sequential)) and not inside:
            found |= {f"{name}.{i}": block for i, block in enumerate(stack) if _is_block(block)}
    return found or {name: part for name, part in model.named_children() if any(True for _ in part.parameters())}


def _is_block(module: nn.Module) -> bool:
    """True for a module that has layers and is called itself, as lists of layers are not."""
    return any(True for _ in module.children()) and not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def checkpointed_blocks(model: nn.Module, every: int) -> dict[str, nn.Module]:
    """Every k-th block, by name; none for 0."""
    return {name: block for i, (name, block) in enumerate(blocks(model).items()) if every and i % every == 0}


def checkpoint_activations(model: nn.Module, every: int) -> None:
    """Applies activation checkpointing to every k-th block, which recomputes it in the backward pass; 0 for none."""
    for block in checkpointed_blocks(model, every).values():
        block.forward = partial(_checkpointed, block, block.forward)  # type: ignore[method-assign]


def _checkpointed(block: nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *arguments, use_reentrant=False, **named)
    return forward(*arguments, **named)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without DDP, which counts the passes that have a gradient."""
    return getattr(model, "module", model)


def parallelise(model: nn.Module, parallel: Parallel, world: World) -> nn.Module:
    """The model as it is trained on all ranks. FSDP2 shards inside a node and copies over nodes."""
    if world.size == 1:
        return model
    device = next(model.parameters()).device
    if parallel == "auto":
        parallel = "ddp" if _fits(model, device) else "fsdp"
    if parallel == "ddp":
        devices = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)  # all are fixed tables
        wrapped.config = model.config  # which a method's errors look at
        return wrapped
    nodes = world.size // world.local_size
    shape = (world.size,) if nodes == 1 else (nodes, world.local_size)
    names = ("shard",) if nodes == 1 else ("replicate", "shard")
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    for block in blocks(model).values():
        fully_shard(block, mesh=mesh)
        for method in getattr(block, "also_called", ()):  # besides forward
            register_fsdp_forward_method(block, method)
    return cast(nn.Module, fully_shard(model, mesh=mesh))


@contextmanager
def together_at_last(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients of micro-batches stay on their rank until the last is there."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    else:
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            yield


def _fits(model: nn.Module, device: torch.device) -> bool:
    """True if the training state takes less than half of the device's memory."""
    if device.type != "cuda":
        return True
    state = STATE * sum(p.numel() for p in model.parameters())
    return state < torch.cuda.get_device_properties(device).total_memory / 2


def whole(p: Tensor) -> Tensor:
    """A sharded tensor, gathered from all ranks; any other as it is."""
    return p.full_tensor() if isinstance(p, DTensor) else p
