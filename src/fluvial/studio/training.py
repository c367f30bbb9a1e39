"""Trainings that the studio starts: processes of the command line, which closing the studio does not stop.

ROOT/.studio/ID.json says what was started and ROOT/.studio/ID.log has its output, so that a studio that is opened again
finds it. One training runs at a time, the others wait in order while a studio is open.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from typing import Literal

from fluvial.studio.places import name_of_run, run_named
from fluvial.utils.atomic import write_json
from fluvial.utils.files import reading

State = Literal["waiting", "running", "finished", "stopped", "failed", "ended"]
PROGRAM = (sys.executable, "-m", "fluvial")
METHODS = ("arflow", "flowar", "sit")
NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)  # of a new run
LONGEST = 4096  # characters of a place
MINUTES = 60 * 24 * 365  # of a training, at most
LOOKS_EVERY = 1.0  # seconds between looks at what has ended
REMEMBERED = 40  # trainings that have ended, of which there is a record
TAIL = 2**14  # bytes at the end of the output that are shown
PLANNING = 600.0  # seconds that a plan may take
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that was asked for, as it stands in its file."""

    id: str
    words: list[str]
    """The arguments of `fluvial`."""
    run: str
    """The name of its run, below the studio's folder."""
    state: State = "waiting"
    """ended: it ended while no studio was open, so that its exit status is not known."""
    pid: int = 0
    stopping: bool = False

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")


class Trainings:
    """The trainings that were started over a folder of runs, and those that wait."""

    def __init__(self, program: Sequence[str] = PROGRAM) -> None:
        self.program, self.root = list(program), Path()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = Lock()

    def open(self, root: Path, *, watch: bool = True) -> None:
        """Looks after the trainings of this folder, from now on in a thread."""
        self.root = root
        if watch:
            Thread(target=self._watch, daemon=True, name="trainings").start()

    def _watch(self) -> None:
        while True:
            with suppress(OSError, ValueError):
                self.tick()
            time.sleep(LOOKS_EVERY)

    @property
    def folder(self) -> Path:
        """Where the records are: no run, as its name begins with a dot."""
        return self.root / ".studio"

    def all(self) -> list[Training]:
        """All trainings on record, in the order in which they were asked for."""
        found = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        return [training for training in found if training is not None]

    def of(self, run: str) -> Training | None:
        """The newest training of the run of this name."""
        return next((training for training in reversed(self.all()) if training.run == run), None)

    def start(self, words: Sequence[str], run: str) -> Training:
        """Starts `fluvial` with these arguments, or lets it wait its turn. Raises ValueError if the run is trained."""
        with self._lock:
            if (there := self.of(run)) is not None and there.active:
                raise ValueError(f"{run} is being trained, or waits for it")
            self.folder.mkdir(exist_ok=True)
            if self.folder.resolve().parent != self.root.resolve():
                raise ValueError(f"{self.folder} leads elsewhere: remove that link")
            training = Training(id=f"{time.time_ns():020d}", words=list(words), run=run)
            self._write(training)
        self.tick()
        return self.of(run) or training

    def new(self, place: str, name: str, *, minutes: float | None = None, steps: int = 0, method: str = "") -> Training:
        """Starts a new run, in a folder of this name. Raises ValueError for what cannot be one."""
        out = self.root / checked_name(self.root, name)
        return self.start(words_for(place, out, minutes=minutes, steps=steps, method=method), name)

    def go_on(self, name: str, minutes: float) -> Training:
        """Trains a run for more minutes. Raises ValueError if it is no run below the folder."""
        folder = run_named(self.root, name)
        words = ["train", str(folder.absolute()), "--minutes", f"{checked_minutes(minutes):g}"]
        return self.start(words, name_of_run(self.root, folder))

    def stop(self, name: str) -> Training:
        """Asks the training of a run to save and end, or not to begin. A second time ends it without saving.

        Raises ValueError if the studio has not started it.
        """
        with self._lock:
            training = self.of(name)
            if training is None or not training.active:
                raise ValueError(f"no training of {name[:200]!r} was started here: end it where it was started")
            if training.state == "waiting":
                return self._write(replace(training, state="stopped"))
            if self._is_alive(training):
                _interrupt(training.pid, at_once=training.stopping)
            return self._write(replace(training, stopping=True))

    def forget(self, training: Training) -> None:
        """Removes the record and the output of a training that has ended."""
        if not training.active:
            for end in (".json", ".log", ".begun"):
                (self.folder / f"{training.id}{end}").unlink(missing_ok=True)

    def before(self, training: Training) -> list[str]:
        """The runs that are trained before one that waits."""
        return [other.run for other in self.all() if other.active and other.id < training.id]

    def output(self, training: Training, lines: int = 12) -> list[str]:
        """The last lines of what a training has printed."""
        try:
            with reading(self.folder / f"{training.id}.log") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                text = plain(file.read())
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-lines:]

    def plan(self, words: Sequence[str]) -> tuple[bool, str]:
        """True if training would start with these arguments, and the lines that `fluvial` prints with --dry-run."""
        try:
            done = subprocess.run(
                [*self.program, *words, "--dry-run"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
                timeout=PLANNING,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"no plan within {PLANNING / 60:.0f} minutes"
        return done.returncode == 0, plain(done.stdout).partition("\n{\n")[0].strip()

    def tick(self) -> None:
        """Notes what has ended, and starts the next one if none runs."""
        with self._lock:
            known = [self._settled(training) for training in self.all()]
            waiting = [training for training in known if training.state == "waiting"]
            if waiting and not any(training.state == "running" for training in known):
                self._launch(waiting[0])
            for training in [training for training in known if not training.active][:-REMEMBERED]:
                self.forget(training)

    def _settled(self, training: Training) -> Training:
        """A training with its state as it is now."""
        if training.state != "running" or self._is_alive(training):
            return training
        process = self._processes.pop(training.id, None)
        code = process.returncode if process else None
        ended: State = "stopped" if training.stopping else "ended" if code is None else "failed" if code else "finished"
        return self._write(replace(training, state=ended))

    def _launch(self, training: Training) -> None:
        with suppress(FileExistsError):  # another studio over the folder has
            os.close(os.open(self.folder / f"{training.id}.begun", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            with open(self.folder / f"{training.id}.log", "ab") as output:
                process = subprocess.Popen(
                    [*self.program, *training.words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    start_new_session=True,
                )
            self._processes[training.id] = process
            self._write(replace(training, state="running", pid=process.pid))

    def _is_alive(self, training: Training) -> bool:
        """True while the process runs; another one that was given its number is not it."""
        if (process := self._processes.get(training.id)) is not None:
            return process.poll() is None
        ours = " ".join([*self.program, *training.words])
        return training.pid > 1 and " ".join(_command_of(training.pid)).split() == ours.split()

    def _write(self, training: Training) -> Training:
        write_json(self.folder / f"{training.id}.json", asdict(training))
        return training

    def _read(self, path: Path) -> Training | None:
        """The training in a file; None for one that is no record, or says what none can."""
        try:
            with reading(path) as file:
                found = Training(**json.loads(file.read()))
            fits = found.id == path.stem and type(found.pid) is int and all(type(word) is str for word in found.words)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return found if fits and found.words[:1] == ["train"] and isinstance(found.run, str) else None


def words_for(place: str, out: Path, *, minutes: float | None = None, steps: int = 0, method: str = "") -> list[str]:
    """The arguments of `fluvial` that train on images for minutes, or a recipe for steps, into a folder.

    Raises ValueError for a place that would be read as an option, or numbers out of range.
    """
    place = place.strip()
    if not place or place.startswith("-") or "\0" in place or len(place) > LONGEST:
        raise ValueError("Say where the images are: a folder, a file, or a name. It cannot begin with a dash.")
    if place.lower().endswith(".py"):
        raise ValueError("Files of Python are code: train them from the command line.")
    if method and method not in METHODS:
        raise ValueError(f"The method is one of {', '.join(METHODS)}, got {method[:100]!r}.")
    with suppress(OSError):
        path = Path(place).expanduser()
        place = str(path.absolute()) if path.exists() and minutes is not None else place
    words = ["train", place, "--out", str(out.absolute())]
    if minutes is not None:
        words += ["--minutes", f"{checked_minutes(minutes):g}"]
    if steps:
        words += ["--steps", str(int(steps))]
    return words + (["--method", method] if method else [])


def checked_minutes(minutes: float) -> float:
    """The minutes. Raises ValueError if they are not above 0, or more than a year."""
    if not 0 < minutes <= MINUTES:
        raise ValueError(f"Minutes are above 0 and at most {MINUTES:,}, got {minutes:g}.")
    return float(minutes)


def checked_name(root: Path, name: str) -> str:
    """The name for a new run. Raises ValueError if it cannot be the name of a folder, or is taken."""
    if not NAME.fullmatch(name):
        raise ValueError(f"A name has letters, digits, dots, dashes and underscores, got {name[:100]!r}.")
    if (root / name).is_symlink() or (root / name).exists():
        raise ValueError(f"{name} is there already: choose another name.")
    return name


def free_name(root: Path, wanted: str) -> str:
    """The name, with a number after it if it is taken."""
    wanted = re.sub(r"[^A-Za-z0-9_.+-]+", "-", wanted).strip("-.+")[:80] or "run"
    taken = (f"{wanted}-{number}" if number > 1 else wanted for number in range(1, 10_000))
    return next((name for name in taken if not os.path.lexists(root / name)), wanted)


def plain(output: bytes) -> str:
    """Output as it stands on a terminal at last: without escapes, and without lines that were written over."""
    text = ESCAPES.sub("", output.decode("utf-8", "replace")).replace("\r\n", "\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "100", "NO_COLOR": "1"}


def _interrupt(pid: int, *, at_once: bool) -> None:
    """Does to the process and its children what Ctrl+C does, or what ends them wherever they are."""
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            os.kill(pid, signal.CTRL_C_EVENT)
        else:
            os.killpg(pid, signal.SIGINT)
            if at_once:
                os.killpg(pid, signal.SIGTERM)


def _command_of(pid: int) -> list[str]:
    """The command line of a process; [] if there is none, or it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
    except OSError:
        if Path("/proc/self").exists():
            return []
    else:
        return words  # none for a process that has ended and was not asked after
    command = ["ps", "-ww", "-o", "args=", "-p", str(pid)]  # where there is no /proc, as on macOS
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False).stdout.split()
    return []
