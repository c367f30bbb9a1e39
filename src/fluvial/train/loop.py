"""The training loop: batches of (seed, step) in, checkpoints and a log out; started again, it goes on where it was."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fluvial.checks import at_least, choices
from fluvial.progress import Bar
from fluvial.randomness import address, generator
from fluvial.train import checkpoint, ema
from fluvial.train.optim import OptimConfig, adamw, clip_gradients, learning_rate


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 400_000
    """Optimizer steps."""
    batch: int = 256
    """Examples a step over all micro-batches: images, or for ARFlow sequences of images."""
    accumulate: int = 1
    """Micro-batches a step is split into, to save memory; the result is the same to rounding."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """tf32 allows it in matrix products on a GPU (released ARFlow and FlowAR); bf16 runs them under autocast, while
    weights, residual streams, time embeddings and ARFlow's history stay float32."""
    compile: bool = False
    """Compile the model with torch.compile: a minute at the start, faster steps after."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, each step."""
    log_every: int = 100
    """Steps between lines of the log."""
    save_every: int = 10_000
    """Steps between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""
    eval_every: int = 10_000
    """Steps between held-out losses; 0 for never."""
    sample_every: int = 10_000
    """Steps between sample grids; 0 for never."""

    def __post_init__(self) -> None:
        choices(self)
        at_least(1, self, "steps", "batch", "accumulate", "log_every", "save_every", "keep")
        at_least(0, self, "eval_every", "sample_every")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be split evenly into accumulate {self.accumulate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


def train(
    model: nn.Module,
    *,
    loss: Callable[..., Tensor],
    draws: Callable[..., dict[str, Tensor]],
    batch: Callable[[int], tuple[Tensor, Tensor | None]],
    config: TrainConfig,
    optim: OptimConfig,
    seed: int,
    run: Path,
    held_out: Callable[[nn.Module], float] | None = None,
    preview: Callable[[nn.Module, Path], None] | None = None,
) -> nn.Module:
    """Trains the model in place and returns its moving average.

    `batch(step)` gives latents and labels, `draws(shape, generator=, device=)` what chance decides for them, and
    `loss(model, latents, labels, **draws)` the scalar to minimise. `held_out(ema)` is logged and `preview(ema, path)`
    draws a picture, every so many steps. The folder `run` receives log.jsonl, checkpoints/ and samples/; if it has a
    checkpoint, training goes on from there and ends with the same weights as if it had never stopped.
    """
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(model, optim)
    average = ema.start(model)
    step, seconds = _resume(run, model, average, optimizer)
    if config.compile:
        model.compile()
    autocast = torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    log = _Log(run / "log.jsonl", last_step=step)
    model.train()
    started = mark = time.perf_counter()
    loss_sum, since, images = torch.zeros((), device=device), 0, 0

    with (
        Bar(config.steps, step, what="step", every_call=True) as bar,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _products(config),
    ):
        while step < config.steps:
            rate = learning_rate(optim, step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            latents, labels = (None if a is None else a.to(device) for a in batch(step))
            assert latents is not None
            chance = draws(latents.shape, generator=generator(seed, "train", step, device=device), device=device)
            torch.manual_seed(address(seed, "dropout", step))  # dropout knows no generator of its own
            for micro in split({"latents": latents, "labels": labels, **chance}, config.batch // config.accumulate):
                with autocast:
                    value = loss(model, **micro) / config.accumulate
                value.backward()
                loss_sum += value.detach()
            norm = clip_gradients(parameters, optim)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(average, model, config.ema_decay)
            step, since = step + 1, since + 1
            images += math.prod(latents.shape[:-3])

            last = step == config.steps
            if step % config.log_every == 0 or last:
                mean, elapsed = float(loss_sum) / since, time.perf_counter() - mark
                _check_finite(step, run, mean, norm)
                speed = images / elapsed
                log.write(step=step, loss=mean, lr=rate, grad_norm=float(norm), images_per_second=speed)
                bar.show(step, f"loss {mean:.4f}  {speed:,.0f} images/s")
                loss_sum.zero_()
                since, images = 0, 0
            if held_out is not None and config.eval_every and (step % config.eval_every == 0 or last):
                log.write(step=step, held_out_loss=held_out(average))
            if step % config.save_every == 0 or last:
                _check_finite(step, run, float(loss_sum), norm)  # a bad checkpoint must not push out a good one
                parts = {
                    "model": model.state_dict(),
                    "ema": average.state_dict(),
                    "optimizer": checkpoint.optimizer_tensors(model, optimizer),
                }
                spent = seconds + time.perf_counter() - started
                checkpoint.save(run, step, parts, {"seconds": spent}, keep=config.keep)
            if preview is not None and config.sample_every and (step % config.sample_every == 0 or last):
                preview(average, run / "samples" / f"step-{step:08d}.png")
            if since == 0:
                mark = time.perf_counter()  # the next line's images/s leaves out evaluation, saving and pictures
    return average


@contextmanager
def _products(config: TrainConfig) -> Iterator[None]:
    """Sets the precision of float32 matrix products on a GPU, and puts back what was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check_finite(step: int, run: Path, loss: float, norm: Tensor) -> None:
    if not math.isfinite(loss) or not bool(torch.isfinite(norm)):
        raise RuntimeError(
            f"the loss is {loss} and the gradient's norm {float(norm)} at step {step}; the last good checkpoint is "
            f"{checkpoint.newest(run)}. Lower optim.lr, clip the gradient (optim.clip norm), or train in fp32"
        )


def _resume(run: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Fills everything from the newest checkpoint; returns its step and the seconds trained so far, or zeros."""
    folder = checkpoint.newest(run)
    if folder is None:
        return 0, 0.0
    meta = checkpoint.load_meta(folder)
    if meta.get("weights_only"):
        print(f"from the weights of step {meta['step']} in {folder}, with a new optimizer", flush=True)
        for module in (model, average):
            checkpoint.fill(module, checkpoint.load(folder, "ema"), folder)
        return meta["step"], meta["seconds"]
    checkpoint.fill(model, checkpoint.load(folder, "model"), folder)
    checkpoint.fill(average, checkpoint.load(folder, "ema"), folder)
    checkpoint.fill_optimizer(model, optimizer, checkpoint.load(folder, "optimizer"), folder)
    return meta["step"], meta["seconds"]


def split(tensors: Mapping[str, Tensor | None], size: int) -> list[dict[str, Any]]:
    """Micro-batches of this size along the first axis, the last perhaps smaller; None stays None."""
    count = len(next(value for value in tensors.values() if value is not None))
    starts = range(0, count, size)
    return [{k: None if v is None else v[i : i + size] for k, v in tensors.items()} for i in starts]


class _Log:
    """Lines of JSON, appended. Those after the step that training resumes from are dropped: they come again."""

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= last_step]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, path)

    def write(self, **values: Any) -> None:  # noqa: ANN401
        with self.path.open("a") as file:
            file.write(json.dumps({**values, "time": round(time.time(), 3)}) + "\n")


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut short by a crash
