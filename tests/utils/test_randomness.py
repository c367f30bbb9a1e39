import torch

from fluvial.utils.randomness import generator, normal, numpy_generator


def test_an_image_has_its_own_noise_whatever_the_batch():
    whole = normal(3, range(10), (2, 3, 3))
    assert torch.equal(torch.cat([normal(3, range(4), (2, 3, 3)), normal(3, range(4, 10), (2, 3, 3))]), whole)
    assert torch.equal(normal(3, [7], (2, 3, 3))[0], whole[7])


def test_seed_image_and_step_each_give_new_noise():
    base = normal(0, [0], (1000,))
    for other in (
        normal(1, [0], (1000,)),
        normal(-1, [0], (1000,)),
        normal(0, [1], (1000,)),
        normal(0, [0], (1000,), step=1),
    ):
        correlation = torch.corrcoef(torch.stack([base[0], other[0]]))[0, 1]
        assert abs(correlation) < 0.15  # 0.03 expected; the same stream, or one shifted into it, would show


def test_the_noise_is_standard_normal():
    x = normal(0, range(200), (1000,)).double()
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.06


def test_generators_are_functions_of_their_address():
    def draw(*address):
        return torch.rand(3, generator=generator(*address))

    assert torch.equal(draw(0, "train", 5), draw(0, "train", 5))
    assert not torch.equal(draw(0, "train", 5), draw(0, "train", 6))
    assert not torch.equal(draw(0, "train", 5), draw(0, "held-out", 5))
    assert numpy_generator(0, 1).random() == numpy_generator(0, 1).random() != numpy_generator(1, 0).random()
