from fluvial.data.images import digits
from fluvial.data.pixels import to_signed
from fluvial.metrics.accuracy import classifier


def test_real_digits_are_in_their_class_and_not_in_the_next():
    (real, y, *_), (held_out, labels, *_) = digits("train"), digits("test")
    in_class = classifier(to_signed(real).flatten(1), y)
    x = to_signed(held_out).flatten(1)
    assert 0.98 < float(in_class(x, labels).float().mean()) < 1
    assert float(in_class(x, (labels + 1) % 10).float().mean()) < 0.01
