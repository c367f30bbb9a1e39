"""Comparison of methods: trained for the same time on the same data, then scored in the same way."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import fluvial
from fluvial.config import Run
from fluvial.run.folder import RunFolder
from fluvial.utils import pictures
from fluvial.utils.atomic import write_json
from fluvial.utils.files import brief, make_folder, read_bytes

CALIBRATION = 40  # steps of a trial that measures the speed; the last half is timed


def compare(
    runs: Mapping[str, Run],
    out: Path,
    *,
    seconds: float,
    count: int = 1000,
    device: torch.device | str | None = None,
) -> list[dict[str, Any]]:
    """Trains and scores runs for the same time; returns one row each: images seen, Frechet distance, NFE and so on.

    Each run is trained in `out/<name>` for as many steps as fit into `seconds`, estimated by a short trial; validation,
    pictures and scoring do not count. A run that exists is continued or only scored; ValueError if it had another time
    budget. Also saves compare.json and compare.png, with a row of samples for each run.
    """
    _claim(out, seconds)
    rows, samples = [], {}
    for name, run in runs.items():
        folder = out / name
        there = RunFolder(folder).exists()
        timed = RunFolder(folder).run() if there else _for_seconds(run, seconds, device)
        sampler = fluvial.train(timed, folder, device=device)
        card = fluvial.score(sampler, count=count, device=device)
        scores, sampling = card["scores"], card["sampling"]
        write_json(RunFolder(folder).card, card)
        samples[name] = sampler.sample(10).images
        images = sampler.step * timed.images_per_step
        rows.append(
            {
                "method": name,
                "parameters": sum(p.numel() for p in sampler.model.parameters()),
                "steps": sampler.step,
                "images seen": images,
                "training s": round(sampler.seconds, 1),
                "training images/s": round(images / sampler.seconds),
                "class accuracy": scores.get("class_accuracy", {}).get("value"),
                "Frechet distance": round(scores["frechet_distance"]["value"], 3),
                "of real data": round(scores["frechet_distance"]["real"], 3),
                "NFE": sampling["nfe"],
                "NFE of the null branch": sampling["nfe_null"],
                "sampling images/s": sampling["images_per_second"],
            }
        )
    write_json(out / "compare.json", rows)
    pictures.save_labelled_rows(samples, out / "compare.png")
    return rows


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
    quiet = replace(run.train, validate_every=0, sample_every=0)
    trial = replace(run, train=replace(quiet, steps=CALIBRATION, log_every=CALIBRATION // 2, save_every=CALIBRATION))
    with TemporaryDirectory() as folder:
        fluvial.train(trial, Path(folder) / "trial", device=device)
        log = (Path(folder) / "trial" / "log.jsonl").read_bytes().splitlines()
    images_per_second = [json.loads(line)["images_per_second"] for line in log if b"images_per_second" in line][-1]
    steps = max(1, round(seconds * images_per_second / run.images_per_step))
    return replace(run, train=replace(quiet, steps=steps))
