import subprocess
import sys

import pytest

PROGRAM = """
import torch
from fluvial.methods import METHODS, method_of

for name, method in METHODS.items():
    scales = {"scales": (1, 2), "head_width": 16, "head_heads": 2, "head_depth": 1} if name == "flowar" else {}
    config = method.Config(size=(4, 4), channels=1, classes=3, patch=2, depth=2, width=16, heads=2, **scales)
    model = method.Model(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    sequence = () if config.images_per_sequence is None else (config.images_per_sequence,)
    latents, labels = torch.randn(2, *sequence, 1, 4, 4), torch.tensor([0, 2])
    draws = method.draws(config, latents.shape, device="cpu")
    plain = method.errors(model, latents, labels, draws)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(method.errors(compiled, latents, labels, draws), plain)
"""


@pytest.mark.slow
def test_every_model_compiles_as_one_graph():
    """In a process of its own: the type checks that the other tests run under cannot be traced."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
