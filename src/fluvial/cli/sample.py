"""fluvial sample."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluvial.cli.arguments import Device, class_ids_of, device_of_rank, of_a_run, spent
from fluvial.cli.output import next_commands
from fluvial.run.folder import RunFolder
from fluvial.run.load import Sampler, load
from fluvial.run.sample import SHARD
from fluvial.run.sample import sample as sample_set
from fluvial.sampling import WEIGHTS, sets
from fluvial.sampling.plan import Form
from fluvial.sampling.settings import SampleConfig
from fluvial.training import distributed
from fluvial.utils.checks import at_least
from fluvial.utils.errors import UsageError
from fluvial.utils.files import check_folder
from fluvial.utils.tensors import tensors_checksum

COUNT = 100  # images


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    count: int | None = None
    """Number of images; 100 by default."""
    indices: tuple[int, ...] = ()
    """Indices of the images, in place of a count: to draw chosen ones again."""
    classes: tuple[str, ...] = ()
    """Names or ids of classes, given to the images in turn; all of them by default. Where all classes are called by
    numbers, 10 is the class of the folder 10."""
    seed: int = 0
    """Seed; image i depends on (seed, i) alone."""
    columns: int = 10
    """Images in a row of the grid."""
    gif: bool = True
    """Also draw the denoising trajectory as a GIF."""
    preview: bool = False
    """Also draw the estimate of the finished images at every step as a GIF."""
    npz: bool = True
    """Also write the images as an .npz for evaluators."""
    form: Form = "npz"
    """npz: one file, as ADM's evaluator takes it; png: one file an image; tar: shards of PNG files with class ids;
    latents: shards of tensors, not decoded. More than 1,000 images, and other forms than npz, are written in parts:
    started again, what is there is not made again."""
    shard: int | None = None
    """Images in a part; by default a sixteenth of all, and at most 1,000."""
    out: Path | None = None
    """Folder for the images; RUN/samples by default, RUN/samples-COUNT for a set that is written in parts."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    average: str = "ema"
    """The weights: ema, the moving average; raw, as trained; or the length of a power-function average, such as 0.1, of
    a run with train.ema_lengths."""
    nfe: int | None = None
    """Evaluations of the network for an image, both branches of guidance together, in place of the steps: as many as
    they allow are taken."""
    guide: str = ""
    """RUN or RUN:STEP, a smaller or less trained run that takes the place of the null branch of guidance
    (autoguidance)."""
    autoencoder: str = ""
    """Where the run's autoencoder is, if no longer where it was in training."""
    device: Device = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes CUDA if it is there."""
    sample: SampleConfig
    """Settings of sampling; the run's own by default."""

    def __post_init__(self) -> None:
        at_least(1, self, "columns", *(name for name in ("count", "shard") if getattr(self, name) is not None))
        at_least(0, self, "seed")
        if self.indices and self.count is not None:
            raise ValueError("give --count or --indices, got both")


def sample(arguments: list[str]) -> None:
    folder, run, options = of_a_run(SampleOptions, arguments, "sample", "Draw images from a run folder.")
    settings = options.sample if options.nfe is None else spent(run, options.sample, options.nfe)
    if options.guide and settings.guidance.is_off:
        raise UsageError("--guide has an effect at other weights of guidance than 1: give --guidance, such as 2")
    rank, world = distributed.ranks()
    device = device_of_rank(options.device)
    count = len(options.indices) or options.count or COUNT
    in_parts = options.form != "npz" or count > (options.shard or SHARD) or world > 1
    if options.preview and in_parts:
        raise UsageError(
            f"--preview is drawn of at most {options.shard or SHARD:,} images, in one process and as npz; "
            f"leave it out for images in parts"
        )
    usual = RunFolder(folder).samples
    out = options.out or (usual.with_name(f"{usual.name}-{count}") if in_parts else usual)
    check_folder(out)  # before images are drawn for it
    chosen = {"step": options.step, "average": options.average}
    sampler = load(folder, autoencoder=options.autoencoder, device=device, **chosen)
    if options.guide:
        sampler = sampler.guided_by(_guide(options.guide, device=device, autoencoder=options.autoencoder))
    wanted: dict[str, Any] = {"indices": options.indices} if options.indices else {"count": count}
    wanted |= {
        "classes": class_ids_of(options.classes, sampler.run) or None,
        "seed": options.seed,
        "settings": settings,
    }
    if in_parts:
        _sample_parts(sampler, out, wanted, options, rank, world)
    else:
        _sample_at_once(sampler, out, wanted, options)
        if options.out is None:
            next_commands(folder, "score")


def _guide(name: str, **options: Any) -> Sampler:  # noqa: ANN401 - those of `load`
    """The sampler of RUN or RUN:STEP."""
    if RunFolder(name).exists() or ":" not in name:
        return load(name, **options)
    folder, _, step = name.rpartition(":")
    if not step.isdecimal():
        raise UsageError(f"--guide is RUN or RUN:STEP, got {name}")
    return load(folder, step=int(step), **options)


def _sample_at_once(sampler: Sampler, out: Path, wanted: dict[str, Any], options: SampleOptions) -> None:
    """Draws the images, and writes them with pictures."""
    weights = {WEIGHTS: tensors_checksum(sampler.model.state_dict())}
    if options.out:
        sets.check_same(out, {**sampler.provenance(**_provenance(wanted)), **weights})
    samples = sampler.sample(**wanted, trajectory=options.gif, preview=options.preview)
    samples = replace(samples, about={**samples.about, **weights})
    saved = samples.save(out, columns=options.columns, npz=options.npz, gif=options.gif or options.preview)
    if samples.images.shape[1] not in (1, 3):
        print(f"no pictures: they need 1 or 3 channels, the images have {samples.images.shape[1]}")
    print(_told(len(samples), samples.nfe, **samples.seconds))
    for path in saved:
        print(path)


def _provenance(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {key: wanted[key] for key in ("seed", "settings", "classes")}


def _sample_parts(
    sampler: Sampler, out: Path, wanted: dict[str, Any], options: SampleOptions, rank: int, world: int
) -> None:
    """Draws the images that are not there yet, in parts; of several ranks, those of this one."""
    if not options.npz:
        raise UsageError("--no-npz leaves out samples.npz beside pictures; of images in parts choose the --form")
    try:
        drawn = sample_set(sampler, out, form=options.form, shard=options.shard, rank=rank, world=world, **wanted)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: finished parts stay in {out}; the same command goes on") from None
    of = f"rank {rank} of {world}: " if world > 1 else ""
    if drawn.images:
        print(f"{of}{_told(drawn.images, drawn.nfe, drawn.network, drawn.decoding)}", flush=True)
    if drawn.record is not None:
        already = "" if drawn.images else ", which was there already"
        print(f"{out}: {drawn.plan.count:,} images as {options.form}{already}")
        next_commands(out, "data verify")


def _told(count: int, nfe: Mapping[str, int], network: float, decoding: float) -> str:
    """A line on what was drawn, how fast, and with how many evaluations of the network."""
    rate = count / max(network + decoding, 1e-9)
    speed = f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"
    seconds = f"network {network:.1f} s, decoding {decoding:.1f} s"
    branches = ", ".join(f"{calls} {branch}" for branch, calls in nfe.items())
    total = sum(calls for branch, calls in nfe.items() if branch.startswith(("conditional", "null")))
    return f"{count:,} images ({speed}: {seconds}); NFE {total}: {branches}"
