"""The classifier score: high if each image is clearly of one class and all classes occur. With Inception, its IS."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fluvial.metrics import Estimate, mean
from fluvial.utils.randomness import numpy_generator

SPLITS = 10


class Classified(NamedTuple):
    """Sums over class probabilities, for each split. The sums of two sets of images add up to those of both."""

    n: Float[Tensor, "s"]
    """Number of images."""
    sum: Float[Tensor, "s k"]
    """The sum of p(y|x)."""
    negative_entropy: Float[Tensor, "s"]
    """The sum of p log p over classes and images."""


def splits(count: int) -> Int[Tensor, "n"]:
    """The split, 0 to 9, of each image: assigned at random, as images are often sorted by class."""
    order = torch.from_numpy(numpy_generator(0, "splits").permutation(count))
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    bounds = torch.tensor([i * count // SPLITS for i in range(1, SPLITS)])
    return torch.searchsorted(bounds, place, right=True)


def classified(logits: Float[Tensor, "n k"], split: Int[Tensor, "n"]) -> Classified:
    """The sums over these images, in float64."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    member = torch.nn.functional.one_hot(split, SPLITS).to(p)
    return Classified(member.sum(0), member.T @ p, member.T @ (p * log_p).sum(1))


def classifier_score(c: Classified) -> Estimate:
    """exp E KL(p(y|x) || p(y)) (arXiv 1606.03498, section 4), averaged over the splits.

    Raises ValueError if a split is empty.
    """
    if (c.n == 0).any():
        raise ValueError(f"{SPLITS} splits need at least {SPLITS} images, got {int(c.n.sum())}")
    marginal = c.sum / c.n[:, None]
    kl = c.negative_entropy / c.n - torch.xlogy(marginal, marginal).sum(1)
    return mean(kl.exp())
