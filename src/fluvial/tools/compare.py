"""Comparison of runs on the same images: recipes are trained for the same time, and all are scored in the same way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fluvial
from fluvial.config import Run
from fluvial.metrics import report
from fluvial.run.folder import RunFolder
from fluvial.run.load import Sampler
from fluvial.tools.study.same_images import check_same_data
from fluvial.tools.study.speed import seconds_of_training
from fluvial.tools.study.study import quiet
from fluvial.utils import pictures
from fluvial.utils.atomic import write_json
from fluvial.utils.files import brief, make_folder, read_bytes


def compare(
    runs: Mapping[str, Run | Path],
    out: Path,
    *,
    seconds: float,
    count: int = 1000,
    device: torch.device | str | None = None,
) -> list[dict[str, Any]]:
    """Scores runs on the same images; returns one row each: images seen, Frechet distance, NFE and so on.

    A run folder (a Path) is measured as it is, and nothing in it is changed. A `Run` is trained in `out/<name>` for as
    many steps as fit into `seconds`, estimated by a short trial; validation, pictures and scoring do not count. If it
    exists it is continued or only scored; ValueError if it had another time budget. Also saves the card of each,
    compare.json and compare.png, with a row of samples for each run. A row whose card is not comparable with the first
    says so as "differs". Raises ValueError, before anything is written, for runs of different data.
    """
    settings = {name: RunFolder(run).run() if isinstance(run, Path) else run for name, run in runs.items()}
    check_same_data({name: run.data for name, run in settings.items()})
    if not all(isinstance(run, Path) for run in runs.values()):
        _claim(out, seconds)
    rows, samples, kept = [], {}, {}
    for name, run in runs.items():
        if isinstance(run, Path):
            sampler, file = fluvial.load(run, device=device), out / f"score-{name.replace('/', '-')}.json"
        else:
            sampler, file = _trained(run, out / name, seconds, device), RunFolder(out / name).card
        card = kept[name] = fluvial.score(sampler, count=count, device=device)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, card)
        samples[name] = sampler.sample(10).images
        rows.append(_row(name, sampler, card))
        if found := report.differences(next(iter(kept.values())), card):
            rows[-1]["differs"] = "; ".join(found)
    write_json(out / "compare.json", rows)
    pictures.save_labelled_rows(samples, out / "compare.png")
    return rows


def _trained(run: Run, folder: Path, seconds: float, device: torch.device | str | None) -> Sampler:
    """The run trained for the time, or gone on with if it is there."""
    there = RunFolder(folder)
    timed = there.run() if there.exists() else _for_seconds(run, seconds, device)
    return fluvial.train(timed, folder, device=device)


def _row(name: str, sampler: Sampler, card: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row of the table."""
    scores, sampling = card["scores"], card["sampling"]
    images, seconds = sampler.step * sampler.run.images_per_step, sampler.seconds
    distance = "fid" if "fid" in scores else "frechet_distance"
    real = scores[distance].get("real")
    return {
        "method": name,
        "parameters": sum(p.numel() for p in sampler.model.parameters()),
        "steps": sampler.step,
        "images seen": images,
        "training s": round(seconds, 1),
        "training images/s": round(images / seconds) if seconds else None,
        "class accuracy": scores.get("class_accuracy", {}).get("value"),
        "FID" if distance == "fid" else "Frechet distance": round(scores[distance]["value"], 3),
        "of real data": None if real is None else round(real, 3),
        "NFE": sampling["nfe"],
        "NFE of the null branch": sampling["nfe_null"],
        "sampling images/s": sampling["images_per_second"],
    }


def _claim(out: Path, seconds: float) -> None:
    """Writes the time budget to the folder, or raises ValueError if the runs there had another."""
    note, there = out / "budget.json", seconds
    if note.exists():
        try:
            there = float(json.loads(read_bytes(note))["seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{note} cannot be read ({brief(error)}); choose another folder with --out") from error
    if there != seconds:
        raise ValueError(f"{out} compares runs of {there} s, asked for {seconds} s; choose another folder with --out")
    make_folder(out)
    write_json(note, {"seconds": seconds})


def _for_seconds(run: Run, seconds: float, device: torch.device | str | None) -> Run:
    """The run with as many steps as fit into this time, without validation and pictures during training."""
    a_step, _ = seconds_of_training(run, device)
    return quiet(run, steps=max(1, round(seconds / a_step)))
