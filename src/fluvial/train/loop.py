"""The training loop: batches of (seed, step) in, checkpoints and a log out; started again, it goes on where it was."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.precision import products
from fluvial.progress import Bar
from fluvial.train import checkpoint, ema, power_ema
from fluvial.train.config import TrainConfig
from fluvial.train.distributed import ALONE, World
from fluvial.train.health import Health, first_not_finite, stop_requests
from fluvial.train.log import Log, Meter
from fluvial.train.optim import OptimConfig
from fluvial.train.step import Batch, begin, loss_of, step

ORDERS = 3  # of the data that are tried when steps are not finite


class Stopped(Exception):
    """Training was asked to stop, and did after a checkpoint."""

    def __init__(self, step: int, signal: str) -> None:
        super().__init__(f"stopped by {signal} after step {step}, with a checkpoint; the same command goes on from it")
        self.step = step


def train(
    model: nn.Module,
    *,
    loss: Callable[..., Tensor],
    draws: Callable[..., dict[str, Tensor]],
    batches: Callable[[int], Batch],
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
    learner = begin(model, loss=loss, draws=draws, config=config, optim=optim, seed=seed, world=world)
    optimizer, averages = learner.optimizer, learner.averages
    at = _resume(run, bare, averages, optimizer, world)
    saver = checkpoint.Saver(run, keep=config.keep, keep_every=config.keep_every, world=world)
    log = Log(run, config.log_to, last_step=at.step) if world.first else None
    health, meter = Health(device), Meter(device, world)
    batch = batches(at.order)

    def averaged() -> nn.Module:
        return ema.module(averages["ema"], bare, replica)

    def save() -> None:
        parts = {"model": dict(bare.named_parameters()), "optimizer": checkpoint.optimizer_tensors(bare, optimizer)}
        parts |= {name: ema.tensors(average, bare) for name, average in averages.items()}
        saver.save(at.step, parts, {"seconds": at.seconds + meter.elapsed(), "order": at.order})

    with (
        Bar(config.steps, at.step, what="step", every_call=True, quiet=not world.first) as bar,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        products(config.precision),
        stop_requests() as stop,
    ):
        while at.step < config.steps:
            looks = config.blocks_every > 0 and (at.step + 1) % config.blocks_every == 0
            taken = step(learner, batch, health, at.step, order=at.order, looks=looks)
            at.step += 1
            meter.add(taken.loss, taken.bad, images=config.batch * math.prod(taken.parts[0]["latents"].shape[1:-3]))
            last = at.step == config.steps

            if at.step % config.patience == 0 and int(health.row) >= config.patience:
                saver.wait()
                culprit = first_not_finite(bare, lambda part=taken.parts[0]: loss_of(bare, loss, part, config), world)
                at = _roll_back(run, bare, averages, optimizer, world, at, culprit, log)
                batch, health = batches(at.order), Health(device)
                meter.restart()
                continue
            if at.step % config.log_every == 0 or last:
                mean, speed = meter.read()
                if log is not None:
                    line = {"loss": mean, "lr": taken.lr, "grad_norm": float(taken.norm), "images_per_second": speed}
                    log.write(step=at.step, **line)
                    if skipped := int(health.total):
                        log.write(step=at.step, skipped=skipped)
                bar.show(at.step, f"loss {mean:.4f}  {speed:,.0f} images/s")
            if looks and log is not None:
                log.write(step=at.step, blocks=taken.blocks)
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
