"""Several methods side by side: trained for the same time on the same data, scored alike."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fluvial.config import Run
from fluvial.run import experiment
from fluvial.run import score as scoring
from fluvial.utils import pictures
from fluvial.utils.atomic import write_json
from fluvial.utils.files import brief, read_bytes

CALIBRATION = 40  # steps taken to learn how long a step lasts; the last half is timed


def compare(
    runs: Mapping[str, Run],
    out: Path,
    *,
    seconds: float,
    count: int = 1000,
    device: torch.device | str | None = None,
) -> list[dict[str, Any]]:
    """One row a run: parameters, images seen, class accuracy, Frechet distance, evaluations, images/s.

    Each run is trained in `out/<name>` for as many steps as fit into `seconds`, told from a short trial; evaluation,
    pictures and scoring do not count. A run that is there already is continued or scored as it is; ValueError if it had
    another budget. Also saves compare.json and compare.png, a row of samples for each run.
    """
    _claim(out, seconds)
    rows, samples = [], {}
    for name, run in runs.items():
        folder = out / name
        there = (folder / "run.json").exists()
        timed = experiment.read_run(folder) if there else _for_seconds(run, seconds, device)
        trained = experiment.train(timed, folder, device=device)
        card = scoring.score_run(folder, count=count, device=device)
        scores, sampling = card["scores"], card["sampling"]
        write_json(folder / "score.json", card)
        samples[name] = trained.sample(10).images
        images = trained.step * experiment.images_per_step(timed)
        rows.append(
            {
                "method": name,
                "parameters": sum(p.numel() for p in trained.model.parameters()),
                "steps": trained.step,
                "images seen": images,
                "training s": round(trained.seconds, 1),
                "training images/s": round(images / trained.seconds),
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
    """Notes the budget in the folder, or raises ValueError if the runs there had another."""
    note, there = out / "budget.json", seconds
    if note.exists():
        try:
            there = float(json.loads(read_bytes(note))["seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{note} cannot be read ({brief(error)}); choose another folder with --out") from error
    if there != seconds:
        raise ValueError(f"{out} compares runs of {there} s, asked for {seconds} s; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, {"seconds": seconds})


def _for_seconds(run: Run, seconds: float, device: torch.device | str | None) -> Run:
    """The run with as many steps as last this long, without evaluation and pictures on the way."""
    quiet = replace(run.train, eval_every=0, sample_every=0)
    trial = replace(run, train=replace(quiet, steps=CALIBRATION, log_every=CALIBRATION // 2, save_every=CALIBRATION))
    with TemporaryDirectory() as folder:
        experiment.train(trial, Path(folder) / "trial", device=device)
        log = (Path(folder) / "trial" / "log.jsonl").read_text("utf-8").splitlines()
    images_per_second = [json.loads(line)["images_per_second"] for line in log if "images_per_second" in line][-1]
    steps = max(1, round(seconds * images_per_second / experiment.images_per_step(run)))
    return replace(run, train=replace(quiet, steps=steps))
