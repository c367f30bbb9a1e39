"""fluvial study."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fluvial.cli.arguments import Device, device_of, parse, positional
from fluvial.tools.study.plan import read_study
from fluvial.tools.study.run import study as run_study
from fluvial.utils.checks import at_least

ABOUT = "a YAML file that says which runs, with which seeds, for how long; docs/studies.md has one to begin with"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    out: Path | None = None
    """Folder of the runs, results and page; studies/NAME for NAME.yaml by default."""
    at_once: int = 0
    """Runs that are trained at the same time, on one thread each; one for each core by default."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    dry_run: bool = False
    """Measure the speeds, print the plan, and stop there."""

    def __post_init__(self) -> None:
        at_least(0, self, "at_once")


def study(arguments: list[str]) -> None:
    """Runs a study, or goes on with it, and prints the path of its page."""
    file, rest = positional(arguments, "study", "FILE", ABOUT, has_own_help=True)
    description = (
        "Train several runs for the same budget and with several seeds, measure them with the same noise, and write a "
        "page: means, differences with their errors, curves, samples. The same command goes on with a study."
    )
    options = parse(StudyOptions, StudyOptions(), rest, "fluvial study FILE", description)
    out = options.out or Path("studies") / Path(file).stem
    run_study(
        read_study(file),
        out,
        at_once=options.at_once,
        device=str(device_of(options.device)),
        only_plan=options.dry_run,
        say=partial(print, flush=True),
    )
