"""The training state that checkpoints hold, and training resumed from one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fluvial.training import checkpoint, ema
from fluvial.training.distributed import World
from fluvial.training.log import last_step
from fluvial.training.optim import begin_optimizer, optimizer_tensors
from fluvial.training.step import Learner


@dataclass
class Progress:
    """Steps and seconds of a run so far."""

    step: int = 0
    seconds: float = 0.0
    """Training time before this process."""
    order: int = 0
    """Number of times that the order of the data was changed, after steps that were not finite."""
    since_line: Sequence[float] = (0.0, 0.0)
    """Sum of the losses since the last line of the log, and their number."""
    weights_only: bool = False
    """True if the weights come from elsewhere, and nothing else was resumed."""


def state(learner: Learner) -> dict[str, Mapping[str, Tensor]]:
    """Weights, optimizer state and averages by part and parameter name, sharded as the weights are."""
    model, optimizer = learner.model, learner.optimizer
    parts: dict[str, Mapping[str, Tensor]] = {
        "model": dict(model.named_parameters()),
        "optimizer": optimizer_tensors(model, optimizer),
    }
    return parts | {name: ema.tensors(average, model) for name, average in learner.averages.items()}


def to_resume(folder: Path, world: World, *, start_over: bool = False) -> Path | None:
    """The newest whole checkpoint, or None for a run that has none yet.

    Raises CheckpointError on every rank if there were some and none is whole, unless told to `start_over`.
    """

    def find() -> tuple[Path | None, str]:
        try:
            found = checkpoint.newest_whole(folder)
        except checkpoint.CheckpointError as error:
            return None, str(error)
        if found is not None or start_over:
            return found, ""
        if aside := checkpoint.damaged(folder):
            return None, f"no checkpoint of {folder} is whole: {', '.join(path.name for path in aside)}"
        if (folder / checkpoint.SAVED).exists():
            return None, f"{folder} has had checkpoints, and has none now; its log goes to step {last_step(folder)}"
        return None, ""

    found, wrong = world.broadcast(find() if world.first else None)
    if wrong:
        raise checkpoint.CheckpointError(
            f"{wrong}. Put a copy of a whole checkpoint there, or train from the start again with --start-over"
        )
    return found


def resume(learner: Learner, folder: Path) -> Progress:
    """Fills weights, optimizer and averages from a verified checkpoint; returns how far that was."""
    model, averages, optimizer, world = learner.model, learner.averages, learner.optimizer, learner.world
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
        return Progress(step=meta["step"], seconds=meta["seconds"], weights_only=True)
    fields = [name.removeprefix("optimizer/") for name in there if name.startswith("optimizer/")]
    state = begin_optimizer(model, optimizer, fields)
    wanted = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    wanted |= {f"optimizer/{name}": value for name, value in state.items()}
    for part, average in averages.items():
        wanted |= {f"{part}/{name}": value for name, value in ema.tensors(average, model).items()}
    checkpoint.fill(wanted, folder, world, verified=True)
    for part, average in averages.items():  # those that live elsewhere, or are this rank's part of a sharded one
        ema.fill(average, [wanted[f"{part}/{name}"] for name in names])
    return Progress(
        step=meta["step"],
        seconds=meta["seconds"],
        order=meta.get("order", 0),
        since_line=meta.get("since_line", (0.0, 0.0)),
    )
