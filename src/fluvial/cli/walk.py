"""fluvial walk."""

from dataclasses import dataclass
from pathlib import Path

from fluvial.cli.arguments import Device, device_of_rank, of_a_run, spent
from fluvial.cli.output import check_unused
from fluvial.config import Run
from fluvial.run.load import load
from fluvial.run.walk import FRAMES, SIDE, image_of, plane, walk
from fluvial.sampling.settings import SampleConfig
from fluvial.utils import pictures
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder

COLUMNS = 12  # of frames in walk.png
DESCRIPTION = """Draw the images between two, as a GIF, or between four, as a grid.

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
        at_least(0, self, "seed")


def walk_(arguments: list[str]) -> None:
    folder, run, options = of_a_run(WalkOptions, arguments, "walk", DESCRIPTION)
    if bool(options.corners) == bool(options.start or options.end) or bool(options.start) != bool(options.end):
        raise UsageError("fluvial walk needs --from and --to, such as cat:3 and dog:8, or four --corners")
    if options.corners and len(options.corners) != 4:
        raise UsageError(f"--corners takes four images, got {len(options.corners)}")
    if (options.frames if options.corners else options.side) is not None:
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
    if options.corners:
        side = options.side or SIDE
        found = plane(sampler, options.corners, side, seed=options.seed, settings=settings)
        saved = [*found.save(out, columns=side, gif=False)]
    else:
        frames = options.frames or FRAMES
        found = walk(sampler, options.start, options.end, frames, seed=options.seed, settings=settings)
        saved = [*found.save(out, columns=COLUMNS, gif=False)]
        there = [*found.images.split(1)]
        saved.append(pictures.save_gif([*there, *there[-2:0:-1]], out / "walk.gif", columns=1))  # there and back
    for path in saved:
        print(path)


def _check_images(run: Run, options: WalkOptions) -> None:
    """Raises UsageError, before weights are read, for images that there are not."""
    corners = [("corners", place) for place in options.corners]
    for option, place in corners or [("from", options.start), ("to", options.end)]:
        try:
            image_of(run, place)
        except ValueError as error:
            raise UsageError(f"--{option} {place}: {error}") from error
