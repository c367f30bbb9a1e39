"""Import of published weights as a run folder, which can be sampled, scored and trained further."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from fluvial.autoencoders import kl16
from fluvial.config import Run, from_json, to_json
from fluvial.methods import name_of
from fluvial.run.folder import RECORD, RunFolder, record_of
from fluvial.utils.atomic import atomic_folder
from fluvial.utils.tensors import Lazy, check_tensors, write_tensors
from fluvial.utils.translation import WRONG_SHAPES, Translation, renamed, translate
from fluvial.utils.weight_files import WeightFile, read, weight_file
from fluvial.weights import released
from fluvial.weights.description import DTYPES, EXPORT, Precision

Kind = Literal["auto", "sit", "arflow", "flowar", "kl16"]
PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}  # --path-type of SiT's trainer
CLASSES = ("num_classes", "class_num")  # trainer options for the number of classes
LABEL_DROP = ("class_dropout_prob", "label_drop_prob")  # trainer options for the probability of dropping a label
MOST_STEPS = 10**12


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import: the translated tensors and the run they belong to."""

    kind: str
    size: str
    """The published size, such as "XL/2"; "" if there is none like it."""
    part: str = ""
    """The entry of a trainer's checkpoint that was used, such as "ema"; "" if there is only one."""
    tensors: Mapping[str, Lazy]
    dropped: Mapping[str, str]
    """Names of tensors that were left out, with the reason."""
    run: Run | None
    """None for an autoencoder."""
    assumed: str = ""
    """Assumptions about facts that the file does not tell."""

    @property
    def parameters(self) -> int:
        return sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values())


def import_weights(
    file: Path | str,
    out: Path | str,
    *,
    kind: Kind = "auto",
    dtype: Precision | None = None,
    **hints: Any,  # noqa: ANN401
) -> Imported:
    """Imports a weight file as a run folder, or MAR's KL-16 as a diffusers folder.

    The file is a release of SiT, ARFlow, FlowAR or KL-16, a checkpoint of their trainers, a file by `fluvial export`,
    or a folder with one such file. `dtype` is the precision for storage, by default the file's (float64 becomes
    float32); computation is in float32. `hints` are those of `released.from_state_dict`.

    Raises ValueError naming what is wrong with the file, such as an export with another checksum; then nothing is left
    at `out`.
    """
    file, to = weight_file(Path(file)), None if dtype is None else DTYPES[dtype]
    weights = read(file, released.telltales(kind))
    if EXPORT in weights.metadata:
        _check_export(file)
    with atomic_folder(Path(out)) as folder:
        try:
            if EXPORT in weights.metadata:
                return _import_export(weights, kind, to, hints, folder)
            name = released.kind_of(weights.state_dict) if kind == "auto" else kind
            if name == "kl16":
                _no_hints(hints, "KL-16")
                return _import_autoencoder(weights, to, folder)
            return _import_release(weights, name, to, hints, file, folder)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def _import_release(
    weights: WeightFile, kind: str, dtype: torch.dtype | None, hints: dict[str, Any], file: Path, folder: Path
) -> Imported:
    """Imports released weights of a generator, using the training options stored in the checkpoint."""
    told = _classes_told(weights.options) | ({} if kind == "flowar" else _path_told(weights.options))
    if "classes" in hints and told.get("label_drop"):  # the user's number of classes takes precedence
        del told["label_drop"]
    found = released.translated(weights.state_dict, kind=kind, dtype=dtype, **{**told, **hints})
    if "classes" in hints and told.get("classes", hints["classes"]) != hints["classes"]:
        given = f"{hints['classes']:,} classes, as given; the file's own options say {told['classes']:,}"
        found = replace(found, assumed=given)
    found = replace(found, dropped={**weights.dropped, **found.dropped})
    origin = {"file": file.name, "bytes": file.stat().st_size, "weights": weights.part, "left_out": found.dropped}
    origin |= {"assumed": found.assumed} if found.assumed else {}
    RunFolder(folder).create(record_of(found.run, imported=origin), found.tensors)
    return Imported(part=weights.part, **vars(found))


def _import_autoencoder(weights: WeightFile, dtype: torch.dtype | None, folder: Path) -> Imported:
    """Imports KL-16 as a diffusers folder."""
    model, tensors, dropped = kl16.translated(weights.state_dict, dtype=dtype)
    cast(Any, model).save_config(folder)
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    dropped = {**weights.dropped, **dropped}
    return Imported(kind="kl16", size="", part=weights.part, tensors=tensors, dropped=dropped, run=None)


def _check_export(file: Path) -> None:
    """Raises ValueError if an exported file is damaged, in its weights or metadata."""
    try:
        check_tensors(file)
    except ValueError as error:
        raise ValueError(f"{error}; copy or download it again, or repeat `fluvial export`") from error


def _import_export(
    weights: WeightFile, kind: str, dtype: torch.dtype | None, hints: dict[str, Any], folder: Path
) -> Imported:
    """Imports an exported file: names and shapes must be those of the run in its metadata."""
    autoencoder = hints.pop("autoencoder", "")
    _no_hints(hints, "an export, which holds all its settings")
    try:
        record = json.loads(weights.metadata[EXPORT])
        run, progress = from_json(record["run"]), {key: record.pop(key) for key in ("step", "seconds")}
        for key, types in RECORD.items():
            if key in record and not isinstance(record[key], types):
                raise ValueError(f"{key} is {record[key]!r}")
        step, seconds = progress["step"], float(progress["seconds"])
        if type(step) is not int or not (0 <= step <= MOST_STEPS and 0 <= seconds < math.inf):
            raise ValueError(f"step and seconds are {progress['step']!r} and {progress['seconds']!r}")
    except (*WRONG_SHAPES, KeyError) as error:
        raise ValueError(f"the run in its metadata cannot be read: {error}") from error
    if kind not in ("auto", name_of(type(run.method))):
        raise ValueError(f"this is an export of {name_of(type(run.method))}, not of {kind}")
    record = {key: value for key, value in record.items() if key in RECORD}
    if autoencoder:  # its place on this machine
        run = replace(run, autoencoder=replace(run.autoencoder, name=autoencoder))
        record["run"] = to_json(run)
    with released.reading("the run in its metadata"):
        expected = released.expected_tensors(run.method, weights.state_dict)
    translation = Translation({name: renamed(name) for name in expected}, {}, {})
    tensors = translate(weights.state_dict, translation, expected, dtype)
    RunFolder(folder).create(record, tensors, **progress)
    size = released.size_of(run.method)
    return Imported(kind=name_of(type(run.method)), size=size, tensors=tensors, dropped={}, run=run)


def _no_hints(hints: Mapping[str, Any], what: str) -> None:
    """Raises ValueError if there are any hints."""
    if hints:
        raise ValueError(f"{', '.join(hints)} cannot be given for {what}")


def _classes_told(options: Mapping[str, Any]) -> dict[str, Any]:
    """The number of classes and the label-drop probability from a trainer's options, as far as they are there.

    Raises ValueError for a value that is invalid.
    """
    classes = next(((key, options[key]) for key in CLASSES if options.get(key) is not None), None)
    drop = next(((key, options[key]) for key in LABEL_DROP if options.get(key) is not None), None)
    if classes and (type(classes[1]) is not int or classes[1] < 0):
        raise ValueError(f"its options say {classes[0]} {classes[1]!r}, expected an integer of at least 0")
    if drop and (type(drop[1]) not in (int, float) or not 0 <= drop[1] <= 1):
        raise ValueError(f"its options say {drop[0]} {drop[1]!r}, expected a probability")
    return ({"classes": classes[1]} if classes else {}) | ({"label_drop": float(drop[1])} if drop else {})


def _path_told(options: Mapping[str, Any]) -> dict[str, Any]:
    """The interpolant from the options of SiT's and ARFlow's trainers.

    Raises ValueError for a model that does not predict the velocity.
    """
    if (prediction := options.get("prediction", "velocity")) != "velocity":
        raise ValueError(f"the model was trained to predict the {prediction}; only velocities can be sampled here")
    path = options.get("path_type", "Linear")
    if not isinstance(path, str) or path not in PATHS:
        raise ValueError(f"the model was trained on the path {path!r}; there are {', '.join(PATHS)}")
    return {"interpolant": PATHS[path]}
