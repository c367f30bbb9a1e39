"""A process of a study: it measures the speed of a run, or trains a run with one seed and measures it.

python -m fluvial.tools.study.work FOLDER NAME speed|SEED DEVICE
"""

import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

import fluvial
from fluvial.config import to_json
from fluvial.run.load import Sampler, load
from fluvial.tools.bench import machine
from fluvial.tools.study.files import FILE, RESULTS, folder_of, kept_steps, read, result_file, speed_file
from fluvial.tools.study.plan import read_study
from fluvial.tools.study.speed import speed_of
from fluvial.tools.study.study import Speed, Study, Wanted, missing
from fluvial.utils.atomic import check_unlocked, write_json
from fluvial.utils.files import make_folder
from fluvial.utils.python_file import import_those_of_parent

GRACE = 120.0  # seconds for which the folder of a run is waited for
LOOKS_EVERY = 0.5  # seconds
SHOWN = 10  # samples of a run that the page shows
FEW = 20  # samples that are measured to see whether they can be


def train_and_measure(study: Study, out: Path, name: str, seed: int, device: str) -> None:
    """Trains a run with a seed, or goes on with it, and writes its result with what is measured, one after another."""
    speed = Speed(**read(speed_file(out, name))["speed"])
    run, folder, file = study.run(name, seed, speed), folder_of(out, name, seed), result_file(out, name, seed)
    wait_for(folder)
    sampler = fluvial.train(run, folder, device=device)
    those, flops = study.wanted(name, run), speed.flops
    there = [row for row in read(file).get("measured", ()) if Wanted(row["step"], row["sampling"], row["of"]) in those]
    result = {
        "run": name,
        "seed": seed,
        "budget": study.budget.given,
        "parameters": speed.parameters,
        "steps": run.train.steps,
        "images": run.train.steps * run.images_per_step,
        "seconds": round(run.train.steps * speed.seconds, 2),
        "seconds_taken": round(sampler.seconds, 1),
        "flops": run.train.steps * flops,
        "settings": to_json(run),
        "machine": machine(device),
        "fluvial": fluvial.__version__,
        "measured": there,
    }
    write_samples(study, name, sampler, folder)
    for each in missing(result, those):
        at = sampler if each.step == run.train.steps else load(folder, step=each.step, device=device)
        row = measured(study, name, at, each, device)
        row |= {
            "images": each.step * run.images_per_step,
            "seconds": round(each.step * speed.seconds, 2),
            "flops": each.step * flops,
        }
        result["measured"] = sorted([*result["measured"], row], key=lambda row: row["step"])
        make_folder(file.parent)
        write_json(file, result)
        print(f"step {each.step:,}, sampling {each.sampling}: measured", flush=True)


def measured(study: Study, name: str, sampler: Sampler, each: Wanted, device: str) -> dict[str, Any]:
    """The scores of samples of these weights."""
    card = score(study, name, sampler, each.sampling, study.measure.count, device)
    sampling = card["sampling"]
    return {
        "step": each.step,
        "sampling": each.sampling,
        "of": each.key,
        "scores": card["scores"],
        "extractor": card["extractor"],
        "reference": card["reference"],
        "evaluations": sampling["nfe"] + (sampling["nfe_null"] or 0),
    }


def score(study: Study, name: str, sampler: Sampler, sampling: str, count: int, device: str) -> dict[str, Any]:
    """The card of so many samples."""
    how = study.measure
    return fluvial.score(
        sampler,
        count=count,
        seed=how.seed,
        settings=study.samplings[name][sampling],
        features=how.features,
        reference=how.reference,
        device=device,
    )


def write_samples(study: Study, name: str, sampler: Sampler, folder: Path) -> None:
    """Writes a few samples, with the noise of the measurements, for the page."""
    drawn = sampler.sample(SHOWN, seed=study.measure.seed, settings=next(iter(study.samplings[name].values())))
    with (folder / "shown.npy").open("wb") as file:
        np.save(file, drawn.images.numpy())


def wait_for(folder: Path) -> None:
    """Waits for a process of a study that was killed, which ends with a checkpoint."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        try:
            return check_unlocked(folder)
        except ValueError:  # it is still locked
            time.sleep(LOOKS_EVERY)


def end_with(parent: int) -> None:
    """Ends this process, with a checkpoint, once the process that began it is no more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOKS_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def main() -> None:
    """Does what the arguments say."""
    end_with(os.getppid())
    import_those_of_parent()
    folder, name, what, device = sys.argv[1:]
    out = Path(folder)
    study = read_study(out / FILE)
    if what == "speed":
        speed, sampler = speed_of(study.runs[name], study.samplings[name], device)
        score(study, name, sampler, next(iter(study.samplings[name])), FEW, device)  # before hours of training
        make_folder(out / RESULTS)
        before = read(speed_file(out, name))
        kept = kept_steps(before, {"run": name, "speed": asdict(speed), "machine": machine(device)})
        write_json(speed_file(out, name), {**before, **kept})
    else:
        train_and_measure(study, out, name, int(what), device)


if __name__ == "__main__":
    main()
