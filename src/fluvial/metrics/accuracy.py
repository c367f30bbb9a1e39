"""Do the samples look like the class they were asked for? A classifier trained on real images answers."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor


def class_accuracy(
    real: Float[Tensor, "m d"], labels: Int[Tensor, "m"]
) -> Callable[[Float[Tensor, "n d"], Int[Tensor, "n"]], float]:
    """A function of samples and their labels: the share put in its own class by an SVM fitted to the real features.

    The kernel is RBF, C = 10.
    """
    from sklearn.svm import SVC

    classifier = SVC(C=10).fit(real.numpy(), labels.numpy())
    return lambda samples, labels: float(classifier.score(samples.numpy(), labels.numpy()))
