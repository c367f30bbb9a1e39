"""The device that a user names, and the seconds that a call takes on it."""

import time
from collections.abc import Callable
from typing import Any

import torch

KNOWN = ("cpu", "cuda", "mps")


def device_of(given: Any = None) -> torch.device:  # noqa: ANN401 - checked
    """The device of this name, such as cpu, cuda, cuda:1 or mps; for None CUDA if there is one, else the CPU.

    Raises ValueError for a name that is none of these, and for a device that is not here.
    """
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in KNOWN:
        raise ValueError(f"device must be cpu, cuda, cuda:1 (the second GPU) or mps, got {given!r:.100}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device}: this machine, or this build of PyTorch, has no CUDA; use cpu")
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(f"device {device}: this machine has {count} GPUs, cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device}: this machine, or this build of PyTorch, has no Metal (MPS); use cpu")
    return device


def seconds_of(call: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Mean seconds of a call, from an idle device until all calls are done."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / calls


def synchronise(device: torch.device) -> None:
    """Waits for all work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
