"""Systems that are not POSIX, and versions of PyTorch to come: what the source may not rely on."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fluvial

ROOT = Path(fluvial.__file__).parent
PRIVATE = {  # names of PyTorch that begin with _, by file, each with the reason why no public one serves
    ("tools/estimate.py", "torch._subclasses.fake_tensor.FakeTensorMode"): "the meta device does not mix with the CPU",
    ("training/living.py", "torch.utils._python_dispatch.TorchDispatchMode"): "documented, but under this name only",
    (
        "training/living.py",
        "torch.utils._pytree.tree_leaves",
    ): "operations return tensors in any nesting",
}


@pytest.mark.skipif(sys.platform != "linux", reason="what Windows lacks is taken away from Linux")
def test_every_module_is_imported_and_commands_end_well_without_what_windows_lacks(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", Path(__file__).with_name("windows.py"), tmp_path],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout[-3000:]


def names_of_torch(source: str) -> set[str]:
    """Dotted names below torch that a module imports or uses."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if name.startswith("torch.")}


def private(source: str) -> set[str]:
    names = names_of_torch(source)
    return {n for n in names if any(part[0] == "_" and not part.endswith("__") for part in n.split(".") if part)}


def test_private_names_of_pytorch_are_few_and_each_has_a_reason():
    used = {(str(f.relative_to(ROOT)), name) for f in ROOT.rglob("*.py") for name in private(f.read_text())}
    assert used == PRIVATE.keys()


def test_private_names_are_found():
    assert private("import torch\ntorch._foreach_lerp_(a, b, 1)\ntorch.__version__") == {"torch._foreach_lerp_"}
    assert private("from torch._C._distributed_c10d import Store") == {"torch._C._distributed_c10d.Store"}
    assert private("import torch._dynamo") and not private("from torch.distributed import Store\nself._torch.a")
