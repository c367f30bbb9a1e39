"""What files hold, but for times: to compare what commands have written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

TIMES = ("time", "images_per_second", "seconds", "train_seconds")
TIMES += ("seconds_network", "seconds_decoding")
TIMES += ("made",)  # evaluations of a sweep: what an interrupted one knew from other rows is made again


def content(root):
    """What is below: by path, tensors, arrays, pixels, rows, or JSON, all but times; None for a folder."""
    return {path: held(root / path) for path in names(root)}


def names(root):
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.name not in (".lock", ".saved")]


def temporary(path):
    return any(part.startswith(".") for part in Path(path).parts)


def held(path):
    """What a file holds but for times; an exception for one that is not whole."""
    if path.is_dir():
        return None
    if path.suffix == ".safetensors":
        return {name: hashed(t.reshape(-1).view(torch.uint8).numpy()) for name, t in load_file(path).items()}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays}
    if path.suffix == ".jsonl":
        return rows(path)
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()), path.name)
    if path.suffix in (".png", ".gif"):
        with Image.open(path) as image:
            image.load()
            return image.size, hashed(image.tobytes())
    return hashed(path.read_bytes())


def rows(path):
    """Those of a log, without a last one that is cut short."""
    return [without_times(json.loads(line), "") for line in path.read_bytes().split(b"\n")[:-1]]


def hashed(value):
    return hashlib.sha256(value).hexdigest()


def without_times(value, file):
    """JSON values without times, and without hashes of files that hold times."""
    if isinstance(value, dict):
        gone = {*TIMES, "sha256"} if file != "manifest.json" else set(TIMES)
        return {key: without_times(part, file) for key, part in value.items() if key not in gone}
    return [without_times(part, file) for part in value] if isinstance(value, list) else value
