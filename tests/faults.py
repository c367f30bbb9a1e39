"""Commands that fail or are killed at the n-th operation on files, in children of one process that is warm.

The shim of faults.c sees every library that writes: Python's own, PyTorch's checkpoints, safetensors, Pillow, numpy.
"""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

LIMIT = 120  # seconds of a command


class Outcome(NamedTuple):
    code: int
    """The exit code; -9 if it was killed."""
    seen: int
    """Operations on files below the root that were counted; 0 if it was killed."""
    printed: str


class Commands:
    """A warm process that runs `fluvial` commands in children of its own."""

    def __init__(self, folder: Path) -> None:
        shim = folder / "faults.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", shim, source, "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(shim)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(self, *arguments: str, root: Path, at: int = -1, error: int = 0, lasting: bool = False) -> Outcome:
        """Runs a command; its operation `at`, counted from 1, gives `error`, or kills it for 0. at=0 counts alone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([[*map(str, arguments)], str(root), at, error, lasting]) + "\n")
        self.process.stdin.flush()
        return Outcome(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def _serve(shim: str) -> None:
    import datasets  # noqa: F401 - imported before the children are made
    import sklearn.model_selection  # noqa: F401
    import torch

    import fluvial.cli
    import fluvial.data.images

    torch.set_num_threads(1)
    fluvial.data.images.digits("train")
    faults = ctypes.CDLL(shim)
    for line in sys.stdin:
        arguments, root, at, error, lasting = json.loads(line)
        printed = Path(root).with_name(f"{Path(root).name}.printed")
        child = os.fork()
        if child == 0:
            _child(faults, fluvial.cli.main, arguments, root, at, error, lasting, printed)
        code, seen = _wait(child), 0
        if (counted := printed.with_suffix(".seen")).exists():
            seen = int(counted.read_text())
            counted.unlink()
        answer = json.dumps([code, seen, printed.read_text(errors="replace")])
        sys.__stdout__.write(answer + "\n")
        sys.__stdout__.flush()


def _child(faults, main, arguments, root, at, error, lasting, printed) -> None:
    code = 99
    try:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        faults.faults_arm(root.encode() + b"/", ctypes.c_long(at), error, int(lasting))
        code = main(arguments)
        seen = faults.faults_seen()
        faults.faults_arm(b"", ctypes.c_long(-1), 0, 0)
        printed.with_suffix(".seen").write_text(str(seen))
        sys.stdout.flush(), sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return errno.ETIMEDOUT


if __name__ == "__main__":
    _serve(sys.argv[1])
