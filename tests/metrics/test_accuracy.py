import torch
from sklearn.svm import SVC

from fluvial.data.images import digits
from fluvial.data.pixels import to_signed
from fluvial.metrics.accuracy import classifier


def test_real_digits_are_in_their_class_and_not_in_the_next():
    (real, y, *_), (held_out, labels, *_) = digits("train"), digits("test")
    in_class = classifier(to_signed(real).flatten(1), y)
    x = to_signed(held_out).flatten(1)
    assert 0.98 < float(in_class(x, labels).float().mean()) < 1
    assert float(in_class(x, (labels + 1) % 10).float().mean()) < 0.01


def test_it_is_the_svm_of_scikit_learn_with_its_own_kernel():
    (real, y, *_), (held_out, labels, *_) = digits("train"), digits("test")
    real, x = (to_signed(pixels).flatten(1) for pixels in (real, held_out))
    noisy = torch.cat([x, x + torch.randn(x.shape)])  # also near the borders of classes
    svm = SVC(C=10).fit(real.numpy(), y.numpy())
    expected = torch.from_numpy(svm.predict(noisy.numpy())) == labels.repeat(2)
    assert torch.equal(classifier(real, y)(noisy, labels.repeat(2)), expected) and 0.3 < expected.float().mean() < 1
