"""fluvial score."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from fluvial.cli.arguments import Device, check_output, device_of, of_a_run, parse, positional, spent
from fluvial.cli.output import console
from fluvial.metrics import report
from fluvial.metrics.choice import lacking
from fluvial.metrics.features import NAMES
from fluvial.run.folder import RunFolder
from fluvial.run.score import score as measure_images
from fluvial.sampling.settings import SampleConfig
from fluvial.training import distributed
from fluvial.utils.atomic import write_json
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import make_folder
from fluvial.utils.places import closest

WHAT = (
    "a run folder, whose samples are drawn; or images: a folder, an .npz of the ADM suite, what `fluvial sample` "
    "wrote, a data set (NAME:SPLIT); or a card, to put beside another with --against"
)
DESCRIPTION = """Measure images against real ones, and write a card: each number with what it depends on.

FID, sFID, KID and Inception Score are those of the Inception network; with other features the same formulas are called
Frechet, spatial Frechet and kernel distance, and classifier score. Errors are one standard error."""
DIGITS = {"value": 4, "error": 2, "bias": 2, "real": 4}  # columns of the printed card, and their digits
LINES = {  # of the printed card: what there is to say about the numbers
    "extractor": ("name", "hash", "resize", "dtype"),
    "reference": ("name", "hash", "count", "neighbours", "cut", "chosen"),
    "images": ("count", "shape", "cut", "rounding", "labels"),
    "sampling": (
        *(
            "solver",
            "nfe",
            "nfe_null",
            "guidance",
            "guidance_interval",
            "guidance_learned",
            "distilled",
            "weights",
            "dtype",
            "seed",
            "seed_rule",
        ),
        *("train_step", "train_seconds", "images_per_second", "seconds_network", "seconds_decoding"),
    ),
    "made_by": ("fluvial", "torch", "device", "ranks"),
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Reference, feature extractor and output of a score."""

    reference: str = ""
    """Images to measure against: for a run test or train, the parts of its own data (test by default, which are its
    validation images; train if it has none); or a folder, a
    data set (NAME:SPLIT), an .npz of the ADM suite, or a file that --keep wrote."""
    training: str = ""
    """Training images beside another reference: for the classes of samples, and for --nearest."""
    features: str = ""
    """The feature extractor (also --extractor): pixels, inception, efficientnet-lite0, dinov2, clip, or a TorchScript
    file. By default that of the card given with --against; pixels for the built-in digits; inception, or where it is
    not installed the best of the others that are there."""
    weights: str = ""
    """File of the weights of inception; folder or repository of those of dinov2 and clip."""
    size: int = 0
    """Side of the square that images of folders and data sets are cropped to, as ADM does; as they are by default."""
    channels: Literal[1, 3] = 3
    """1 reads them as grey; the samples of a run are what they are."""
    nearest: bool = False
    """Also look for copies: draw the samples nearest to training images, and say how near is usual."""
    keep: Path | None = None
    """Also write the statistics of the images to this .safetensors, to be a --reference later."""
    against: Path | None = None
    """A card to compare with; refused if it differs in what matters."""
    out: Path | None = None
    """Where to write the card; RUN/score.json for a run, nowhere for images, by default."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""

    def __post_init__(self) -> None:
        at_least(0, self, "size")
        check_output("--keep", self.keep, ".safetensors")
        check_output("--out", self.out, ".json")


@dataclass(frozen=True, kw_only=True)
class MeasuredRun(Measured):
    count: int = 1000
    """Number of images to draw and measure."""
    seed: int = 0
    """Seed; image i depends on (seed, i) alone."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    average: str = "ema"
    """The weights: ema, the moving average; raw, as trained; or the length of a power-function average, such as 0.1, of
    a run with train.ema_lengths."""
    nfe: int | None = None
    """Evaluations of the network for an image, both branches of guidance together, in place of the steps."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    sample: SampleConfig
    """Settings of sampling; the run's own by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, self, "count")
        at_least(0, self, "seed")


def score(arguments: list[str]) -> None:
    if arguments[:1] == ["--help-all"]:
        of_a_run(MeasuredRun, arguments, "score", DESCRIPTION)  # which ends with the help
    name, rest = positional(arguments, "score", "WHAT", WHAT)
    path = Path(name).expanduser()
    is_run = RunFolder(path).exists()
    if is_run:
        _, run, options = of_a_run(MeasuredRun, arguments, "score", DESCRIPTION)
        if options.nfe is not None:
            options = replace(options, sample=spent(run, options.sample, options.nfe))
    else:
        options = parse(Measured, Measured(), rest, f"fluvial score {name}", DESCRIPTION)
    there = None if options.against is None else report.read(options.against)  # before hours of work
    if there is not None and path.suffix != ".json":
        _check_alike(there, options)
    if path.suffix == ".json":
        if there is None:
            raise UsageError("a card is put beside another: name it with --against")
        return _put_beside(report.read(path), name, there, str(options.against))
    if not is_run and not options.reference:
        state = "is not a run folder (it has no run.json)" if path.exists() else f"does not exist{closest(name)}"
        wrong = [
            f"{name} {state}, and images need a --reference: real images, such as digits:test or a folder",
            lacking(options.features) if options.features else "",
        ]
        raise UsageError("; and ".join(filter(None, wrong)))
    out = options.out or (RunFolder(path).card if is_run else None)
    if is_run and options.size and options.reference in ("", "test", "train") and not options.training:
        raise UsageError("--size is for images that are named; the run's own data are cut as in training")
    if options.nearest and out is None:
        raise UsageError("--nearest draws a picture beside the card: say where with --out")
    card, first = _card(name, options, out)
    if not first:
        return
    written = [options.keep]
    if out is not None:
        make_folder(out.parent)
        write_json(out, card)
        written += [_picture(out) if options.nearest else None, out]
    _show(card)
    for file in written:
        if file is not None:
            print(file)
    if out is not None and there is None:
        print(f"next: fluvial score OTHER --against {shlex.quote(str(out))}")
    if there is not None:
        _put_beside(card, name, there, str(options.against))


def _check_alike(there: Mapping[str, Any], options: Measured) -> None:
    """Raises UsageError for options that make a card which cannot be put beside the one that is there."""
    count, features = there["images"].get("count"), there["extractor"].get("name")
    asked = {"--features": (options.features if options.features in NAMES else features, features)}
    if isinstance(options, MeasuredRun):
        asked["--count"] = (options.count, count)
    if wrong := [f"{name} {here}, where it has {known}" for name, (here, known) in asked.items() if here != known]:
        raise UsageError(f"{options.against} cannot be compared with {'; '.join(wrong)}: give the same")


def _card(name: str, options: Measured, out: Path | None) -> tuple[dict[str, Any], bool]:
    """The card, and whether this is the first of the ranks, which alone has it."""
    device = device_of(options.device)
    with distributed.world(device) as (world, device):
        wanted: dict[str, Any] = {
            "reference": options.reference,
            "training": options.training,
            "features": options.features or _features_of(options.against),
            "weights": options.weights,
            "size": options.size,
            "channels": options.channels,
            "nearest": _picture(out) if options.nearest and out is not None else None,
            "keep": options.keep,
            "device": device,
            "world": world,
        }
        if isinstance(options, MeasuredRun):
            wanted |= {
                "count": options.count,
                "seed": options.seed,
                "settings": options.sample,
                "autoencoder": options.autoencoder,
                "step": options.step,
                "average": options.average,
            }
        return measure_images(name, **wanted), world.first


def _features_of(card: Path | None) -> str:
    """The features of a card to compare with, if they have a name; else ""."""
    name = "" if card is None else report.read(card)["extractor"].get("name")
    return name if name in NAMES else ""


def _picture(out: Path) -> Path:
    """Beside the card, with its name."""
    return out.with_name("nearest.png" if out.name == "score.json" else f"{out.stem}-nearest.png")


def _show(card: Mapping[str, Any]) -> None:
    """The scores as a table, and under it all that they depend on."""
    features, reference = card["extractor"]["name"], card["reference"]["name"]
    columns = {"value": "value", "error": "error", "bias": "of it bias"}
    if card["real"]["count"]:
        columns["real"] = f"{card['real']['count']:,} real images"
    table = Table("", *columns.values(), title=card["of"], title_justify="left")
    table.columns[0].no_wrap = True
    for name, found in card["scores"].items():
        numbers = [f"{found[key]:.{DIGITS[key]}g}" if key in found else "" for key in columns]
        table.add_row(f"{name.replace('_', ' ')} ({features})", *numbers)
    printer = console()
    if why := card["extractor"].get("why"):
        printer.print(f"measured in {features}, which gives no FID: {why}", highlight=False, soft_wrap=True)
    if why := card["reference"].get("why"):
        printer.print(f"measured against the training images: {why}", highlight=False, soft_wrap=True)
    printer.print(table)
    printer.print(f"against {reference}", highlight=False, soft_wrap=True)
    for part, keys in LINES.items():
        known = [(key, card[part].get(key)) for key in keys]
        told = ", ".join(f"{key} {report.short(value)}" for key, value in known if value not in (None, "", {}))
        if told:
            printer.print(f"{part}: {told}", highlight=False, markup=False, soft_wrap=True)
    for warning in card["warnings"]:
        printer.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)


def _put_beside(a: Mapping[str, Any], name: str, b: Mapping[str, Any], other: str) -> None:
    """Two cards in one table. Raises ValueError if they differ in what matters."""
    print(f"A: {name}\nB: {other}")
    table = Table("", "A", "B", "A - B", caption="A - B in standard errors of the difference", caption_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for row in report.compared(a, b):
        values = [f"{e.value:.3g} ±{e.error:.2g}" for e in (row.a, row.b)]
        title = f"{row.name.replace('_', ' ')} ({a['extractor']['name']})"
        table.add_row(title, *values, f"{row.errors:+.1f}")
    console().print(table)
    left_out = [name for name in report.OF_TRAINING if name in a["scores"] or name in b["scores"]]
    if left_out and not report.same_training(a, b):
        print(f"left out, as the training images differ: {', '.join(left_out)}")
    if unknown := report.unknown(a, b):
        print(f"not known, and it matters: {', '.join(unknown)}")
