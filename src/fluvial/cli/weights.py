"""fluvial import, export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from fluvial.cli.arguments import parse, positional
from fluvial.cli.output import console
from fluvial.utils.checks import at_least
from fluvial.utils.extras import require
from fluvial.weights import description, exporting, importing


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    out: Path
    """Folder of the run; of KL-16, a folder to name as the autoencoder."""
    kind: importing.Kind = "auto"
    """Method or autoencoder of the weights; told from their names by default."""
    dtype: Literal["file", "fp32", "bf16"] = "file"
    """Storage of the weights: as in the file, or in 4 or 2 bytes each. They are computed with in float32."""
    autoencoder: str = ""
    """Where the autoencoder is; by default that of the release, on the Hugging Face hub or in kl16.ckpt."""
    classes: int = 0
    """Classes of the model, where the file does not tell whether its label table has a row for no class: one row more
    than classes if it has."""
    heads: int = 0
    """Attention heads, of SiT and FlowAR in sizes that were not published; told from the width by default."""
    scales: tuple[int, ...] = ()
    """FlowAR: rows of tokens of each scale, coarse to fine, if they do not double up to the image."""
    image_size: tuple[int, ...] = ()
    """Height and width in pixels, where the image is not square."""

    def __post_init__(self) -> None:
        if len(self.image_size) > 2:
            raise ValueError(f"--image-size takes one or two numbers, got {' '.join(map(str, self.image_size))}")
        at_least(0, self, "heads", "classes")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    to: Literal["safetensors", "diffusers", "hub"]
    """One file with a model card; a folder for DiffusionPipeline.from_pretrained; or the Hugging Face hub."""
    out: Path | None = None
    """Folder to write; RUN/export-<to> by default."""
    repo: str = ""
    """OWNER/NAME on the hub, made if it is not there."""
    private: bool = True
    """Keep the repository on the hub private; --no-private publishes it."""
    dtype: Literal["file", "fp32", "bf16"] = "file"
    """Storage of the weights in the file: as in the run, or in 4 or 2 bytes each."""
    step: int | None = None
    """Training step of the checkpoint; the newest by default."""
    license: str = ""
    """Licence that the model card names, such as mit."""

    def __post_init__(self) -> None:
        if (self.to == "hub") != bool(self.repo):
            raise ValueError("--repo OWNER/NAME goes with --to hub")
        if (self.to == "hub" and self.out is not None) or (self.to == "diffusers" and self.dtype != "file"):
            raise ValueError(f"--to {self.to} has no --{'out' if self.to == 'hub' else 'dtype'}")


def export(arguments: list[str]) -> None:
    run, rest = positional(arguments, "export", "RUN", "a run folder, such as runs/digits-arflow", has_own_help=True)
    options = parse(ExportOptions, None, rest, "fluvial export RUN", "Make files of a run to publish.")
    dtype = None if options.dtype == "file" else options.dtype
    out = options.out or Path(run) / f"export-{options.to}"
    how: Any = {"license": options.license, "step": options.step}
    match options.to:
        case "safetensors":
            exporting.to_safetensors(run, out, dtype=dtype, **how)
        case "diffusers":
            require("diffusers", extra="vae", why="a pipeline of diffusers")
            from fluvial.weights.pipeline import to_diffusers

            to_diffusers(run, out, **how)
        case "hub":
            print(exporting.to_hub(run, options.repo, private=options.private, dtype=dtype, **how))
            return
    for path in sorted(out.rglob("*")):
        if path.is_file():
            print(path)


def import_(arguments: list[str]) -> None:
    meaning = (
        "weights of SiT, ARFlow, FlowAR or KL-16 (.pt, .pth, .ckpt), or what `fluvial export` wrote (.safetensors)"
    )
    file, rest = positional(arguments, "import", "FILE", meaning, has_own_help=True)
    description = "Make a run folder of published weights: to sample, score, and train further."
    options = parse(ImportOptions, None, rest, "fluvial import FILE", description)
    hints = {name: value for name in ("classes", "heads", "scales", "autoencoder") if (value := getattr(options, name))}
    if options.image_size:
        hints["image_size"] = (*options.image_size, options.image_size[-1])[:2]
    dtype = None if options.dtype == "file" else options.dtype
    found = importing.import_weights(file, options.out, kind=options.kind, dtype=dtype, **hints)
    console().print(_summary(file, found))
    print(f"{options.out}: {'an autoencoder' if found.run is None else 'a run'}")


def _summary(file: str, found: importing.Imported) -> Table:
    table = Table("what", title=Path(file).name, title_justify="left")
    table.add_column("value", overflow="fold")
    of_size = f"-{found.size}" if found.size else ", of no published size"
    name = description.NAMES.get(found.kind, found.kind)
    table.add_row("found", f"{name}{of_size if found.run else ''}, {found.parameters:,} parameters")
    if found.part:
        table.add_row("taken", f"{found.part} of a trainer's checkpoint")
    if found.assumed:
        table.add_row("assumed", found.assumed)
    reasons = {
        reason: [key for key in found.dropped if found.dropped[key] == reason] for reason in found.dropped.values()
    }
    for reason, keys in reasons.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        table.add_row("left out", f"{keys[0]}{more}: {reason}")
    for what, text in ({} if found.run is None else description.described(found.run)).items():
        table.add_row(what, text)
    return table
