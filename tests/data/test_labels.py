"""Which class of one data set is which of another."""

import pytest
import torch

from fluvial.data.labels import Classes, aligned, class_ids, named, own_classes

DIGITS = tuple(map(str, range(12)))


def ids(labels):
    return torch.tensor(labels)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([3, 0, 10**12], (), ([3, 0, 10**12], ())),
        (["10", "9", "0"], (), ([10, 9, 0], ())),
        ([b"10\n", b"9\n"], (), ([10, 9], ())),  # as files in a tar hold them
        (["1", "01", "001"], (), ([2, 1, 0], ("001", "01", "1"))),
        (["01", "10"], (), ([0, 1], ("01", "10"))),
        (["²", "1"], (), ([1, 0], ("1", "²"))),  # a digit to Python, and no number
        (["b", "a"], ("b", "a"), ([0, 1], ("b", "a"))),
        ([-1, 2], (), ([-1, 2], ())),
    ],
)
def test_classes_as_the_data_has_them(values, names, expected):
    labels, found = own_classes(values, names, "here")
    assert (labels.tolist(), found) == expected


def test_labels_below_0_alone_are_no_labels():
    assert own_classes([-1, -1], (), "here") == (None, ()) and own_classes(None, (), "here") == (None, ())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2.0], "whole numbers or names, got 2.0 of image 1"),
        ([float("nan"), 1.0], "whole numbers or names, got nan of image 0"),
        (["a", 1], "got 'a' of image 0"),
        ([[1], [2]], r"got \[1\] of image 0"),
        ([0, 2**63], f"must fit into 64 bits, got {2**63} of image 1"),
        ([str(2**64)], f"must fit into 64 bits, got {2**64} of image 0"),
        ([1, None, None], "2 images have no label, the first is image 1"),
    ],
)
def test_labels_that_are_none_are_refused_by_image(values, says):
    with pytest.raises(ValueError, match=f"here: .*{says}"):
        own_classes(values, (), "here")


@pytest.mark.parametrize(
    ("labels", "own", "given", "expected"),
    [
        ([0, 1], ("a", "b"), (), [0, 1]),
        ([0, 1], ("a", "b"), ("b", "a"), [1, 0]),
        ([0, 1], ("a", "b"), ("b", "c", "a"), [2, 0]),
        ([0, 1], ("a", "b"), ("x", "y"), [0, 1]),
        ([0, -1], ("a", "b"), ("b", "a"), [1, -1]),
        ([0, 1], (), ("x", "y"), [0, 1]),
        ([1, 10], (), ("10", "1"), [1, 0]),
    ],
)
def test_given_names_order_or_rename_the_classes(labels, own, given, expected):
    found, names = named(ids(labels), own, given, "here")
    assert found.tolist() == expected and names == (given or own)


@pytest.mark.parametrize(
    ("labels", "own", "given"),
    [
        ([0, 1, 2], ("cat", "dog", "bird"), ("dog", "cat", "fish")),
        ([0, 1], ("a", "b"), ("x", "y", "z")),
        ([0, 1], (), ("5", "7")),
        ([0, 2], (), ("x", "y")),
    ],
)
def test_given_names_that_are_neither_are_refused(labels, own, given):
    with pytest.raises(ValueError, match="here: labels"):
        named(ids(labels), own, given, "here")


@pytest.mark.parametrize(
    ("labels", "own", "training", "expected"),
    [
        ([0, 1], ("a", "b"), Classes(("a", "b"), ("a", "b"), False), [0, 1]),
        ([0, 0], ("b",), Classes(("a", "b"), ("a", "b"), False), [1, 1]),
        ([0, 1], ("b", "a"), Classes(("a", "b"), ("a", "b"), False), [1, 0]),
        ([1, 1], ("other", "b"), Classes(("a", "b"), ("a", "b"), False), [1, 1]),  # a name without images
        ([3, 1], (), Classes((), (), False), [3, 1]),
        ([0, 1, 2], ("0", "2", "10"), Classes((), (), False), [0, 2, 10]),
        ([10, 2, 0], (), Classes(("0", "2", "10"), ("0", "2", "10"), False), [2, 1, 0]),
        ([10, 2], (), Classes(DIGITS, tuple(sorted(DIGITS)), False), [2, 4]),  # of a run that ordered them as text
        ([7], (), Classes(("007", "008"), ("007", "008"), False), [0]),
        # names that the user gave
        ([0, 1], ("truck", "van"), Classes(("bus", "car"), ("bus", "car"), True), [0, 1]),
        ([0, 1], ("truck", "van"), Classes(("bus", "car"), ("x", "y"), True), [0, 1]),
        ([0, 0], ("car",), Classes(("bus", "car"), ("x", "y"), True), [1, 1]),
        ([0, 0], ("y",), Classes(("bus", "car"), ("x", "y"), True), [1, 1]),
        ([0, 1], ("b", "a"), Classes((), ("a", "b"), True), [1, 0]),
        ([1, 0], (), Classes(("bus", "car"), ("x", "y"), True), [1, 0]),
        ([1, 2], (), Classes(("1", "2"), ("x", "y"), True), [0, 1]),  # counted from 1
    ],
)
def test_classes_are_matched_by_name_or_number(labels, own, training, expected):
    assert aligned(ids(labels), own, training).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "own", "known", "given"),
    [
        ([0, 1], ("truck", "van"), ("bus", "car"), False),
        ([0, 1], ("bus", "van"), ("bus", "car"), False),
        ([0, 1], ("bus", "van"), ("bus", "car"), True),
        ([0, 1], (), ("bus", "car"), False),
        ([0, 1], ("bus", "car"), (), False),
        ([0, 1], ("1", "01"), (), False),
        ([1, 1], (), ("1", "01"), False),
        ([0, 1], (), ("1", "2"), True),  # there is no 0
        ([0, 1], ("1", "2"), ("001", "002"), False),
    ],
)
def test_classes_of_other_names_are_refused_with_both_lists(labels, own, known, given):
    with pytest.raises(ValueError, match="the validation images have the classes .*, the training images") as error:
        aligned(ids(labels), own, Classes(known, known, given))
    assert all(f"'{name}'" in str(error.value) for name in (*own, *known))


def test_what_is_no_class_stays_none_and_ids_beyond_the_names_are_refused():
    training = Classes(("a", "b", "c"), ("a", "b", "c"), False)
    assert aligned(ids([0, -1]), ("b", "a"), training).tolist() == [1, -1]
    with pytest.raises(ValueError, match="labels run to 5, but there are 2 class names"):
        aligned(ids([0, 5]), ("b", "a"), training)


def test_classes_are_meant_by_name_or_id():
    names = ("cat", "dog", "7")
    assert class_ids(["dog", 0, "7"], names, 3) == (1, 0, 2) and class_ids([], names, 3) == ()
    assert class_ids([4, 0], (), 5) == (4, 0)
    for wanted, says in (
        (["dgo"], "cat, dog, 7.*got dgo; did you mean dog"),
        ([3, 0], "got 3, 0"),
        ([True], "got True"),
    ):
        with pytest.raises(ValueError, match=says):
            class_ids(wanted, names, 3)
