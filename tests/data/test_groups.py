import pytest
import torch

from fluvial.data.groups import check_sizes, draw_groups, index_by_class

LABELS = torch.tensor([2] * 50 + [0] * 5 + [7] * 3)[torch.randperm(58, generator=torch.Generator().manual_seed(0))]


def test_the_index_finds_every_image_of_every_class():
    index = dict(index_by_class(LABELS, 58))
    assert sorted(index) == [0, 2, 7]
    for label, members in index.items():
        assert sorted(members) == (LABELS == label).nonzero().flatten().tolist()
    assert index_by_class(None, 4)[0][0] == -1


def test_a_sequence_is_distinct_images_of_one_class():
    index = index_by_class(LABELS, 58)
    groups, labels = draw_groups(index, seed=0, step=3, batch=400, images=3)
    assert groups.shape == (400, 3)
    assert torch.equal(LABELS[groups], labels[:, None].expand(-1, 3))
    assert all(len(set(row)) == 3 for row in groups.tolist())
    shares = torch.bincount(labels)[[0, 2, 7]] / 400
    assert (shares - 1 / 3).abs().max() < 0.08  # uniform over classes, not over images
    assert len(set(groups[labels == 2].flatten().tolist())) == 50  # every image gets its turn


def test_a_draw_is_a_function_of_seed_and_step():
    index = index_by_class(LABELS, 58)

    def draw(seed, step):
        return draw_groups(index, seed, step, batch=8, images=3)[0]

    assert torch.equal(draw(0, 5), draw(0, 5))
    assert not torch.equal(draw(0, 5), draw(0, 6)) and not torch.equal(draw(0, 5), draw(1, 5))


def test_small_classes_are_named_or_repeated_evenly():
    index = index_by_class(LABELS, 58)
    with pytest.raises(
        ValueError, match=r"needs 7 different images.*fewer: zero \(5\), 7 \(3\)\. .*data\.small_classes"
    ):
        check_sizes(index, 7, "error", class_names=["zero"])
    check_sizes(index, 3, "error")
    check_sizes(index, 7, "repeat")
    groups, labels = draw_groups(index, seed=0, step=0, batch=60, images=7)
    for row, label in zip(groups, labels, strict=True):
        counts = torch.bincount(row, minlength=58)[dict(index)[int(label)]]
        assert counts.max() - counts.min() <= 1
