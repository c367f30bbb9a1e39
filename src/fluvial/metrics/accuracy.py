"""Do the samples look like the class they were asked for? A classifier trained on real images answers."""

from jaxtyping import Float, Int
from torch import Tensor


def class_accuracy(
    real: Float[Tensor, "m d"], real_labels: Int[Tensor, "m"], samples: Float[Tensor, "n d"], labels: Int[Tensor, "n"]
) -> float:
    """The share of samples that an SVM (RBF kernel, C = 10) fitted to the real features puts in their own class."""
    from sklearn.svm import SVC

    classifier = SVC(C=10).fit(real.numpy(), real_labels.numpy())
    return float(classifier.score(samples.numpy(), labels.numpy()))
