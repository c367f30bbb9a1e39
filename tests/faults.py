"""Commands in children of one warm process, killed or failing at the n-th operation on files below a folder.

The shim of faults.c stands between libc and every library that reads or writes: Python's own, PyTorch's checkpoints,
safetensors, Pillow, numpy. A child starts with everything imported, so that a case takes a tenth of a second or so.
"""

import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from errno import EIO, ENOSPC
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

LIMIT = 120  # seconds of a command
READ, CHANGE = 1, 2  # of faults.c: operations that are counted
KINDS = {  # by name: operations that are counted, what happens at one of them, and with which error
    "none": (CHANGE, 0, 0),
    "none, read": (READ, 0, 0),
    "killed": (CHANGE, 1, 0),
    "error": (CHANGE, 2, EIO),
    "full": (CHANGE, 3, ENOSPC),  # from there on, whatever needs room
    "short": (CHANGE, 4, 0),  # a half of it is written, as the system may do at any time
    "unread": (READ, 2, EIO),
    "short read": (READ, 4, 0),
}


class Operation(NamedTuple):
    name: str
    size: int
    """Bytes that are read or written."""
    path: str

    @property
    def grows(self) -> bool:
        """Whether it may need room on the disk."""
        return self.name in ("open", "write", "mkdir", "truncate", "link")


class Outcome(NamedTuple):
    code: int
    """The exit code; -9 if it was killed."""
    out: str
    err: str
    operations: list[Operation]
    """Those that were struck; all of them if none was to be."""
    seconds: float


def shim(folder: Path) -> Path:
    """Compiles faults.c."""
    library = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Commands:
    """A warm process that runs `fluvial` commands in children of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, library = folder, shim(folder)
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "1000"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(library), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(self, *arguments: str, root: Path, kind: str = "none", at: int = 0, memory: int = 0) -> Outcome:
        """Runs a command, of which operation `at` below `root`, counted from 1, is struck; by default none is.

        `memory` limits the address space that it may take beyond that of the warm process, in bytes. Raises
        TimeoutError.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([[*map(str, arguments)], str(root), kind, at, memory]) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        if code is None:
            raise TimeoutError(f"{' '.join(map(str, arguments))} takes more than {LIMIT} s")
        out, err, log = ((self.folder / name).read_text(errors="replace") for name in ("out", "err", "log"))
        lines = [line.split(" ", 2) for line in log.splitlines()]
        return Outcome(code, out, err, [Operation(name, int(size), path) for name, size, path in lines], seconds)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def _serve(library: str, folder: Path) -> None:
    import PIL.Image
    import torch

    import fluvial.cli
    import fluvial.data.images

    for name in ("datasets", "sklearn.model_selection", "matplotlib.pyplot", "torch._dynamo", "typeguard"):
        import_module(name)  # as the commands do, once for all
    PIL.Image.init()
    torch.set_num_threads(1)
    fluvial.data.images.digits("train")
    faults, answers = ctypes.CDLL(library), sys.stdout
    for line in sys.stdin:
        gc.freeze()
        began, child = time.monotonic(), os.fork()
        if child == 0:
            _child(faults, fluvial.cli.main, folder, *json.loads(line))
        code = _wait(child)
        print(json.dumps([code, time.monotonic() - began]), file=answers, flush=True)
        _import((folder / "imported").read_text().split())


def _child(faults, main, folder: Path, arguments: list[str], root: str, kind: str, at: int, memory: int) -> None:
    """Runs the command, and writes what it printed, its operations, and what it imported."""
    before, code = set(sys.modules), 99
    (folder / "imported").write_text("")
    out, err, log = (os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in ("out", "err", "log"))
    os.dup2(out, 1), os.dup2(err, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if memory:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    classes, action, error = KINDS[kind]
    faults.faults_arm(os.fsencode(root) + b"/", log, classes, ctypes.c_long(at), action, error)
    try:
        code = main(arguments)
        threading._shutdown()  # waits for threads that write, as the end of a process does
    finally:
        faults.faults_arm(b"", -1, 0, ctypes.c_long(0), 0, 0)
        sys.stdout.flush(), sys.stderr.flush()
        (folder / "imported").write_text(" ".join(name for name in sys.modules if name not in before))
        os._exit(code)


def _import(names: list[str]) -> None:
    """Imports what a child had to, for the next ones."""
    for name in names:
        with suppress(Exception):
            if name not in sys.modules:
                import_module(name)


def _wait(child: int) -> int | None:
    """The exit code, or None if it took too long."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
