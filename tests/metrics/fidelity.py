"""torch-fidelity's own numbers, in a process of its own: the torchvision that it imports breaks other libraries.

As a script: fidelity.py A.npy B.npy LOGITS.npy SUBSET prints FID, KID, Inception Score (with its standard deviation),
precision and recall of the features A (generated) and B (real) as JSON. KID is that of one subset of SUBSET images.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
ORACLES = ROOT / ".venv" / "oracles"  # `make setup` puts them there


def ask(*command):
    """What this Python script prints as JSON, run with torch-fidelity at hand; a skip where that is not installed."""
    if not (ORACLES / "torch_fidelity").exists():
        pytest.skip(f"torch-fidelity is not in {ORACLES}; 'make setup' puts it there if it can be had")
    path = os.pathsep.join([str(ORACLES), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def declare_operators():
    """Two operators that torchvision asks for when it is imported, and lacks beside a CPU-only torch.

    To be kept as long as they are used.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def numbers(generated, real, logits, subset):
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    fid = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(x) for x in (generated, real)), verbose=False
    )
    kid = metric_kid.kid_features_to_metric(generated, real, kid_subsets=1, kid_subset_size=subset, verbose=False)
    score = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    prc = metric_prc.prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    return {
        "fid": fid["frechet_inception_distance"],
        "kid": kid["kernel_inception_distance_mean"],
        "inception_score": score["inception_score_mean"],
        "inception_score_std": score["inception_score_std"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }


if __name__ == "__main__":
    kept = declare_operators()
    *files, subset = sys.argv[1:]
    print(json.dumps(numbers(*(torch.from_numpy(np.load(file)) for file in files), int(subset))))
