"""Do the samples look like the class they were asked for? A classifier trained on real images answers."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def classifier(
    real: Float[Tensor, "m d"], labels: Int[Tensor, "m"]
) -> Callable[[Float[Tensor, "n d"], Int[Tensor, "n"]], Bool[Tensor, "n"]]:
    """A function of features and their labels: which are put in their own class by an SVM fitted to the real features.

    The kernel is RBF, C = 10.
    """
    from sklearn.svm import SVC

    svm = SVC(C=10).fit(real.numpy(), labels.numpy())
    return lambda features, labels: torch.from_numpy(svm.predict(features.numpy())) == labels
