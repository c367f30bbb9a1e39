import numpy as np
import pytest
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


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (3, 1), (2**63 - 1, 2**40), (2**64 + 5, 7)])
def test_draws_are_those_of_a_generator_of_each_image(seed, step):
    """Written images stay what they are: numpy's Philox, keyed by seed and image, counting from the step."""
    expected = []
    for image in (7, 0, 2**33):
        key = np.array([seed % 2**64, image], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=[0, 0, 0, step])
        expected.append(np.random.Generator(bits).standard_normal((3, 5), dtype=np.float32))
    assert torch.equal(normal(seed, [7, 0, 2**33], (3, 5), step=step), torch.from_numpy(np.stack(expected)))
