"""The training loop: batches of (seed, step) in, checkpoints and a log out; started again, it goes on where it was."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluvial.methods.method import Objective
from fluvial.training import checkpoint, ema, power_ema
from fluvial.training.config import TrainConfig
from fluvial.training.distributed import ALONE, World
from fluvial.training.health import Health, all_finite, first_not_finite, stop_requests
from fluvial.training.home import Home
from fluvial.training.log import Log, Meter, last_step
from fluvial.training.optim import OptimConfig, begin_optimizer, optimizer_tensors
from fluvial.training.step import Batch, begin, step
from fluvial.utils.precision import products
from fluvial.utils.progress import Bar

ORDERS = 3  # of the data that are tried when steps are not finite


class FolderGone(RuntimeError):
    """The folder of the run was removed or renamed while it trained."""


class Stopped(Exception):
    """Training was asked to stop, and did after a checkpoint."""

    def __init__(self, step: int, signal: str) -> None:
        super().__init__(f"stopped by {signal} after step {step}, with a checkpoint; the same command goes on from it")
        self.step = step


def train(
    model: nn.Module,
    *,
    method: Objective,
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
    start_over: bool = False,
) -> nn.Module:
    """Trains the model in place, on all ranks of the world, and returns its moving average.

    `batches(order)(step)` gives this rank's latents and labels. `held_out(ema)` and `score(ema)` are logged and
    `preview(ema, path)` draws a picture, every so many steps; `replica` makes an empty model for them. The folder `run`
    receives log.jsonl, checkpoints/ and samples/; if it has a checkpoint, training goes on from there and ends with the
    same weights as if it had never stopped. What belongs to the checkpoint's step and is missing (validation loss,
    score, picture, snapshot of averages) is made first.

    Raises Stopped after SIGTERM or SIGINT, with a checkpoint written; CheckpointError if no checkpoint of the run is
    whole, unless told to `start_over` at step 0; FolderGone, with a checkpoint written beside it, if the folder was
    removed or renamed; and RuntimeError if steps are not finite and going back to a checkpoint, with the data in
    another order, does not help.
    """
    bare, device = model, next(model.parameters()).device
    learner = begin(model, method=method, config=config, optim=optim, seed=seed, world=world)
    optimizer, averages = learner.optimizer, learner.averages
    home = Home(run)
    folder = _checkpoint_to_resume(run, config, world, start_over=start_over)
    at = _At() if folder is None else _resume(folder, bare, averages, optimizer, world)
    saver = checkpoint.Saver(run, keep=config.keep, keep_every=config.keep_every, world=world)
    if folder is not None and world.first:
        saver.tidy()
    log = Log(run, config.log_to, last_step=at.step) if world.first else None
    health, meter = Health(device), Meter(device, world)
    meter.go_on(*at.since_line)
    batch = batches(at.order)

    def averaged() -> nn.Module:
        return ema.module(averages["ema"], bare, replica)

    def save(saver: checkpoint.Saver) -> None:
        if world.agree(not all_finite(bare.parameters())):  # the checkpoint before is worth more
            if world.first:
                print(f"the weights after step {at.step} are not finite: no checkpoint is written", flush=True)
            return
        parts = {"model": dict(bare.named_parameters()), "optimizer": optimizer_tensors(bare, optimizer)}
        parts |= {name: ema.tensors(average, bare) for name, average in averages.items()}
        if log is not None:
            log.sync()
        told = {"seconds": at.seconds + meter.elapsed(), "order": at.order}
        saver.save(at.step, parts, {**told, "since_line": meter.so_far()})

    def look(*, missing: bool = False) -> None:
        """Makes what is due at this step; with `missing` only what is not there yet."""
        due = _due(at.step, config, run, log if missing else None)
        due &= {name for name, made in (("held_out", held_out), ("score", score), ("preview", preview)) if made} | {
            "ema"
        }
        due = world.broadcast(due)
        if "ema" in due:
            _snapshot(run, at.step, bare, averages, config, world)
        if due - {"ema"}:
            average = averaged()
            if log is not None:
                _measure(average, at.step, due, {"held_out": held_out, "score": score, "preview": preview}, run, log)
            world.barrier()

    with (
        Bar(config.steps, at.step, what="step", every_call=True, quiet=not world.first) as bar,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        products(config.precision),
        stop_requests() as stop,
    ):
        if folder is not None and not at.weights_only:
            look(missing=True)
            meter.leave_out()
        while at.step < config.steps:
            looks = config.blocks_every > 0 and (at.step + 1) % config.blocks_every == 0
            taken = step(learner, batch, health, at.step, order=at.order, looks=looks)
            at.step += 1
            meter.add(taken.loss, taken.bad, images=config.batch * math.prod(taken.parts[0].latents.shape[1:-3]))
            last = at.step == config.steps
            stopped = world.agree(bool(stop) or (world.first and home.gone()))
            if stopped and world.broadcast(home.gone()):
                _rescue(home, save, saver, config, world, at.step)

            if at.step % config.patience == 0 and int(health.row) >= config.patience:
                saver.wait()
                culprit = first_not_finite(bare, lambda part=taken.parts[0]: learner.loss(part, bare), world)
                at = _roll_back(run, bare, averages, optimizer, world, at, culprit, log)
                batch, health = batches(at.order), Health(device)
                meter.restart()
                meter.go_on(*at.since_line)
                continue
            if at.step % config.log_every == 0 or last:
                mean, speed = meter.read()
                skipped = int(health.total)
                if log is not None:
                    line = {"loss": mean, "lr": taken.lr, "grad_norm": float(taken.norm), "images_per_second": speed}
                    log.write(step=at.step, **line)
                    if skipped:
                        log.write(step=at.step, skipped=skipped)
                told = f"  {skipped} steps skipped, not finite" if skipped else ""
                bar.show(at.step, f"loss {mean:.4f}  {speed:,.0f} images/s{told}")
            if looks and log is not None:
                log.write(step=at.step, blocks=taken.blocks)
            if at.step % config.save_every == 0 or last or stopped:
                save(saver)
            look()
            if stopped:
                saver.wait()
                raise Stopped(at.step, stop[0] if stop else "a signal to another rank")
            meter.leave_out()
        saver.wait()
        if world.broadcast(home.gone()):
            _rescue(home, save, saver, config, world, at.step)
        return averaged()


class _At:
    """How far a run is: its step, the seconds before this process, and how often the data order was changed."""

    def __init__(
        self,
        step: int = 0,
        seconds: float = 0.0,
        order: int = 0,
        *,
        since_line: Sequence[float] = (0.0, 0.0),
        weights_only: bool = False,
    ) -> None:
        self.step, self.seconds, self.order, self.weights_only = step, seconds, order, weights_only
        self.since_line = since_line
        """Sum of the losses since the last line of the log, and their number."""


def _rescue(
    home: Home,
    save: Callable[[checkpoint.Saver], None],
    saver: checkpoint.Saver,
    config: TrainConfig,
    world: World,
    step: int,
) -> None:
    """Saves a run whose folder is gone into another, and raises FolderGone with its name."""
    with suppress(checkpoint.CheckpointError):  # what was being written went with the folder
        saver.wait()
    shelter = world.broadcast(home.shelter() if world.first else None)
    rescued = checkpoint.Saver(shelter, keep=config.keep, keep_every=config.keep_every, world=world)
    save(rescued)
    rescued.wait()
    raise FolderGone(
        f"{home.folder} was removed or renamed while it trained. The checkpoint of step {step} is in {shelter}, from "
        f"which `fluvial train {shelter}` goes on; the log and earlier checkpoints are where the folder went"
    )


def _snapshot(run: Path, step: int, model: nn.Module, averages: ema.Tracks, config: TrainConfig, world: World) -> None:
    """Stores the power-function averages for `fluvial ema`."""
    tracks = {
        length: list(ema.tensors(averages[ema.name_of_length(length)], model).values()) for length in config.ema_lengths
    }
    names = [name for name, _ in model.named_parameters()]
    power_ema.save(run / "ema", step, names, tracks, writes=world.first)


def _due(step: int, config: TrainConfig, run: Path, log: Log | None) -> set[str]:
    """What belongs to this step: held_out (validation loss), score, preview, ema (snapshot); with a log, what lacks."""
    last = step == config.steps
    every = {"held_out": config.validate_every, "score": config.score_every, "preview": config.sample_every}
    every["ema"] = config.snapshot_every if config.ema_lengths else 0
    due = {name for name, n in every.items() if n > 0 and (step % n == 0 or last)}
    if log is None:
        return due
    there = {name for name, key in (("held_out", "held_out_loss"), ("score", "score")) if key in log.resumed}
    if _preview_file(run, step).exists():
        there.add("preview")
    stored = {length for _, at, length in power_ema.snapshots(run / "ema") if at == step}
    if stored >= set(config.ema_lengths):
        there.add("ema")
    return due - there


def _measure(
    average: nn.Module, step: int, due: set[str], measures: Mapping[str, Callable[..., Any] | None], run: Path, log: Log
) -> None:
    """Logs the validation loss and the score of the averaged model, and draws the picture, where they are due."""
    held_out, score, preview = (measures[name] if name in due else None for name in ("held_out", "score", "preview"))
    if held_out is not None:
        log.write(step=step, **held_out(average))
    if score is not None:
        log.write(step=step, score=score(average))
    if preview is not None:
        preview(average, _preview_file(run, step))


def _preview_file(run: Path, step: int) -> Path:
    return run / "samples" / f"step-{step:08d}.png"


def _checkpoint_to_resume(run: Path, config: TrainConfig, world: World, *, start_over: bool = False) -> Path | None:
    """The newest whole checkpoint, or None for a run that has none yet.

    Raises CheckpointError on every rank if there were some and none is whole, unless told to `start_over`.
    """

    def find() -> tuple[Path | None, str]:
        try:
            folder = checkpoint.newest_whole(run)
        except checkpoint.CheckpointError as error:
            return None, str(error)
        if folder is not None or start_over:
            return folder, ""
        if aside := checkpoint.damaged(run):
            return None, f"no checkpoint of {run} is whole: {', '.join(path.name for path in aside)}"
        if (run / checkpoint.SAVED).exists():
            return None, f"{run} has had checkpoints, and has none now; its log goes to step {last_step(run)}"
        return None, ""

    folder, wrong = world.broadcast(find() if world.first else None)
    if wrong:
        raise checkpoint.CheckpointError(
            f"{wrong}. Put a copy of a whole checkpoint there, or train from the start again with --start-over"
        )
    return folder


def _resume(
    folder: Path, model: nn.Module, averages: ema.Tracks, optimizer: torch.optim.Optimizer, world: World
) -> _At:
    """Fills everything from a verified checkpoint; returns where that was."""
    meta = checkpoint.load_meta(folder)
    names = [name for name, _ in model.named_parameters()]
    there = checkpoint.shapes(folder)
    if meta.get("weights_only"):
        if world.first:
            print(f"from the weights of step {meta['step']} in {folder}, with a new optimizer", flush=True)
        optimizer.state.clear()
        weights = {f"ema/{name}": p.detach() for name, p in model.named_parameters()}
        checkpoint.fill(weights, folder, world, verified=True)
        for average in averages.values():
            ema.fill(average, list(weights.values()))
        return _At(meta["step"], meta["seconds"], weights_only=True)
    fields = [name.removeprefix("optimizer/") for name in there if name.startswith("optimizer/")]
    state = begin_optimizer(model, optimizer, fields)
    wanted = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    wanted |= {f"optimizer/{name}": value for name, value in state.items()}
    for part, average in averages.items():
        wanted |= {f"{part}/{name}": value for name, value in ema.tensors(average, model).items()}
    checkpoint.fill(wanted, folder, world, verified=True)
    for part, average in averages.items():  # those that live elsewhere, or are this rank's part of a sharded one
        ema.fill(average, [wanted[f"{part}/{name}"] for name in names])
    return _At(meta["step"], meta["seconds"], meta.get("order", 0), since_line=meta.get("since_line", (0.0, 0.0)))


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
    folder = world.broadcast(checkpoint.newest_whole(run) if world.first else None)
    back = None if folder is None else _resume(folder, model, averages, optimizer, world)
    order = at.order + 1
    if back is None or order > ORDERS:
        raise RuntimeError(
            f"{found}; {f'{ORDERS} other orders of the data did not help' if back else 'there is no checkpoint yet'}. "
            f"Lower optim.lr, clip the gradient (optim.clip norm), or train in fp32"
        )
    if log is not None:
        log.write(step=at.step, rolled_back_to=back.step, first_non_finite=culprit)
        print(f"{found}: back to step {back.step}, with the data in another order", flush=True)
    return _At(back.step, at.seconds, order, since_line=back.since_line)
