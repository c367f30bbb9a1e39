"""A study as a value: its runs, with which seeds, for what budget, and how they are measured."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from fluvial.config import Run, to_json
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.study.files import RESULTS, slug
from fluvial.tools.study.same_images import check_same_data
from fluvial.utils.checks import as_declared, at_least

LARGEST_STEPS = 10**9
SAVED_EVERY = 60.0  # seconds between checkpoints


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed at which a run trains, and draws."""

    seconds: float
    """Of a training step, with its batch of images."""
    flops: int
    """Model FLOPs of a training step."""
    parameters: int
    sampling: Mapping[str, float]
    """Images/s, by the name of the sampling."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a run may spend in training; one of them is given."""

    seconds: float | int | None = None
    """Seconds on this machine."""
    images: float | int | None = None
    """Images seen, each counted as often as it was seen."""
    flops: float | int | None = None
    """Model FLOPs of training."""

    def __post_init__(self) -> None:
        given = self.given
        if len(given) != 1:
            raise ValueError(f"a budget is one of seconds, images and flops, got {', '.join(given) or 'none of them'}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value!r:.80}")

    @property
    def given(self) -> dict[str, float | int]:
        """The one that is given, by its name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def told(self) -> str:
        """The budget in words."""
        ((name, value),) = self.given.items()
        return f"{value:,g} {dict(seconds='seconds of training', images='images seen', flops='training FLOPs')[name]}"

    def steps(self, run: Run, speed: Speed) -> int:
        """The training steps of a run, at least one."""
        ((name, value),) = self.given.items()
        each = {"seconds": speed.seconds, "images": run.images_per_step, "flops": speed.flops}[name]
        return min(LARGEST_STEPS, max(1, round(value / each)))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The measurement of a run: the settings of `fluvial score`, and the number of times along the training."""

    count: int = 1000
    """Samples that are measured."""
    seed: int = 0
    """Seed of their noise, which is the same for all runs."""
    features: str = ""
    """Feature extractor: pixels, inception, a TorchScript file, ...; as `fluvial score` chooses it by default."""
    reference: str = ""
    """Real images: test, train, or others."""
    points: int = 4
    """Points of the curves: checkpoints of each run that are measured, evenly over its training."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(2, self, "count")
        at_least(0, self, "seed")
        at_least(1, self, "points")


class Wanted(NamedTuple):
    """A measurement: of the checkpoint at a step, with the sampling of a name."""

    step: int
    sampling: str
    key: dict[str, Any]
    """What the numbers depend on besides the weights."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs, each trained with every seed for the same budget."""

    runs: Mapping[str, Run]
    """The runs by name; those of several variants are named RUN, VARIANT."""
    samplings: Mapping[str, Mapping[str, SampleConfig]]
    """For each run, the settings with which its images are drawn, by name; the curves are of the first."""
    budget: Budget
    seeds: tuple[int, ...] = (0, 1, 2)
    measure: Measure = Measure()
    baseline: str = ""
    """The run that the others are compared with; the first by default."""
    question: str = ""
    """What the study asks, in a sentence."""
    text: str = ""
    """The content of its file, which the processes of the study read."""

    def __post_init__(self) -> None:
        if not self.runs or not self.seeds:
            raise ValueError("a study needs at least one run and one seed")
        folders = [slug(name) for name in self.runs]
        for name in self.runs:
            if folders.count(slug(name)) > 1 or slug(name) in ("", RESULTS):
                raise ValueError(f"run {name!r} needs another name: its folder would be {slug(name)!r}")
        check_same_data({name: run.data for name, run in self.runs.items()})
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different whole numbers from 0, got {' '.join(map(str, self.seeds))}")
        if self.baseline and self.baseline not in self.runs:
            raise ValueError(f"baseline must be one of the runs ({', '.join(self.runs)}), got {self.baseline!r}")

    @property
    def compared_with(self) -> str:
        """The name of the run that the others are compared with."""
        return self.baseline or next(iter(self.runs))

    def run(self, name: str, seed: int, speed: Speed) -> Run:
        """The run of a name with a seed, with as many steps as the budget has."""
        run = self.runs[name]
        return scheduled(run, seed, self.budget.steps(run, speed), speed.seconds, self.measure.points)

    def wanted(self, name: str, run: Run) -> list[Wanted]:
        """All measurements of a run: along its training with the first sampling, and in the end with each."""
        part, samplings = run.train.steps // self.measure.points, self.samplings[name]
        about = {key: value for key, value in asdict(self.measure).items() if key != "points"}
        first = next(iter(samplings))
        found = [(part * point, first) for point in range(1, self.measure.points)]
        found += [(run.train.steps, sampling) for sampling in samplings]
        keys = {
            sampling: {"sample": to_json(run.sampled_with(settings))["sample"], "measure": about}
            for sampling, settings in samplings.items()
        }
        keys = json.loads(json.dumps(keys))  # as they are read back
        return [Wanted(step, sampling, keys[sampling]) for step, sampling in found]


def missing(result: Mapping[str, Any], those: list[Wanted]) -> list[Wanted]:
    """The measurements that a result has not."""
    there = [Wanted(row["step"], row["sampling"], row["of"]) for row in result.get("measured", ())]
    return [each for each in those if each not in there]


def scheduled(run: Run, seed: int, steps: int, seconds: float, points: int) -> Run:
    """The run of a seed, with about so many steps of so many seconds each, in equal parts that end in a checkpoint.

    Nothing is drawn, validated or scored meanwhile, as that would take time of the budget.
    """
    part = max(1, steps // points)
    saves = min(part, max(1, round(part * seconds / SAVED_EVERY)))
    every = part // saves
    part = every * saves
    settings = {"steps": part * points, "keep_every": part, "save_every": every, "keep": 1}
    return replace(quiet(run, **settings, log_every=min(run.train.log_every, part)), seed=seed)


def quiet(run: Run, **training: Any) -> Run:  # noqa: ANN401
    """The run without validation, pictures and scores during training, and with these settings of training."""
    return replace(run, train=replace(run.train, validate_every=0, sample_every=0, score_every=0, **training))
