"""The training loop: batches of (seed, step) in, checkpoints and a log out; started again, it goes on where it was."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fluvial.checks import at_least, choices
from fluvial.progress import Bar
from fluvial.randomness import address, generator
from fluvial.train import checkpoint, ema, power_ema
from fluvial.train.distributed import ALONE, Parallel, World, blocks, parallelise, recompute, together_at_last
from fluvial.train.health import Health, first_not_finite, gradient_norms, stop_requests, update_sizes
from fluvial.train.log import Log, LogTo
from fluvial.train.optim import OptimConfig, adamw, clip_gradients, learning_rate

ORDERS = 3  # of the data that are tried when steps are not finite


class Stopped(Exception):
    """Training was asked to stop, and did after a checkpoint."""

    def __init__(self, step: int, signal: str) -> None:
        super().__init__(f"stopped by {signal} after step {step}, with a checkpoint; the same command goes on from it")
        self.step = step


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
    """Compile each block with torch.compile: a minute at the start, faster steps after."""
    recompute: int = 0
    """Recompute every k-th block in the backward pass, to save memory: 1 for all, 0 for none."""
    parallel: Parallel = "auto"
    """Under torchrun: ddp keeps all on every rank, fsdp shards weights, gradients, optimizer and average inside a node
    and copies them over nodes; auto takes ddp where the training state fits in half of the memory."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, each step."""
    ema_decays: tuple[float, ...] = ()
    """Further averages, kept in the checkpoints beside the first."""
    ema_lengths: tuple[float, ...] = ()
    """Power-function averages whose snapshots go to RUN/ema, so that `fluvial ema` makes one of any length: 0.05 0.1
    are EDM2's. The length is the spread of the average over the steps so far, as a share of them."""
    ema_every: int = 0
    """Steps between such snapshots; a 32nd of all steps by default."""
    ema_device: Literal["", "cpu"] = ""
    """Where the averages live: with the weights, or in host memory, which is slower."""
    patience: int = 10
    """Steps that are not finite in a row, each of them skipped, before training goes back to the last checkpoint."""
    log_every: int = 100
    """Steps between lines of the log."""
    blocks_every: int = 1000
    """Steps between gradient norms and update sizes of every block in the log; 0 for never."""
    log_to: tuple[LogTo, ...] = ()
    """Where the log goes besides log.jsonl: tensorboard, wandb, trackio."""
    save_every: int = 10_000
    """Steps between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_every: int = 0
    """Checkpoints of steps that this divides stay too; 0 for none."""
    eval_every: int = 10_000
    """Steps between held-out losses; 0 for never."""
    score_every: int = 0
    """Steps between scores of samples against held-out images; 0 for never."""
    score_count: int = 500
    """Samples of such a score."""
    score_extractor: str = "pixels"
    """The features of such a score: pixels, inception, efficientnet-lite0, dinov2, clip."""
    sample_every: int = 10_000
    """Steps between sample grids; 0 for never."""

    def __post_init__(self) -> None:
        choices(self)
        at_least(1, self, "steps", "batch", "accumulate", "log_every", "save_every", "keep", "patience")
        at_least(0, self, "eval_every", "sample_every", "score_every", "blocks_every", "keep_every", "recompute")
        at_least(2, self, "score_count")
        at_least(0, self, "ema_every")
        power_ema.check_lengths(self.ema_lengths)
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be split evenly into accumulate {self.accumulate}")
        if not all(0 <= decay < 1 for decay in (self.ema_decay, *self.ema_decays)):
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay} {self.ema_decays}")

    @property
    def snapshot_every(self) -> int:
        return self.ema_every or max(1, self.steps // 32)


def train(
    model: nn.Module,
    *,
    loss: Callable[..., Tensor],
    draws: Callable[..., dict[str, Tensor]],
    batches: Callable[[int], Callable[[int], tuple[Tensor, Tensor | None]]],
    config: TrainConfig,
    optim: OptimConfig,
    seed: int,
    run: Path,
    replica: Callable[[], nn.Module],
    world: World = ALONE,
    held_out: Callable[[nn.Module], dict[str, Any]] | None = None,
    preview: Callable[[nn.Module, Path], None] | None = None,
    score: Callable[[nn.Module], dict[str, float]] | None = None,
) -> nn.Module:
    """Trains the model in place, on all ranks of the world, and returns its moving average.

    `batches(order)(step)` gives this rank's latents and labels, `draws(shape, generator=, device=)` what chance decides
    for the whole batch, and `loss(model, latents, labels, **draws)` the scalar to minimise. `held_out(ema)` and
    `score(ema)` are logged and `preview(ema, path)` draws a picture, every so many steps; `replica` makes an empty
    model for them. The folder `run` receives log.jsonl, checkpoints/ and samples/; if it has a checkpoint, training
    goes on from there and ends with the same weights as if it had never stopped.

    Raises Stopped after SIGTERM or SIGINT, with a checkpoint written, and RuntimeError if steps are not finite and
    going back to a checkpoint, with the data in another order, does not help.
    """
    bare, device = model, next(model.parameters()).device
    if config.batch < world.size * config.accumulate:
        raise ValueError(
            f"a batch of {config.batch} is too small for {world.size} ranks with {config.accumulate} micro-batches each"
        )
    recompute(bare, config.recompute)
    for block in blocks(bare).values() if config.compile else ():
        block.compile()
    model = parallelise(bare, config.parallel, world)
    parameters, optimizer = list(bare.parameters()), adamw(bare, optim)
    kept = ("ema", *map(ema.name_of, config.ema_decays), *map(ema.name_of_length, config.ema_lengths))
    averages = ema.start(bare, kept, config.ema_device or None)
    at = _resume(run, bare, averages, optimizer, world)
    saver = checkpoint.Saver(run, keep=config.keep, keep_every=config.keep_every, world=world)
    log = Log(run, config.log_to, last_step=at.step) if world.first else None
    health, meter = Health(device), _Meter(device, world)
    batch = batches(at.order)
    model.train()

    def averaged() -> nn.Module:
        return ema.module(averages["ema"], bare, replica)

    def save() -> None:
        parts = {"model": dict(bare.named_parameters()), "optimizer": checkpoint.optimizer_tensors(bare, optimizer)}
        parts |= {name: ema.tensors(average, bare) for name, average in averages.items()}
        saver.save(at.step, parts, {"seconds": at.seconds + meter.elapsed(), "order": at.order})

    with (
        Bar(config.steps, at.step, what="step", every_call=True, quiet=not world.first) as bar,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _products(config),
        stop_requests() as stop,
    ):
        while at.step < config.steps:
            rate = learning_rate(optim, at.step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = _micro_batches(batch, draws, config, seed, at, device, world)
            value = _backward(model, loss, parts, config, world)
            looks = config.blocks_every and (at.step + 1) % config.blocks_every == 0
            gradients = gradient_norms(blocks(bare)) if looks else {}
            norm = clip_gradients(parameters, optim)
            bad = health.take(optimizer, norm)
            optimizer.step()
            updates = update_sizes(blocks(bare), optimizer, rate, optim) if looks else {}
            optimizer.zero_grad(set_to_none=True)
            for name, average in averages.items():
                ema.update(average, bare, ema.decay_of(name, config.ema_decay, at.step + 1))
            at.step += 1
            meter.add(value, bad, images=config.batch * math.prod(parts[0]["latents"].shape[1:-3]))
            last = at.step == config.steps

            if at.step % config.patience == 0 and int(health.row) >= config.patience:
                saver.wait()
                culprit = first_not_finite(bare, lambda parts=parts: _loss(bare, loss, parts[0], config), world)
                at = _roll_back(run, bare, averages, optimizer, world, at, culprit, log)
                batch, health = batches(at.order), Health(device)
                meter.restart()
                continue
            if at.step % config.log_every == 0 or last:
                mean, speed = meter.read()
                if log is not None:
                    line = {"loss": mean, "lr": rate, "grad_norm": float(norm), "images_per_second": speed}
                    log.write(step=at.step, **line)
                    if skipped := int(health.total):
                        log.write(step=at.step, skipped=skipped)
                bar.show(at.step, f"loss {mean:.4f}  {speed:,.0f} images/s")
            if looks and log is not None:
                each = {name: {"grad_norm": gradients[name], "update": updates[name]} for name in gradients}
                log.write(step=at.step, blocks=each)
            stopped = world.agree(bool(stop))
            if at.step % config.save_every == 0 or last or stopped:
                save()
            if config.ema_lengths and (at.step % config.snapshot_every == 0 or last):
                _snapshot(run, at.step, bare, averages, config, world)
            _look(at.step, last, config, averaged, held_out, preview, score, run, log, world)
            if stopped:
                saver.wait()
                raise Stopped(at.step, stop[0] if stop else "a signal to another rank")
            meter.leave_out()
        saver.wait()
        return averaged()


class _At:
    """How far a run is: its step, the seconds before this process, and how often the data order was changed."""

    def __init__(self, step: int = 0, seconds: float = 0.0, order: int = 0) -> None:
        self.step, self.seconds, self.order = step, seconds, order


class _Meter:
    """The mean loss and the speed since the last line of the log, all ranks together."""

    def __init__(self, device: torch.device, world: World) -> None:
        self.world, self.begun = world, time.perf_counter()
        self.loss = torch.zeros((), device=device)
        self.good = torch.zeros((), device=device)
        self.restart()

    def restart(self) -> None:
        self.loss.zero_()
        self.good.zero_()
        self.images, self.mark = 0, time.perf_counter()

    def add(self, value: Tensor, bad: Tensor, images: int) -> None:
        """A step's loss on this rank, which counts unless the step was skipped."""
        self.loss += torch.where(bad, 0.0, value)
        self.good += ~bad
        self.images += images

    def read(self) -> tuple[float, float]:
        """Mean loss and images/s; begins anew."""
        if self.world.size > 1:
            dist.all_reduce(self.loss)
            self.loss /= self.world.size
        good = float(self.good)
        found = float(self.loss) / good if good else math.nan, self.images / (time.perf_counter() - self.mark)
        self.restart()
        return found

    def leave_out(self) -> None:
        """What was done since a line was written, such as evaluation and pictures, does not count as training."""
        if not self.images:
            self.mark = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the start of this process's training."""
        return time.perf_counter() - self.begun


def _micro_batches(
    batch: Callable[[int], tuple[Tensor, Tensor | None]],
    draws: Callable[..., dict[str, Tensor]],
    config: TrainConfig,
    seed: int,
    at: _At,
    device: torch.device,
    world: World,
) -> list[dict[str, Any]]:
    """This rank's part of the step's batch and of what chance decides for it, which no number of ranks changes."""
    latents, labels = (None if a is None else a.to(device) for a in batch(at.step))
    assert latents is not None
    order = (at.order,) if at.order else ()
    chance = draws(
        (config.batch, *latents.shape[1:]),
        generator=generator(seed, "train", at.step, *order, device=device),
        device=device,
    )
    rows = world.share(config.batch)
    # dropout knows no generator of its own; its draws are the rank's, so they depend on the number of ranks
    torch.manual_seed(address(seed, "dropout", at.step, *((world.rank,) if world.rank else ())))
    mine = {"latents": latents, "labels": labels, **{name: value[rows] for name, value in chance.items()}}
    parts = config.accumulate  # as many on every rank, of one row more or less, like the ranks' own
    return [_rows(mine, World(i, parts).share(len(latents))) for i in range(parts)]


def _backward(
    model: nn.Module, loss: Callable[..., Tensor], parts: list[dict[str, Any]], config: TrainConfig, world: World
) -> Tensor:
    """The gradient of the mean loss over the whole batch; returns that of this rank's part, times the ranks.

    Ranks average their gradients, whence the factor; parts count by their rows, so none has to be as large as another.
    """
    value = torch.zeros((), device=parts[0]["latents"].device)
    for i, part in enumerate(parts):
        share = len(part["latents"]) / config.batch * world.size
        with together_at_last(model, i == len(parts) - 1):
            each = _loss(model, loss, part, config) * share
            each.backward()
        value += each.detach()
    return value


def _loss(model: nn.Module, loss: Callable[..., Tensor], part: dict[str, Any], config: TrainConfig) -> Tensor:
    bf16 = config.precision == "bf16"
    with torch.autocast(part["latents"].device.type, torch.bfloat16) if bf16 else nullcontext():
        return loss(model, **part)


def _snapshot(run: Path, step: int, model: nn.Module, averages: ema.Tracks, config: TrainConfig, world: World) -> None:
    """Stores the power-function averages for `fluvial ema`."""
    tracks = {
        length: list(ema.tensors(averages[ema.name_of_length(length)], model).values()) for length in config.ema_lengths
    }
    names = [name for name, _ in model.named_parameters()]
    power_ema.save(run / "ema", step, names, tracks, writes=world.first)


def _look(
    step: int,
    last: bool,
    config: TrainConfig,
    averaged: Callable[[], nn.Module],
    held_out: Callable[[nn.Module], dict[str, Any]] | None,
    preview: Callable[[nn.Module, Path], None] | None,
    score: Callable[[nn.Module], dict[str, float]] | None,
    run: Path,
    log: Log | None,
    world: World,
) -> None:
    """Held-out loss, score and picture, where they are due; the first rank's work, with weights of all."""
    due = {
        name: every > 0 and (step % every == 0 or last) and wanted is not None
        for name, every, wanted in (
            ("held_out", config.eval_every, held_out),
            ("score", config.score_every, score),
            ("preview", config.sample_every, preview),
        )
    }
    if not any(due.values()):
        return
    average = averaged()
    if world.first and log is not None:
        if due["held_out"] and held_out is not None:
            log.write(step=step, **held_out(average))
        if due["score"] and score is not None:
            log.write(step=step, score=score(average))
        if due["preview"] and preview is not None:
            preview(average, run / "samples" / f"step-{step:08d}.png")
    world.barrier()


def _resume(run: Path, model: nn.Module, averages: ema.Tracks, optimizer: torch.optim.Optimizer, world: World) -> _At:
    """Fills everything from the newest whole checkpoint; says where that was, or at zero."""
    folder = world.broadcast(checkpoint.newest_whole(run) if world.first else None)
    if folder is None:
        return _At()
    meta = checkpoint.load_meta(folder)
    names = [name for name, _ in model.named_parameters()]
    there = checkpoint.shapes(folder)
    if meta.get("weights_only"):
        if world.first:
            print(f"from the weights of step {meta['step']} in {folder}, with a new optimizer", flush=True)
        optimizer.state.clear()
        weights = {f"ema/{name}": p.detach() for name, p in model.named_parameters()}
        checkpoint.fill(weights, folder, world)
        for average in averages.values():
            ema.fill(average, list(weights.values()))
        return _At(meta["step"], meta["seconds"])
    fields = [name.removeprefix("optimizer/") for name in there if name.startswith("optimizer/")]
    state = checkpoint.begin_optimizer(model, optimizer, fields)
    wanted = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    wanted |= {f"optimizer/{name}": value for name, value in state.items()}
    for part, average in averages.items():
        wanted |= {f"{part}/{name}": value for name, value in ema.tensors(average, model).items()}
    checkpoint.fill(wanted, folder, world)
    for part, average in averages.items():  # those that live elsewhere, or are this rank's part of a sharded one
        ema.fill(average, [wanted[f"{part}/{name}"] for name in names])
    return _At(meta["step"], meta["seconds"], meta.get("order", 0))


def _roll_back(
    run: Path,
    model: nn.Module,
    averages: ema.Tracks,
    optimizer: torch.optim.Optimizer,
    world: World,
    at: _At,
    culprit: str,
    log: Log | None,
) -> _At:
    """Back to the last checkpoint, to go on from it with the data in another order."""
    found = f"steps up to {at.step} were not finite in a row, and {culprit} was the first to be so"
    back = _resume(run, model, averages, optimizer, world) if checkpoint.newest(run) else None
    order = at.order + 1
    if back is None or order > ORDERS:
        raise RuntimeError(
            f"{found}; {f'{ORDERS} other orders of the data did not help' if back else 'there is no checkpoint yet'}. "
            f"Lower optim.lr, clip the gradient (optim.clip norm), or train in fp32"
        )
    if log is not None:
        log.write(step=at.step, rolled_back_to=back.step, first_non_finite=culprit)
        print(f"{found}: back to step {back.step}, with the data in another order", flush=True)
    return _At(back.step, at.seconds, order)


@contextmanager
def _products(config: TrainConfig) -> Iterator[None]:
    """Sets the precision of float32 matrix products on a GPU, and puts back what was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def split(tensors: Mapping[str, Tensor | None], size: int) -> list[dict[str, Any]]:
    """Micro-batches of this size along the first axis, the last perhaps smaller; None stays None."""
    count = len(next(value for value in tensors.values() if value is not None))
    return [_rows(tensors, slice(i, i + size)) for i in range(0, count, size)]


def _rows(tensors: Mapping[str, Tensor | None], rows: slice) -> dict[str, Any]:
    return {name: None if value is None else value[rows] for name, value in tensors.items()}
