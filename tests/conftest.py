import dataclasses
import json
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

# before anything imports `datasets`: no network, and a cache that goes away
_CACHE = tempfile.TemporaryDirectory(prefix="fluvial-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _CACHE.name, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
os.environ["XDG_CACHE_HOME"] = _CACHE.name

import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor  # noqa: E402

from fluvial.methods import method_of  # noqa: E402
from fluvial.tools import timing  # noqa: E402
from fluvial.tools.study import speed  # noqa: E402
from fluvial.training.step import loss_of  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"  # real images and autoencoders, where there are any


def pytest_configure() -> None:
    torch.set_num_threads(1)
    timing.MEASURED = 0.1  # plans need not be good
    speed.TRIAL = 0.1  # nor comparisons fair


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of slow.txt as slow, as if they were decorated."""
    slow = slow_tests()
    for item in items:
        name = f"{item.path.relative_to(Path(__file__).parent).as_posix()}::{item.name.partition('[')[0]}"
        if name in slow:
            item.add_marker("slow")


def slow_tests() -> set[str]:
    """Tests by file::function that take long, which `make test` leaves out."""
    lines = (Path(__file__).parent / "slow.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def shared(name: str) -> Path:
    """A file of real data, or a skip with the reason."""
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    return SHARED / name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A headless Chromium, see studio/in_browser.py."""
    from in_browser import browsing

    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def new_threads() -> Callable[[], set[threading.Thread]]:
    """The threads that a test has started and that still run; those of the tests before it do not count."""
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes, as on a full disk. Only around what is tested: pytest writes too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)


def read_golden(name: str, folder: Path = GOLDEN) -> SimpleNamespace:
    """A reference file: its tensors, the release's state dict, and its metadata."""
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
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


def loss(model: torch.nn.Module, latents: Tensor, labels: Tensor | None, **given: Tensor | None) -> Tensor:
    """The loss of a model of any method; of its draws, those that are not given come from the global generator."""
    method = method_of(model.config)
    draws = method.draws(model.config, latents.shape, device=latents.device)
    errors = method.errors(model, latents, labels, dataclasses.replace(draws, **given))
    return loss_of(errors, torch.tensor(method.part_weights(model.config), device=latents.device))


@pytest.fixture(scope="session")
def tiny():
    """Makes small random diffusers autoencoders by kind: AutoencoderKL, AutoencoderTiny, AutoencoderDC."""
    diffusers = pytest.importorskip("diffusers")

    def make(kind, **config):
        torch.manual_seed(0)
        shapes = {
            "AutoencoderKL": {
                "block_out_channels": (8, 8, 16),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
                "norm_num_groups": 4,
            },
            "AutoencoderTiny": {
                "encoder_block_out_channels": (8, 8),
                "decoder_block_out_channels": (8, 8),
                "num_encoder_blocks": (1, 1),
                "num_decoder_blocks": (1, 1),
            },
            "AutoencoderDC": {
                "encoder_block_out_channels": (8, 8, 16, 16),
                "decoder_block_out_channels": (8, 8, 16, 16),
                "encoder_layers_per_block": (0, 1, 1, 1),
                "decoder_layers_per_block": (0, 1, 1, 1),
                "encoder_qkv_multiscales": ((), (), (), ()),
                "decoder_qkv_multiscales": ((), (), (), ()),
                "latent_channels": 8,
                "attention_head_dim": 8,
            },
        }
        return getattr(diffusers, kind)(**{**shapes[kind], **config}).eval()

    return make
