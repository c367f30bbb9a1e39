"""Class accuracy of samples, by a classifier trained on the features of real images."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fluvial.metrics.neighbours import squared_distances


def classifier(
    real: Float[Tensor, "m d"], labels: Int[Tensor, "m"]
) -> Callable[[Float[Tensor, "n d"], Int[Tensor, "n"]], Bool[Tensor, "n"]]:
    """An SVM fitted to the real features, as a function that tells which features it classifies as their label.

    The kernel is RBF, C = 10, gamma = 1 / (d times the variance of all entries), as scikit-learn's SVC has them by
    default; it is computed by a matrix product, which is many times as fast as the SVM's own.
    """
    from sklearn.svm import SVC

    gamma = 1 / (real.shape[1] * float(real.double().var(correction=0)) or 1.0)

    def kernels(features: Float[Tensor, "n d"]) -> Iterator[np.ndarray]:
        """The kernel of these features and the real ones, in blocks of rows."""
        for _, distances in squared_distances(features, real):
            yield distances.mul_(-gamma).exp_().numpy()

    svm = SVC(C=10, kernel="precomputed").fit(np.concatenate([*kernels(real)]), labels.numpy())

    def in_class(features: Float[Tensor, "n d"], wanted: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        return torch.from_numpy(np.concatenate([svm.predict(rows) for rows in kernels(features)])) == wanted

    return in_class
