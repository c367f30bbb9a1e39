"""Every metric that torch-fidelity has, against it, on the same features."""

from pathlib import Path

import fidelity
import numpy as np
import pytest
import torch

from fluvial.metrics.classifier_score import classified, classifier_score, splits
from fluvial.metrics.frechet import fit, frechet_distance
from fluvial.metrics.kid import kernel_distance
from fluvial.metrics.precision import overlap


@pytest.fixture(scope="module")
def features():
    """As Inception's are: never negative, many near zero, their covariance far from the identity."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(48, 48, generator=generator, dtype=torch.float64) / 7

    def draw(shift):
        return (torch.randn(600, 48, generator=generator, dtype=torch.float64) @ mix + shift).relu()

    logits = 3 * torch.randn(600, 20, generator=generator, dtype=torch.float64)
    return draw(0.1), draw(0.0), logits


@pytest.fixture(scope="module")
def theirs(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    generated, real, logits = features
    order = splits(len(logits)).argsort(stable=True)  # their splits are the features in a row
    arrays = {"generated": generated, "real": real, "logits": logits[order]}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.numpy())
    script = Path(__file__).parent / "fidelity.py"
    return fidelity.ask(script, *(folder / f"{name}.npy" for name in arrays), len(generated))


def test_fid(features, theirs):
    generated, real, _ = features
    assert frechet_distance(fit(generated), fit(real)) == pytest.approx(theirs["fid"], rel=1e-6)


def test_kid_of_one_subset_of_all(features, theirs):
    generated, real, _ = features
    assert kernel_distance(generated, real).value == pytest.approx(theirs["kid"], rel=1e-6)


def test_inception_score(features, theirs):
    logits = features[2]
    got = classifier_score(classified(logits, splits(len(logits))))
    assert got.value == pytest.approx(theirs["inception_score"], rel=1e-6)
    assert got.error == pytest.approx(theirs["inception_score_std"] / 9**0.5, rel=1e-6)  # std over 10, not over 9


def test_precision_and_recall(features, theirs):
    generated, real, _ = features
    got = overlap(generated, real)
    assert got.precision.value == pytest.approx(theirs["precision"], rel=1e-6)
    assert got.recall.value == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0.1 < got.precision.value < 0.99 and 0.1 < got.recall.value < 0.99
