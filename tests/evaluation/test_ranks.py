"""One, two and three ranks: the same statistics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fluvial.evaluation.statistics import load

SCRIPT = Path(__file__).parent / "ranks.py"


def run(ranks, out, count):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), str(out), str(count)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load(out)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "count"), [(2, 540), (3, 540), (3, 40)])  # 40: one batch for three ranks
def test_any_number_of_ranks_gives_the_same_statistics(tmp_path, ranks, count):
    one, about = run(1, tmp_path / "one.safetensors", count)
    many, of_many = run(ranks, tmp_path / "many.safetensors", count)
    assert one.n == many.n == count
    assert int(of_many["seen"]) > 0  # the first rank, whose card says how images were drawn, draws some
    assert torch.equal(one.features, many.features) and torch.equal(one.labels, many.labels)
    for a, b in ((one.pooled, many.pooled), (one.spatial, many.spatial)):
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-10, atol=1e-12)
    sums = [[float(part) for part in told["classes"].split()] for told in (about, of_many)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-10)
