"""fluvial distill."""

from dataclasses import dataclass
from pathlib import Path

from fluvial.cli.arguments import Device, device_of_rank, of_a_run
from fluvial.cli.output import next_commands
from fluvial.run.distill import MOST_MINUTES
from fluvial.run.distill import distill as distill_run
from fluvial.run.load import load
from fluvial.sampling.settings import SampleConfig
from fluvial.training import distributed
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder

DESCRIPTION = """Distil a run into one that samples in a few steps, with the guidance of the run in its weights.

The run draws trajectories with its own sampling settings, or those given, and a copy of it learns to follow them in
--steps; or with --images the copy learns from the images that the run was trained on. --minutes is the time for both;
without it 10,000 trajectories are drawn, and 5,000 training steps taken. The same command goes on where it stopped. The
new folder is a run like any other."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    out: Path | None = None
    """Folder of the new run; RUN-STEPS-steps by default."""
    steps: int = 4
    """Steps that the new run samples in; of FlowAR, at each scale."""
    minutes: float | None = None
    """Time in all: how many trajectories and training steps that is, is measured."""
    trajectories: int | None = None
    """Trajectories that are drawn and stored, 10,000 by default; 0 draws new ones in every training step."""
    images: bool = False
    """Learn from the images of the run, with the velocities that it has there, in place of trajectories."""
    data: str | None = None
    """The images to learn from, where they are no longer where the run has them, or others: as `fluvial train` takes
    them."""
    updates: int | None = None
    """Training steps; 5,000 by default. More than the run has taken go on with it."""
    batch: int | None = None
    """Trajectories in a training step, or with --images training examples; by default such that the network is
    evaluated as often as in one of the run's."""
    lr: float | None = None
    """Peak learning rate; that of the run by default."""
    seed: int | None = None
    """Seed of the trajectories and of their order in training; that of the run by default."""
    step: int | None = None
    """Training step of the checkpoint that is distilled; the newest by default."""
    average: str = "ema"
    """The weights that are distilled: ema, raw, or the length of a power-function average."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    start_over: bool = False
    """Train from the start where none of the run's checkpoints is whole."""
    sample: SampleConfig
    """Settings of sampling that the trajectories are drawn with; the run's own by default."""

    def __post_init__(self) -> None:
        names = ("updates", "batch", "step")
        at_least(1, self, "steps", *(name for name in names if getattr(self, name) is not None))
        at_least(0, self, *(name for name in ("trajectories", "seed") if getattr(self, name) is not None))
        if self.minutes is not None and not 0 < self.minutes < MOST_MINUTES:
            raise ValueError(f"minutes must be above 0 and below {MOST_MINUTES:,.0f}, got {self.minutes:g}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr:g}")
        if self.images and self.trajectories is not None:
            raise ValueError("give --images or --trajectories, got both")
        if self.data == "":
            raise ValueError("data must be a folder, a file or a name, got ''")
        if self.data is not None and not self.images:
            raise ValueError("--data names images to learn from: give --images with it")
        if self.minutes is not None and self.updates is not None:
            raise ValueError("give --minutes or --updates, got both")


def distill(arguments: list[str]) -> None:
    folder, run, options = of_a_run(DistillOptions, arguments, "distill", DESCRIPTION)
    if run.train.distillation.steps:
        raise UsageError(f"{folder} was distilled itself ({run.train.distillation.told}): give the run that it is from")
    named = folder if folder.name not in ("", "..") else folder.resolve()
    out = options.out or named.with_name(f"{folder.name}-{options.steps}-step{'s' if options.steps > 1 else ''}")
    if out.resolve() == folder.resolve():
        raise UsageError(f"--out {out} is the run itself: the distilled one needs a folder of its own")
    check_folder(out)
    chosen = {"step": options.step, "average": options.average, "autoencoder": options.autoencoder}
    device = device_of_rank(options.device)
    sampler = distill_run(
        load(folder, device=device, **chosen),
        out,
        steps=options.steps,
        minutes=options.minutes,
        trajectories=options.trajectories,
        images=options.data or options.images,
        updates=options.updates,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        settings=options.sample,
        device=device,
        start_over=options.start_over,
    )
    if distributed.ranks()[0] == 0:
        print(f"{out}: {sampler.step:,} training step{'' if sampler.step == 1 else 's'} in {sampler.seconds:.0f} s")
        next_commands(out, "sample", "score")
