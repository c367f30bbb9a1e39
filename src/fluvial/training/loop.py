"""The training loop: batches of (seed, step) in, checkpoints and a log out; started again, it goes on where it was."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluvial.training import checkpoint, ema, power_ema
from fluvial.training.health import Health, all_finite, first_not_finite, stop_requests
from fluvial.training.home import Home
from fluvial.training.log import Log, Meter
from fluvial.training.resume import Progress, resume, state, to_resume
from fluvial.training.step import Batches, Learner, StepMetrics, step
from fluvial.utils.errors import Stopped
from fluvial.utils.precision import matmul_precision
from fluvial.utils.progress import Bar

ORDERS = 3  # of the data that are tried when steps are not finite
Measure = Callable[[nn.Module], dict[str, Any]]
OnStep = Callable[[int, StepMetrics], None]


class FolderGone(RuntimeError):
    """The folder of the run was removed or renamed while it trained."""


def train(
    learner: Learner,
    batches: Callable[[int], Batches],
    folder: Path,
    *,
    validate: Measure | None = None,
    score: Measure | None = None,
    preview: Callable[[nn.Module, Path], None] | None = None,
    on_step: OnStep | None = None,
    start_over: bool = False,
) -> nn.Module:
    """Trains the learner's model in place, on all ranks, and returns its moving average.

    `batches(order)(step)` gives this rank's latents and labels. Every so many steps `validate` and `score` of the
    averaged model are logged, and `preview(model, path)` draws a picture; `on_step(number, metrics)` is called after
    every step, whose tensors it should not wait for. The folder receives log.jsonl, checkpoints/ and samples/; if it
    has a checkpoint, training goes on from there and ends with the same weights as if it had never stopped.
    Measurements of the checkpoint's step that are missing are made first.

    Raises Stopped after SIGTERM or SIGINT, with a checkpoint written; CheckpointError if no checkpoint of the run is
    whole, unless told to `start_over` at step 0; FolderGone, with a checkpoint written beside it, if the folder was
    removed or renamed; and RuntimeError if steps are not finite and going back to a checkpoint, with the data in
    another order, does not help.
    """
    config, device, world = learner.config, learner.device, learner.world
    measures = {"held_out": validate, "score": score, "preview": preview}
    run = _Process(learner, folder, {name: made for name, made in measures.items() if made is not None})
    run.begin(start_over=start_over)
    with (
        Bar(config.steps, run.at.step, what="step", every_call=True, quiet=not world.first) as bar,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        matmul_precision(config.precision),
        stop_requests() as stop,
        run.saver,
    ):
        if run.resumed and run.at.step and world.first:
            print(f"going on from step {run.at.step:,}", flush=True)
        if run.resumed and not run.at.weights_only:
            run.measure(missing=True)
        at_step = batches(run.at.order)
        while run.at.step < config.steps:
            blocks = config.blocks_every > 0 and (run.at.step + 1) % config.blocks_every == 0
            metrics = step(learner, at_step, run.health, run.at.step, order=run.at.order, blocks_too=blocks)
            run.count(metrics)
            if on_step is not None:
                on_step(run.at.step, metrics)
            stopped = run.asked_to_stop(stop)
            if run.is_lost():
                run.roll_back(metrics)
                at_step = batches(run.at.order)
                continue
            run.write_log(metrics, bar)
            if run.is_due(config.save_every) or stopped:
                run.save(run.saver)
            run.measure()
            if stopped:
                run.saver.wait()
                raise Stopped(run.at.step, stop[0] if stop else "a signal to another rank")
        run.saver.wait()
        run.check_folder()
        run.saver.prune()  # the last validation loss may be the lowest
        return learner.averaged()


class _Process:
    """One process of a training run: how far it is, its checkpoints, its log, and what it measures."""

    def __init__(self, learner: Learner, folder: Path, measures: dict[str, Callable[..., Any]]) -> None:
        self.learner, self.config, self.world = learner, learner.config, learner.world
        self.folder, self.home, self.measures = folder, Home(folder), measures
        self.saver = self.saver_in(folder)
        self.at, self.resumed, self.log = Progress(), False, None
        self.began, self.shown = 0, dict[str, str]()
        self.health, self.meter = Health(learner.device), Meter(learner.device, self.world)

    def saver_in(self, folder: Path) -> checkpoint.Saver:
        """Writes checkpoints of this run to a folder."""
        config = self.config
        kept = {"keep": config.keep, "keep_every": config.keep_every, "keep_best": config.keep_best}
        return checkpoint.Saver(folder, **kept, world=self.world)

    def begin(self, *, start_over: bool) -> None:
        """Goes on from the newest whole checkpoint, if there is one, and opens the log on the main process."""
        found = to_resume(self.folder, self.world, start_over=start_over)
        if found is not None:
            self.at, self.resumed = resume(self.learner, found), True
            if self.world.first:
                self.saver.tidy()
        self.began = self.at.step
        if self.world.first:
            self.log = Log(self.folder, self.config.log_to, last_step=self.at.step)
        self.meter.go_on(*self.at.since_line)

    def is_due(self, every: int) -> bool:
        """True at every so many steps, and at the last; never for 0."""
        return every > 0 and (self.at.step % every == 0 or self.at.step == self.config.steps)

    def count(self, metrics: StepMetrics) -> None:
        """Counts a step, its loss and its images."""
        self.at.step += 1
        images = self.config.batch * math.prod(metrics.parts[0].latents.shape[1:-3])
        self.meter.add(metrics.loss, metrics.skipped, images=images)

    def asked_to_stop(self, stop: list[str]) -> bool:
        """True if any rank got a signal to stop. Raises FolderGone if the folder was removed or renamed."""
        stopped = self.world.agree(bool(stop) or (self.world.first and self.home.gone()))
        if stopped:
            self.check_folder()
        return stopped

    def is_lost(self) -> bool:
        """True if so many steps in a row were not finite that going on is no use; looked at every so many steps."""
        patience = self.config.patience
        return self.at.step % patience == 0 and int(self.health.row) >= patience

    def save(self, saver: checkpoint.Saver) -> None:
        """Begins to write a checkpoint; none of weights that are not finite, as the one before is worth more."""
        if self.world.agree(not all_finite(self.learner.model.parameters())):
            if self.world.first:
                print(f"the weights after step {self.at.step} are not finite: no checkpoint is written", flush=True)
            return
        if self.log is not None:
            self.log.sync()
        told = {"seconds": self.at.seconds + self.meter.elapsed(), "order": self.at.order}
        saver.save(self.at.step, state(self.learner), {**told, "since_line": self.meter.so_far()})

    def write_log(self, metrics: StepMetrics, bar: Bar) -> None:
        """Logs and shows loss, learning rate, gradient norm and speed, where they are due."""
        at = self.at.step
        if self.is_due(self.config.log_every):
            mean, speed = self.meter.read()
            skipped = int(self.health.total)
            if self.log is not None:
                norm = float(metrics.grad_norm)
                self.log.write(step=at, loss=mean, lr=metrics.lr, grad_norm=norm, images_per_second=speed)
                if skipped:
                    self.log.write(step=at, skipped=skipped)
            told = f"  {skipped} steps skipped, not finite" if skipped else ""
            bar.show(at, "  ".join([f"loss {mean:.4f}", *self.shown.values(), f"{speed:,.0f} images/s{told}"]))
        elif at == self.began + 1:  # a sign of life, long before the first line where steps are slow
            bar.show(at, f"loss {float(metrics.loss):.4f}")
        if metrics.blocks and self.log is not None:
            self.log.write(step=at, blocks=metrics.blocks)

    def measure(self, *, missing: bool = False) -> None:
        """Measures the averaged model where that is due; with `missing` only what the log and the folder lack."""
        config, names = self.config, {*self.measures, "ema"}
        every = {"held_out": config.validate_every, "score": config.score_every, "preview": config.sample_every}
        every["ema"] = config.snapshot_every if config.ema_lengths else 0
        due = {name for name in names if self.is_due(every[name])}
        due |= names & {"preview"} if config.is_first_sample(self.at.step) else set()
        due = self.world.broadcast(due - self._made() if missing else due)
        if "ema" in due:
            _snapshot(self.folder, self.at.step, self.learner)
        if due - {"ema"}:
            with self.meter.paused():
                self._measure(due)

    def _measure(self, due: set[str]) -> None:
        """Makes these measurements; on the main process, all ranks wait for it."""
        average = self.learner.averaged()
        if self.log is not None:
            if "held_out" in due:
                found = self.measures["held_out"](average)
                self.log.write(step=self.at.step, **found)
                self.shown["validation"] = f"validation {found['held_out_loss']:.4f}"
            if "score" in due:
                self.log.write(step=self.at.step, score=self.measures["score"](average))
            if "preview" in due:
                file = _preview_file(self.folder, self.at.step)
                self.measures["preview"](average, file)
                self.shown["picture"] = str(file)
        self.world.barrier()

    def _made(self) -> set[str]:
        """The measurements of the step that training resumes from that the log and the folder have."""
        made, resumed = set[str](), set() if self.log is None else self.log.resumed
        made |= {name for name, key in (("held_out", "held_out_loss"), ("score", "score")) if key in resumed}
        if _preview_file(self.folder, self.at.step).exists():
            made.add("preview")
        stored = {length for _, at, length in power_ema.snapshots(self.folder / "ema") if at == self.at.step}
        if stored >= set(self.config.ema_lengths):
            made.add("ema")
        return made

    def roll_back(self, metrics: StepMetrics) -> None:
        """Goes back to the last checkpoint, to go on from it with the data in another order.

        Raises RuntimeError if there is none, or that was tried too often.
        """
        self.saver.wait()
        learner, first = self.learner, metrics.parts[0]
        culprit = first_not_finite(learner.model, lambda: learner.loss(first, learner.model), self.world)
        found = f"steps up to {self.at.step} were not finite in a row, and {culprit} was the first to be so"
        folder = self.world.broadcast(checkpoint.newest_whole(self.folder) if self.world.first else None)
        back = None if folder is None else resume(learner, folder)
        if back is None or self.at.order == ORDERS:
            tried = f"{ORDERS} other orders of the data did not help" if back else "there is no checkpoint yet"
            raise RuntimeError(
                f"{found}; {tried}. Lower optim.lr, clip the gradient (optim.clip norm), or train in fp32"
            )
        if self.log is not None:
            self.log.write(step=self.at.step, rolled_back_to=back.step, first_non_finite=culprit)
            print(f"{found}: back to step {back.step}, with the data in another order", flush=True)
        back.seconds, back.order, back.weights_only = self.at.seconds, self.at.order + 1, False
        self.at, self.health = back, Health(learner.device)
        self.meter.restart()
        self.meter.go_on(*self.at.since_line)

    def check_folder(self) -> None:
        """Raises FolderGone, naming a new folder with a checkpoint, if the run's was removed or renamed."""
        if not self.world.broadcast(self.home.gone()):
            return
        with suppress(checkpoint.CheckpointError):  # what was being written went with the folder
            self.saver.wait()
        shelter = self.world.broadcast(self.home.shelter() if self.world.first else None)
        rescued = self.saver_in(shelter)
        self.save(rescued)
        rescued.wait()
        raise FolderGone(
            f"{self.folder} was removed or renamed while it trained. The checkpoint of step {self.at.step} is in "
            f"{shelter}, from which `fluvial train {shelter}` goes on; the log and earlier checkpoints are where the "
            f"folder went"
        )


def _snapshot(folder: Path, step: int, learner: Learner) -> None:
    """Stores the power-function averages for `fluvial ema`."""
    model, averages = learner.model, learner.averages
    tracks = {
        length: list(ema.tensors(averages[ema.name_of_length(length)], model).values())
        for length in learner.config.ema_lengths
    }
    names = [name for name, _ in model.named_parameters()]
    power_ema.save(folder / "ema", step, names, tracks, writes=learner.world.first)


def _preview_file(folder: Path, step: int) -> Path:
    return folder / "samples" / f"step-{step:08d}.png"
