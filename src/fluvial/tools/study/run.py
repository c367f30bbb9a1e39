"""Runs a study: measures speeds, trains and measures its runs side by side, and writes its page."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from threading import current_thread, main_thread

from fluvial.config import from_json, to_json
from fluvial.methods import name_of
from fluvial.run.configuration import changes
from fluvial.tools.study.files import FILE, RESULTS, folder_of, kept_steps, read, result_file, speed_file
from fluvial.tools.study.page import write_page
from fluvial.tools.study.study import Speed, Study, missing
from fluvial.utils.atomic import only_one, write_bytes, write_json
from fluvial.utils.files import make_folder
from fluvial.utils.run_format import OURS

LOOKS_EVERY = 0.2  # seconds
GRACE = 120.0  # seconds that a training has to write its checkpoint and end
COST_NOTHING = ("label_drop", "loss_weight", "time_sampling", "contrast", "sorted_times", "own_path")
"""Settings of a method that leave the seconds of a step as they are: two measurements differ by more, up to a tenth."""
Say = Callable[[str], None]
Task = tuple[str, int]
"""A run by its name, and a seed."""


class StudyError(RuntimeError):
    """Some runs of a study failed; the others are done."""


def study(
    plan: Study,
    out: Path | str,
    *,
    at_once: int = 0,
    device: str = "cpu",
    only_plan: bool = False,
    say: Say = print,
) -> list[dict]:
    """Runs a study (`read_study` makes one of a file) in the folder `out`, or goes on with the one there.

    Speeds are measured first, one after another with nothing beside them. Then `at_once` processes, by default one for
    each core, train and measure a run with a seed each, on one thread. What is there already is not done again: a
    study that was killed goes on where it was, and a file with more runs or seeds adds them. A page with tables, curves
    and samples is written whenever a run is done. `only_plan` stops after the speeds.

    Returns the results. Raises ValueError if runs there have other settings; `StudyError` at the end if runs failed,
    which are tried again the next time.
    """
    out = Path(out)
    with only_one(out):
        check_alike(plan, out)
        write_bytes(out / FILE, plan.text.encode())
        make_folder(out / RESULTS)
        speeds = {name: _speed(plan, out, name, device, say) for name in plan.runs}
        open_tasks = [task for task in tasks(plan) if not is_done(plan, out, *task, speeds[task[0]])]
        say(told(plan, speeds, len(open_tasks)))
        if only_plan:
            return []
        failed = _all_done(plan, out, open_tasks, at_once or _at_once(device), device, say)
        results = results_of(plan, out)
        if results:
            say(str(write_page(plan, out, results)))
    if failed:
        raise StudyError(f"{len(failed)} of the runs failed: {'; '.join(failed)}. The same command tries them again")
    return results


def tasks(plan: Study) -> list[Task]:
    """All runs and seeds, in the order in which they are trained: every run with the first seed, then the second."""
    return [(name, seed) for seed in plan.seeds for name in plan.runs]


def is_done(plan: Study, out: Path, name: str, seed: int, speed: Speed) -> bool:
    """True if the result of a run with a seed has all that is asked for."""
    return not missing(read(result_file(out, name, seed)), plan.wanted(name, plan.run(name, seed, speed)))


def results_of(plan: Study, out: Path) -> list[dict]:
    """The results that are there, in the order of the runs and seeds."""
    found = [read(result_file(out, name, seed)) for name in plan.runs for seed in plan.seeds]
    return [result for result in found if result]


def check_alike(plan: Study, out: Path) -> None:
    """Raises ValueError if runs of these names are there with other settings, or another budget."""
    for name, run in plan.runs.items():
        there = read(speed_file(out, name)).get("of")
        if there is None:
            continue
        if there["budget"] != plan.budget.given:
            budgets = f"{there['budget']} there, {plan.budget.given} in the file"
            raise ValueError(f"{name} has another budget in {out} ({budgets}): name another --out")
        before = from_json(there["run"])
        if unlike := changes(replace(run, sample=before.sample), before):  # how it is sampled may change
            told = ", ".join(f"{path} {value}" for path, value in unlike.items())
            raise ValueError(f"{name} has other settings in {out} than {told}: rename it, or name another --out")


def _speed(plan: Study, out: Path, name: str, device: str, say: Say) -> Speed:
    """The speed of a run, which is measured if it is not there, nor that of one which computes the same."""
    samplings, file = plan.samplings[name].keys(), speed_file(out, name)

    def known(run: str) -> dict:
        found = read(speed_file(out, run))
        return found if found and samplings <= found["speed"]["sampling"].keys() else {}

    if not (there := known(name)):
        alike = (known(other) for other in plan.runs if other != name and _computes_alike(plan, name, other))
        there = next(filter(None, alike), {})
        if not there:
            say(f"{name}: measuring how fast it trains and draws")
            if _begun(out, name, "speed", device).wait():
                raise StudyError(f"the speed of {name} cannot be measured: {_last_line(out, name, 'speed')}")
            there = read(file)
        there = kept_steps(read(file), there)
        write_json(file, {**there, "run": name, "of": {"run": to_json(plan.runs[name]), "budget": plan.budget.given}})
    return Speed(**there["speed"])


def _computes_alike(plan: Study, name: str, other: str) -> bool:
    """True for runs that differ in the optimizer or in settings of our methods that cost nothing, and draw alike."""
    one, two = plan.runs[name], plan.runs[other]
    method = one.method
    if type(method) is type(two.method) and name_of(type(method)) in OURS:
        free = {field.name: getattr(two.method, field.name) for field in fields(method) if field.name in COST_NOTHING}
        method = replace(method, **free)
    return replace(one, optim=two.optim, method=method) == two and plan.samplings[name] == plan.samplings[other]


def told(plan: Study, speeds: dict[str, Speed], rest: int) -> str:
    """The plan as lines of text."""
    lines = [plan.question] if plan.question else []
    lines.append(f"{len(plan.runs)} runs, {len(plan.seeds)} seeds each, {plan.budget.told}; {rest} to do")
    width = max(len(name) for name in plan.runs)
    for name, speed in speeds.items():
        run = plan.run(name, 0, speed)
        images, seconds = run.train.steps * run.images_per_step, run.train.steps * speed.seconds
        lines.append(
            f"  {name:{width}}  {speed.parameters / 1e6:.2f}M parameters, {run.train.steps:,} steps of "
            f"{run.images_per_step} images ({images:,} images, {seconds:,.0f} s)"
        )
    return "\n".join(lines)


def _all_done(plan: Study, out: Path, those: Sequence[Task], at_once: int, device: str, say: Say) -> list[str]:
    """Does these tasks, so many at once; returns what failed."""
    waiting, running, failed, done = list(those), dict[Task, subprocess.Popen](), list[str](), 0
    with _ended(running):
        while waiting or running:
            while waiting and len(running) < at_once:
                name, seed = task = waiting.pop(0)
                running[task] = _begun(out, name, str(seed), device)
            time.sleep(LOOKS_EVERY)
            for task in [task for task, process in running.items() if process.poll() is not None]:
                name, seed = task
                done += 1
                if running.pop(task).returncode:
                    failed.append(f"{name}, seed {seed}: {_last_line(out, name, str(seed))}")
                    say(f"{done} of {len(those)}: {name}, seed {seed} failed")
                else:
                    say(f"{done} of {len(those)}: {name}, seed {seed}")
                    if done < len(those):  # at the end it is written in any case
                        write_page(plan, out, results_of(plan, out))
    return failed


@contextmanager
def _ended(running: dict[Task, subprocess.Popen]) -> Iterator[None]:
    """Asks the processes to save and end where the block is left before they have, or this process is asked to end."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("stopped: the same command goes on")

    in_main = current_thread() is main_thread()  # others cannot have handlers of signals
    before = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
        for process in running.values():
            process.terminate()
        for process in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def _begun(out: Path, name: str, what: str, device: str) -> subprocess.Popen:
    """A process on one thread, with its output in a file."""
    log = _log(out, name, what)
    make_folder(log.parent)
    words = [sys.executable, "-m", "fluvial.tools.study.work", str(out), name, what, device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("wb") as output:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)


def _log(out: Path, name: str, what: str) -> Path:
    return folder_of(out, name, 0).parent / f"{what}.txt"


def _last_line(out: Path, name: str, what: str) -> str:
    lines = _log(out, name, what).read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _at_once(device: str) -> int:
    """One process for each core, and one on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if device == "cpu" else 1
