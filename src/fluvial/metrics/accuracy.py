"""Class accuracy of samples, by a classifier trained on the features of real images."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def classifier(
    real: Float[Tensor, "m d"], labels: Int[Tensor, "m"]
) -> Callable[[Float[Tensor, "n d"], Int[Tensor, "n"]], Bool[Tensor, "n"]]:
    """An SVM fitted to the real features, as a function that tells which features it classifies as their label.

    The kernel is RBF, C = 10.
    """
    from sklearn.svm import SVC

    svm = SVC(C=10).fit(real.numpy(), labels.numpy())
    return lambda features, labels: torch.from_numpy(svm.predict(features.numpy())) == labels
