"""fluvial guide."""

import shlex
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from fluvial.cli.arguments import Device, device_of, of_a_run
from fluvial.cli.output import console
from fluvial.run.folder import RunFolder
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.guide import picture
from fluvial.tools.guide.adopt import adopt
from fluvial.tools.guide.result import Measured, Sweep
from fluvial.tools.guide.sweep import COUNT, INTERVALS, WEIGHTS, guide
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.progress import duration

DESCRIPTION = """Find the guidance of a run: weight, interval, average and steps are swept and measured on few images.

All combinations are drawn from the same noise, and evaluations of the network that they share are made once. The rows
are kept in RUN/guide: started again after an interruption, what is there is not made again."""
SHOWN = 30  # rows of the table
CAPTION = "alike: not told apart from the best; chosen: of those the fewest evaluations"


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    weights: tuple[float, ...] = WEIGHTS
    """Weights of guidance; 1 is none."""
    intervals: tuple[float, ...] = tuple(time for interval in INTERVALS for time in interval)
    """Intervals of times in which guidance acts, two numbers each: 0 1 0.2 0.8 are two of them."""
    averages: tuple[str, ...] = ("ema",)
    """Averages of the weights: ema, raw, or lengths such as 0.05 0.1 of a run with train.ema_lengths."""
    steps: tuple[int, ...] = ()
    """Numbers of solver steps; the run's own by default."""
    count: int = COUNT
    """Images of each combination."""
    metric: str = "frechet_distance"
    """The score to rank by: any that a card has."""
    write: bool = False
    """Write the chosen settings into the run, as its defaults of sampling."""
    seed: int = 0
    """Seed of the noise, the same for all."""
    reference: str = ""
    """Real images to measure against: test or train for the run's own data; a folder, a data set (NAME:SPLIT), an .npz
    of the ADM suite, or a file that fluvial score --keep wrote."""
    training: str = ""
    """Training images beside another reference, for class accuracy."""
    features: str = ""
    """The feature extractor (also --extractor), as `fluvial score` takes it."""
    feature_weights: str = ""
    """File of the weights of inception; folder or repository of those of dinov2 and clip."""
    size: int = 0
    """Side of the square that images of another reference are cropped to."""
    channels: Literal[1, 3] = 3
    """1 reads another reference as grey."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    sample: SampleConfig
    """Settings of sampling that are not swept; the run's own by default."""

    def __post_init__(self) -> None:
        at_least(2, self, "count")
        at_least(0, self, "seed", "size")
        if len(self.intervals) % 2 or not self.intervals:
            raise ValueError(f"--intervals are pairs of times, such as 0 1 0.2 0.8; got {len(self.intervals)} numbers")
        if self.write and "ema" not in self.averages:
            raise ValueError("--write needs ema among --averages: it is the average that a run is sampled with")


def guide_(arguments: list[str]) -> None:
    folder, run, options = of_a_run(GuideOptions, arguments, "guide", DESCRIPTION)
    pairs = list(zip(options.intervals[::2], options.intervals[1::2], strict=True))
    same = ("weights", "averages", "steps", "count", "metric", "seed", "reference", "training", "features", "size")
    same += ("feature_weights", "channels", "step", "autoencoder")
    wanted: dict[str, Any] = {name: getattr(options, name) for name in same}
    if wrong := _drawn_settings(run.sample, options):
        raise UsageError(wrong)
    sweep = guide(folder, intervals=pairs, settings=options.sample, device=device_of(options.device), **wanted)
    if not sweep.rows:
        why = next(iter(sweep.failed.values()), "")
        raise ValueError(f"no setting could be measured: {why}")
    files = [sweep.folder / "guide.json"]
    if find_spec("matplotlib") is not None:
        files.insert(0, picture.draw(sweep, sweep.folder / "guide.png"))
    _show(sweep, folder)
    for file in files:
        print(file)
    if len(files) == 1:
        print("no picture: it needs matplotlib (pip install 'fluvial[plot]')")
    if options.write:
        _write(sweep, folder, options.sample)
    else:
        print(f"next: fluvial sample {shlex.quote(str(folder))} {_options(sweep.chosen, sweep)}")


def _drawn_settings(own: SampleConfig, options: GuideOptions) -> str:
    """The reason why settings that are swept may not be given otherwise; "" if they are not."""
    given = options.sample
    for name, here, there in (
        ("--weights", given.guidance.weight, own.guidance.weight),
        ("--intervals", given.guidance.interval, own.guidance.interval),
        ("--steps", given.steps, own.steps),
    ):
        if here != there:
            return f"what is swept is given with {name}, without sample. before it"
    return ""


def _show(sweep: Sweep, folder: Path) -> None:
    """The rows as a table, the best first, and what they cost."""
    table = Table(title=f"{folder}: {sweep.metric.replace('_', ' ')}", title_justify="left", caption_justify="left")
    table.caption = CAPTION
    several = {"average": len(sweep.axes.averages) > 1, "steps": len(sweep.axes.steps) > 1}
    columns = [*(name for name, shown in several.items() if shown), "weight", "interval", "NFE", "value", "error"]
    for column in (*columns, "to best", ""):
        table.add_column(column, no_wrap=True, justify="left" if column in ("average", "") else "right")
    for row in sweep.ranked[:SHOWN]:
        at, error = row.setting, sweep.error_to_best(row)
        interval = "" if at.weight == 1 else f"{at.interval[0]:g} to {at.interval[1]:g}"
        beside = "" if row is sweep.best else f"{row.value - sweep.best.value:+.2g}"
        beside += "" if row is sweep.best or error is None else f" ±{error:.2g}"
        cells = {"average": at.average, "steps": _steps(row), "weight": f"{at.weight:g}", "interval": interval}
        cells |= {"NFE": str(row.nfe), "value": f"{row.value:#.4g}", "error": f"{row.error:.2g}"}
        table.add_row(*(cells[column] for column in columns), beside, _note(row, sweep))
    printer = console()
    printer.print(table)
    if len(sweep.rows) > SHOWN:
        print(f"and {len(sweep.rows) - SHOWN} worse ones, in guide.json")
    for setting, why in sweep.failed.items():
        print(f"{setting}: not drawn, {why}")
    saved = 1 - sweep.made / max(1, sweep.asked)
    print(f"evaluations of the network: {sweep.asked:,} asked, {sweep.made:,} made ({saved:.0%} saved)", end="")
    print(f"; {duration(sweep.seconds)} this time")


def _note(row: Measured, sweep: Sweep) -> str:
    notes = ["best"] if row is sweep.best else ["alike"] if row in sweep.alike else []
    return ", ".join([*notes, *(["chosen"] if row is sweep.chosen else [])])


def _steps(row: Measured) -> str:
    steps = row.setting.steps
    return " ".join(map(str, steps)) if isinstance(steps, tuple) else str(steps)


def _options(row: Measured, sweep: Sweep) -> str:
    """The options of `fluvial sample` for a row."""
    at = row.setting
    words = [f"--guidance {at.weight:g}", f"--sample.guidance.interval {at.interval[0]:g} {at.interval[1]:g}"]
    words += [f"--steps {_steps(row)}"] if len(sweep.axes.steps) > 1 else []
    return " ".join([*words, *([f"--average {at.average}"] if at.average != "ema" else [])])


def _write(sweep: Sweep, folder: Path, base: SampleConfig) -> None:
    """Writes the settings that are chosen among those of the moving average into the run."""
    row = sweep.chosen_of("ema")
    if row is None:
        raise ValueError("no setting of the average ema could be measured: nothing was written")
    adopt(RunFolder(folder), replace(row.setting.of(base), batch=base.batch))
    print(f"{folder}/run.json: {row.setting}, {_steps(row)} steps are the defaults now")
    if (other := sweep.chosen.setting.average) != "ema":
        own = "" if other == "raw" else f", or make a run folder of it: fluvial ema {folder} --length {other}"
        print(f"better with another average, which a run cannot have as default: --average {other}{own}")
