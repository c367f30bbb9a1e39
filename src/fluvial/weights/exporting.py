"""Export of a run folder: a safetensors file with a model card, a diffusers pipeline, a repository on the hub.

Private paths are removed: only the last part of a path is kept, and no user names.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fluvial.config import from_json
from fluvial.methods import name_of
from fluvial.metrics import report
from fluvial.run.folder import RunFolder
from fluvial.utils.atomic import atomic_folder
from fluvial.utils.places import HUB
from fluvial.utils.tensors import write_tensors
from fluvial.weights.description import DTYPES, EXPORT, NAMES, Precision, described

PLACES = ("path", "test_path", "start", "from", "file")  # entries of run.json that are always paths
PATH = re.compile(r"[/~\\]|\.{1,2}(?:[/\\]|$)|[A-Za-z]:[/\\]|file:")  # the beginning of a path
PATH_INSIDE = re.compile(r"(?<![\w.:/\\-])(?:~|\.{1,2})?(?:/[^\s/'\",;:()]+){2,}/?|\b[A-Za-z]:\\\S+")
TASK = "unconditional-image-generation"  # the hub has no task for class-conditional generation
PAPERS = {"sit": "2401.08740", "arflow": "2501.16085", "flowar": "2412.15205"}
PIPELINE = '''"""Run by DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True).

It needs the library that made this folder: pip install 'fluvial[vae]'
"""

from fluvial.weights.pipeline import FluvialPipeline as FluvialPipeline
'''


def to_safetensors(
    run: Path | str, out: Path | str, *, dtype: Precision | None = None, license: str = "", step: int | None = None
) -> Path:
    """Writes model.safetensors, with the run in its metadata, and a model card README.md to the folder `out`.

    The weights are those used for sampling (averaged), in `dtype`, by default as stored. `fluvial import` turns the
    file into a run folder again. Raises ValueError if there is no such run, or `out` exists.
    """
    with atomic_folder(Path(out)) as folder:
        _write(Path(run), folder, dtype, license, step)
    return Path(out)


def to_hub(
    run: Path | str,
    repo: str,
    *,
    private: bool = True,
    dtype: Precision | None = None,
    license: str = "",
    step: int | None = None,
) -> str:
    """Uploads what `to_safetensors` writes to `repo` (owner/name) on the Hugging Face hub; returns its address.

    The repository and the files are printed before anything is sent. Raises ValueError if there is no such run, the hub
    refuses, or the repository exists and is public although `private` is True.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"a repository on the hub is OWNER/NAME, got {repo!r}")
    with TemporaryDirectory() as folder:
        _write(Path(run), Path(folder), dtype, license, step)
        files = sorted(Path(folder).iterdir())
        listed = ", ".join(f"{file.name} ({file.stat().st_size:,} bytes)" for file in files)
        print(f"to the {'private' if private else 'public'} repository {repo}: {listed}", flush=True)
        try:
            api = HfApi()
            url = api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.model_info(url.repo_id).private:
                raise ValueError("it exists and is public; to publish the weights, set --private False")
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Weights and model card")
        except Exception as error:  # the errors of the hub's client share no base class
            raise ValueError(
                f"cannot upload to {repo!r} ({type(error).__name__}: {error}); log in with `hf auth login`, and name "
                f"the repository OWNER/NAME"
            ) from error
    return str(url)


def _write(run: Path, folder: Path, dtype: Precision | None, license: str, step: int | None) -> None:
    """Writes the safetensors file and the model card."""
    RunFolder(run).run()  # raises the clearest error if it is not a run
    weights, meta = RunFolder(run).weights(step=step)
    record = {**_published(run), "step": meta["step"], "seconds": meta["seconds"]}
    stored = {name: value if dtype is None else value.to(DTYPES[dtype]) for name, value in weights.items()}
    write_tensors(folder / "model.safetensors", stored, {EXPORT: json.dumps(record)})
    (folder / "README.md").write_bytes(
        model_card(run, license, USE, meta, sum(value.numel() for value in weights.values())).encode()
    )


def _published(folder: Path) -> dict[str, Any]:
    """The entries of run.json without paths, and without the text of a file of settings."""
    return public({key: value for key, value in RunFolder(folder).record().items() if key != "config"})


def public(value: Any, key: str = "") -> Any:  # noqa: ANN401 - JSON
    """The JSON value with paths cut to their last part, or removed if that is a user name."""
    if isinstance(value, dict):
        return {name: public(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [public(each, key) for each in value]
    if not isinstance(value, str) or key == "class_names" or value.startswith(HUB):
        return value
    if key in PLACES or PATH.match(value) or ("/" in value and os.path.exists(value)):
        return _last_part(value)
    return PATH_INSIDE.sub(lambda found: _last_part(found[0]), value)


def _last_part(place: str) -> str:
    """The last part of a path; "" for home folders, user names, "." and ".."."""
    path = PurePosixPath(place.replace("\\", "/"))
    users = {Path.home().name, os.environ.get("USER"), os.environ.get("LOGNAME")}
    is_home = path.parent.name.lower() in ("home", "users") or path.name.startswith("~") or path.name in users
    return "" if is_home or path.name in (".", "..") else path.name


USE = """```
pip install fluvial
fluvial import model.safetensors --out runs/here
fluvial sample runs/here --count 16
```

```python
import fluvial

images = fluvial.load("runs/here").sample(16).images  # uint8, (16, c, h, w)
```"""
USE_DIFFUSERS = """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)
images = pipeline(count=16, seed=0).images
```

The code in it is one import of fluvial: `pip install 'fluvial[vae]'`."""


OWN = """
The method {} is not part of fluvial: name the file that registers it with `--plugin FILE.py` in every command, and
import it in Python, or install its package.
"""


def model_card(folder: Path, license: str, use: str, meta: Mapping[str, Any], parameters: int) -> str:
    """The model card: origin, usage, sampling settings and scores of the model."""
    from huggingface_hub import ModelCardData

    record = _published(folder)
    run = from_json(record["run"])
    kind = name_of(type(run.method))
    data = ModelCardData(
        library_name="fluvial", license=license or None, pipeline_tag=TASK, tags=[kind, "flow-matching"]
    )
    images = (run.data.path or run.data.name or "images").removeprefix(HUB)
    distilled = run.train.distillation
    origin = f"trained on {images} for {meta['step']:,} steps of {run.images_per_step:,} images"
    if distilled.steps:
        origin = f"distilled {distilled.told}, in {meta['step']:,} training steps"
    if imported := record.get("imported"):
        source = f"imported from the published file {imported['file']}"
        origin = source if meta.get("weights_only") and "start" not in record else f"{source}, then {origin}"
    lines = [
        f"---\n{data.to_yaml()}\n---\n\n# {NAMES.get(kind, kind)}\n",
        f"{_linked(kind)} with {parameters:,} parameters, {origin}.\n",
        f"## Use\n\n{use}\n{'' if kind in PAPERS else OWN.format(kind)}",
        _table("Sampling", described(run)),
    ]
    if (folder / "score.json").exists():
        try:
            score = report.read(folder / "score.json")
            if score["sampling"].get("train_step") != meta["step"]:
                raise ValueError(f"{folder / 'score.json'} is of other weights")
            lines.append(_table("Measured", _measured(score)))
        except ValueError as error:
            print(f"the model card has no scores: {error}")
    return "\n".join(lines)


def _linked(kind: str) -> str:
    """The name of a method, with a link to its paper if known."""
    return f"[{NAMES[kind]}](https://arxiv.org/abs/{PAPERS[kind]})" if kind in PAPERS else f"A model of {kind}"


def _measured(card: Mapping[str, Any]) -> dict[str, str]:
    """The scores of a card, with the settings they depend on."""
    extractor, reference, images, sampling = (card[part] for part in ("extractor", "reference", "images", "sampling"))
    scores = {
        f"{name.replace('_', ' ')} ({extractor['name']})": f"{found['value']:.4g} +- {found['error']:.2g}"
        for name, found in card["scores"].items()
    }
    weights = f", weights {extractor['hash'][:12]}" if extractor["hash"] else ""
    return scores | {
        "samples": f"{images['count']:,}, classes: {images['labels']}, seed {sampling['seed']}",
        "against": f"{reference['count']} images of {Path(reference['name']).name} ({reference['hash'][:12]})",
        "features": f"{extractor['name']}{weights}, {extractor['resize']}",
        "solver": f"{sampling['solver']}, {sampling['nfe']} + {sampling['nfe_null']} evaluations",
        "guidance": str(sampling["guidance"]),
        "weights": f"{sampling['weights']}, {sampling['dtype']}",
        "pixels": f"rounded {images['rounding']}, {images['cut']}",
        "to mind": public("; ".join(card["warnings"])) or "nothing",
    }


def _table(title: str, values: Mapping[str, Any]) -> str:
    """A Markdown section with a table of two columns."""
    rows = [
        f"| {what} | {value:.4g} |" if isinstance(value, float) else f"| {what} | {value} |"
        for what, value in values.items()
    ]
    return "\n".join([f"## {title}\n\n| | |\n| --- | --- |", *rows]) + "\n"
