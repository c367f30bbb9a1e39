"""fluvial ema."""

from dataclasses import dataclass
from pathlib import Path

from fluvial.cli.arguments import parse, positional
from fluvial.methods import empty_model
from fluvial.run.folder import RunFolder
from fluvial.training import checkpoint, power_ema
from fluvial.utils.atomic import atomic_folder
from fluvial.utils.checks import other_weights


@dataclass(frozen=True, kw_only=True)
class EmaOptions:
    length: float
    """Standard deviation of the average over the steps, as a share of the training: such as 0.1."""
    step: int | None = None
    """Training step that the average is of; the last one stored by default."""
    out: Path | None = None
    """Folder of the new run; RUN-ema-<length> by default."""

    def __post_init__(self) -> None:
        power_ema.exponent(self.length)
        if self.step is not None and self.step < 1:
            raise ValueError(f"--step counts from 1, got {self.step}")


def ema(arguments: list[str]) -> None:
    meaning = "the folder of a run that stored averages of its weights while training, in RUN/ema"
    name, rest = positional(arguments, "ema", "RUN", meaning, has_own_help=True)
    description = "Make a run folder with another average of a run's weights: to sample, score, and export."
    options = parse(EmaOptions, None, rest, "fluvial ema RUN", description)
    folder = Path(name).resolve()
    label = f"{options.length:.3f}" if float(f"{options.length:.3f}") == options.length else f"{options.length:g}"
    out = options.out or folder.with_name(f"{folder.name}-ema-{label}")
    there, averages = RunFolder(name), RunFolder(folder).averages
    run, record = there.run(), there.record()
    rebuilt = power_ema.rebuild(averages, length=options.length, step=options.step)
    if wrong := other_weights(empty_model(run.method).state_dict(), rebuilt.tensors):
        raise ValueError(f"{averages} holds averages of another model than {folder / 'run.json'}: {wrong}")
    meta = checkpoint.read(folder, checkpoint.load_meta)
    seconds = meta["seconds"] * rebuilt.step / max(1, meta["step"])  # of the steps behind it: all take about as long
    origin = {"length": options.length, "step": rebuilt.step, "from": name}
    with atomic_folder(out) as partial:
        record = {**record, "ema": origin, "run": record["run"]}
        RunFolder(partial).create(record, rebuilt.tensors, step=rebuilt.step, seconds=seconds)
    print(f"residual of the fit: {rebuilt.residual:.1e} of the profile, from {rebuilt.snapshots} snapshots")
    print(f"{out}: the average of length {options.length:g} at step {rebuilt.step}")
