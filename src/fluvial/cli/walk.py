"""fluvial walk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluvial.cli.arguments import Device, class_ids_of, device_of_rank, of_a_run, spent
from fluvial.cli.output import check_unused
from fluvial.config import Run
from fluvial.run.load import Sampler, load
from fluvial.run.walk import FRAMES, SIDE, between_seeds, image_of, plane, walk
from fluvial.sampling.settings import SampleConfig
from fluvial.utils import pictures
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder

COLUMNS = 12  # of frames in walk.png
DESCRIPTION = """Draw the images between two, as a GIF, or between four, as a grid; or at a place between four seeds.

An image is CLASS:INDEX, or INDEX, as `fluvial sample --classes CLASS --indices INDEX` draws it. Noises are mixed on the
sphere, and classes by their label embeddings."""


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    start: str = ""
    """Image to begin with: CLASS:INDEX, or INDEX."""
    end: str = ""
    """Image to end with."""
    frames: int | None = None
    """Images from one to the other, both included; 24 by default."""
    corners: tuple[str, ...] = ()
    """Four images, in place of two: a plane between them is drawn, from the first two down to the last two."""
    side: int | None = None
    """Images along each side of the plane; 8 by default."""
    seeds: tuple[int, ...] = ()
    """Four seeds, in place of images: the images of `fluvial sample`, with noise between those of the seeds."""
    at: tuple[float, ...] = ()
    """Place between the four seeds, two numbers from 0 to 1: 0 0 is the first, 1 0 the second, 0 1 the third."""
    count: int | None = None
    """Images of --seeds; 16 by default."""
    classes: tuple[str, ...] = ()
    """Names or ids of classes, given to the images of --seeds in turn; all of them by default."""
    columns: int | None = None
    """Images of --seeds in a row; 10 by default."""
    seed: int = 0
    """Seed of the noise that the indices stand for."""
    out: Path | None = None
    """Folder for the pictures; RUN/walk by default."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    nfe: int | None = None
    """Evaluations of the network for an image, both branches of guidance together, in place of the steps."""
    average: str = "ema"
    """The weights: ema, the moving average; raw, as trained; or the length of a power-function average."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    sample: SampleConfig
    """Settings of sampling; the run's own by default."""

    def __post_init__(self) -> None:
        at_least(2, self, *(name for name in ("frames", "side") if getattr(self, name) is not None))
        at_least(1, self, *(name for name in ("count", "columns") if getattr(self, name) is not None))
        for name in ("at", "count", "classes", "columns"):
            if getattr(self, name) not in (None, ()) and not self.seeds:
                raise ValueError(f"--{name} is for --seeds")
        if self.seeds and self.seed:
            raise ValueError("--seeds stand in place of --seed: give one of them")
        if self.seeds and (len(self.seeds), len(self.at)) != (4, 2):
            raise ValueError(f"--seeds takes four and --at two numbers, got {len(self.seeds)} and {len(self.at)}")
        at_least(0, self, "seed")


def walk_(arguments: list[str]) -> None:
    folder, run, options = of_a_run(WalkOptions, arguments, "walk", DESCRIPTION)
    ways = bool(options.corners), bool(options.start or options.end), bool(options.seeds)
    if sum(ways) != 1 or bool(options.start) != bool(options.end):
        raise UsageError("fluvial walk needs --from and --to, such as cat:3 and dog:8, or four --corners or --seeds")
    if options.corners and len(options.corners) != 4:
        raise UsageError(f"--corners takes four images, got {len(options.corners)}")
    unused = options.side if not options.corners else options.frames
    if unused is not None or (options.seeds and options.frames is not None):
        raise UsageError("--frames is for --from and --to, and --side for --corners")
    settings = options.sample if options.nfe is None else spent(run, options.sample, options.nfe)
    _check_images(run, options)
    out = options.out or folder / "walk"
    check_folder(out)
    if options.out:
        check_unused(out)
    device = device_of_rank(options.device)
    sampler = load(folder, autoencoder=options.autoencoder, device=device, step=options.step, average=options.average)
    if (channels := sampler.autoencoder.image_channels or sampler.run.method.channels) not in (1, 3):
        raise ValueError(f"pictures need 1 or 3 channels, the images of {folder} have {channels}")
    for path in _drawn(sampler, options, settings, out):
        print(path)


def _drawn(sampler: Sampler, options: WalkOptions, settings: SampleConfig, out: Path) -> list[Path]:
    """The files of the walk, of the plane, or of the images between seeds."""
    if options.seeds:
        x, y = options.at
        how: Any = {"classes": class_ids_of(options.classes, sampler.run) or None, "settings": settings}
        found = between_seeds(sampler, options.seeds, (x, y), options.count, **how)
        return found.save(out, columns=options.columns or 10, gif=False)
    if options.corners:
        side = options.side or SIDE
        found = plane(sampler, options.corners, side, seed=options.seed, settings=settings)
        return found.save(out, columns=side, gif=False)
    frames = options.frames or FRAMES
    found = walk(sampler, options.start, options.end, frames, seed=options.seed, settings=settings)
    there = [*found.images.split(1)]
    saved = found.save(out, columns=COLUMNS, gif=False)
    return [*saved, pictures.save_gif([*there, *there[-2:0:-1]], out / "walk.gif", columns=1)]  # there and back


def _check_images(run: Run, options: WalkOptions) -> None:
    """Raises UsageError, before weights are read, for images that there are not."""
    corners = [("corners", place) for place in options.corners]
    ends = [] if options.seeds else [("from", options.start), ("to", options.end)]
    for option, place in corners or ends:
        try:
            image_of(run, place)
        except ValueError as error:
            raise UsageError(f"--{option} {place}: {error}") from error
