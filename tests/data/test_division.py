"""The division of a data set: every class gives its share, the same images every time."""

import pytest
import torch

from fluvial.data.division import divided


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_every_class_gives_its_share_to_within_one_image(share):
    labels = torch.tensor([0] * 400 + [1] * 37 + [2] * 5 + [3] * 200)
    kept, held_out = divided(len(labels), labels, share)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    for number in range(4):
        assert abs(int((labels[held_out] == number).sum()) - share * int((labels == number).sum())) < 1
    assert len(held_out) == round(share * len(labels))


def test_it_is_the_same_every_time_and_not_in_order():
    first, second = divided(1000, None, 0.1), divided(1000, None, 0.1)
    assert torch.equal(first[1], second[1]) and len(first[1]) == 100
    assert first[1].diff().unique().numel() > 5


def test_the_only_image_of_a_class_stays_in_training():
    labels = torch.arange(40)
    kept, held_out = divided(40, labels, 0.5)
    assert len(kept) == 40 and len(held_out) == 0


def test_few_images_give_at_least_one():
    assert len(divided(6, None, 0.05)[1]) == 1
    assert [len(part) for part in divided(1, None, 0.05)] == [1, 0]
