"""Numbers that go wrong: steps that are not finite are skipped on the device, and the module that began it is found."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fluvial.training.distributed import ALONE, World, whole
from fluvial.training.optim import OptimConfig


class Health:
    """Counts steps whose gradient is not finite, on the device: nothing waits for it before `in_a_row` is read."""

    def __init__(self, device: torch.device) -> None:
        self.row = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros((), dtype=torch.int64, device=device)

    def take(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
        """Lets AdamW(fused=True) leave everything as it is if the norm is not finite; returns whether it does."""
        bad = ~torch.isfinite(norm)
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined] - what gradient scalers tell fused optimizers
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.row = (self.row + 1) * bad
        self.total += bad
        return bad


def first_not_finite(model: nn.Module, loss: Callable[[], Tensor], world: World = ALONE) -> str:
    """The module whose output, or whose gradient, is the first that is not finite when `loss` is computed.

    All ranks have to ask; the answer is that of the first that finds one.
    """
    found: list[str] = []

    def look(what: str, value: Any) -> None:  # noqa: ANN401
        if not found and not all(bool(torch.isfinite(t).all()) for t in _tensors(value)):
            found.append(what)

    def forward(name: str) -> Callable[..., None]:
        return lambda module, given, out: look(f"the output of {name}", out)

    def backward(name: str) -> Callable[..., None]:  # what a module makes of the gradient that comes to it
        return lambda module, passed_on, came: look(f"the gradient of {name}", passed_on)

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(forward(name or "the model")))
        handles.append(module.register_full_backward_hook(backward(name or "the model")))
    try:
        value = loss()
        if not found and not bool(torch.isfinite(value)):
            found.append("the loss itself")
        if not world.agree(bool(found)):
            value.backward()
            for name, p in model.named_parameters():
                look(f"the gradient of {name}", p.grad)
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return next((name for name in world.gather(found[0] if found else "") if name), "nothing that was found again")


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def check_finite_weights(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises RuntimeError naming the first of these tensors that is not finite, and how many are not.

    `what` is what they are, such as "the weights in runs/digits".
    """
    wrong = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        more = f", and {len(wrong) - 1} more of {len(tensors)}" if len(wrong) > 1 else ""
        raise RuntimeError(
            f"{what} are not finite: {wrong[0]}{more}. Go back to an earlier checkpoint, or train anew with a lower "
            f"optim.lr, the gradient clipped (optim.clip norm), or in fp32"
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if all are finite, of sharded ones this rank's part; waits for the device once."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in (tensor.detach() for tensor in tensors)]
    return bool(torch.stack([t.isfinite().all() for t in local]).all())


def gradient_norms(blocks: Mapping[str, nn.Module]) -> dict[str, float]:
    """The norm of each block's gradient."""
    return {
        name: float(whole(nn.utils.get_total_norm([p.grad for p in block.parameters() if p.grad is not None])))
        for name, block in blocks.items()
    }


@torch.no_grad()
def update_sizes(
    blocks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, rate: float, optim: OptimConfig
) -> dict[str, float]:
    """The norm of each block's last AdamW update over that of its weights."""
    sizes = {}
    for name, block in blocks.items():
        moved, weight = 0.0, 0.0
        for p in block.parameters():
            state = optimizer.state.get(p, {})
            if "exp_avg" in state:
                steps = float(state["step"])
                mean = state["exp_avg"] / (1 - optim.betas[0] ** steps)
                variance = state["exp_avg_sq"] / (1 - optim.betas[1] ** steps)
                decay = optim.weight_decay if p.ndim > 1 else 0.0
                moved += float(whole((rate * (mean / (variance.sqrt() + 1e-8) + decay * p)).square().sum()))
                weight += float(whole(p.square().sum()))
        sizes[name] = (moved / weight) ** 0.5 if weight else 0.0
    return sizes


@contextmanager
def stop_requests() -> Iterator[list[str]]:
    """A list that the names of SIGTERM and SIGINT are put in when they come; a second SIGINT interrupts at once."""
    import signal
    import threading

    names: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # only there can signals be received
        yield names
        return

    def note(number: int, frame: object) -> None:
        names.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield names
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
