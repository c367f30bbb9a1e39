"""Memorisation test: compares the distances of samples and of test images to the training images."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from fluvial.evaluation.statistics import Statistics, kept_order
from fluvial.metrics import Estimate
from fluvial.metrics.neighbours import closer, nearest

SHOWN, NEIGHBOURS = 10, 5  # samples in the picture, and training images shown beside each


class Memorised(NamedTuple):
    """The result of the memorisation test, with the samples nearest to training images."""

    closer: Estimate
    """Probability that a sample is nearer to the training images than a test image: 0.5 is usual, near 1 are copies."""
    samples: Int[Tensor, "s"]
    """The samples nearest to training images, nearest first."""
    neighbours: Int[Tensor, "s k"]
    """The training images nearest to each of them."""
    distances: Float[Tensor, "s k"]
    """Their distances in feature space."""


def memorised(samples: Statistics, training: Statistics, test: Statistics) -> Memorised:
    """Compares samples with the training images whose features were kept."""
    distances, indices = nearest(samples.features, training.features, min(NEIGHBOURS, len(training.features)))
    distances_of_test, _ = nearest(test.features, training.features)
    first = distances[:, 0].argsort()[:SHOWN]
    return Memorised(
        closer(distances[:, 0], distances_of_test[:, 0]),
        kept_order(samples.n)[first],
        kept_order(training.n)[indices[first]],
        distances[first],
    )
