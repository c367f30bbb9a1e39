"""The Inception Score against its closed forms and its definition."""

import math

import pytest
import torch

from fluvial.metrics.classifier_score import Classified, classified, classifier_score, splits


def test_sure_and_even_is_the_number_of_classes_and_unsure_is_one():
    sure = torch.nn.functional.one_hot(torch.arange(1000) % 4, 4) * 1e3
    split = torch.arange(1000) % 10 // 1  # 100 images each, of four classes in turn: 25 of each
    got = classifier_score(classified(sure.float()[torch.arange(1000)], split.sort().values))
    assert got.value == pytest.approx(4) and got.error == pytest.approx(0, abs=1e-9)
    assert classifier_score(classified(torch.zeros(1000, 4), split)).value == pytest.approx(1)


def test_parts_add_up_to_the_definition():
    torch.manual_seed(0)
    logits = torch.randn(237, 6)
    split = splits(237)
    parts = [classified(logits[part], split[part]) for part in (slice(0, 100), slice(100, 237))]
    got = classifier_score(Classified(*(a + b for a, b in zip(*parts, strict=True))))
    scores = []
    for i in range(10):
        p = logits[split == i].double().softmax(1)
        kl = (p * (p.log() - p.mean(0, keepdim=True).log())).sum(1).mean()
        scores.append(math.exp(kl))
    assert got.value == pytest.approx(sum(scores) / 10, rel=1e-12)
    assert got.error == pytest.approx(torch.tensor(scores, dtype=torch.float64).std().item() / 10**0.5)


def test_splits_are_as_even_as_can_be_and_shuffled():
    split = splits(1003)
    assert sorted(set(torch.bincount(split).tolist())) == [100, 101]
    assert len(set(split[:100].tolist())) == 10  # images that come class by class are spread
    with pytest.raises(ValueError, match="at least 10 images, got 4"):
        classifier_score(classified(torch.zeros(4, 3), splits(4)))
