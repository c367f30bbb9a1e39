import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    torch.set_num_threads(1)


def read_golden(name: str) -> SimpleNamespace:
    """A reference file: its tensors, the release's state dict, and its metadata."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        meta = {key: json.loads(value) for key, value in file.metadata().items()}
    prefix = "state_dict."
    state_dict = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return SimpleNamespace(tensors=tensors, state_dict=state_dict, meta=meta)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests draw from the global generator: every run of the suite sees the same numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sit_golden() -> SimpleNamespace:
    return read_golden("sit_tiny")


@pytest.fixture(scope="session")
def arflow_golden() -> SimpleNamespace:
    return read_golden("arflow_tiny")


def randomise(module: torch.nn.Module, seed: int = 0, std: float = 0.2) -> None:
    """Fills every parameter with noise, so that zero-initialised gates let every path through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * std)
