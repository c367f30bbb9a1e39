"""The network of a plan: how many pixels, which patches, how deep and wide, for the compute there is."""

from collections.abc import Sequence
from math import log, sqrt

from fluvial import methods
from fluvial.methods.method import Proportioned

METHOD = "arflow"  # where none is asked for
LADDER = (  # depth and width, by parameters; narrower ones take hardly less time a token
    *((2, 128), (3, 128), (4, 128), (4, 192), (6, 192), (6, 256), (8, 256)),
    *((8, 384), (12, 384), (12, 512), (12, 768), (16, 768), (24, 1024)),
)
SIZES = {"small": (4, 128), "base": (8, 256), "large": (12, 384)}
TOKENS, FEWEST_TOKENS = 64, 25  # of an image
NUMBERS = 48  # of a patch of pixels at most, where there is room for a coarser one
TOKENS_A_PARAMETER = 20  # in training: about those of cifar10-sit, and the ratio of language models (arXiv 2203.15556)
RATE = 4e-3  # the learning rate at a width of 128, chosen by short runs (docs/own-images.md)


def layers(flops: float) -> tuple[int, int]:
    """Depth and width of the network for this many training FLOPs, 6 for each parameter and token.

    The parameters of a block are 18 width^2: 4 in attention, 8 in the MLP, 6 in the modulation.
    """
    wanted = sqrt(flops / (6 * TOKENS_A_PARAMETER))
    return min(LADDER, key=lambda rung: abs(log(18 * rung[0] * rung[1] ** 2 / wanted)))


def learning_rate(width: int, *, trained: bool = False) -> float:
    """The peak learning rate of AdamW for a network of this width, to two digits; half for one that is `trained`.

    It falls as one over the width squared, which comes near to what has worked: 1e-3 at 256 (docs/results/h100.md),
    4e-4 at 384 (the CIFAR-10 recipes), 1e-4 at 768 (the releases).
    """
    return float(f"{RATE * (128 / width) ** 2 / (2 if trained else 1):.1e}")


def patch_of(side: int, most_tokens: int, *, smallest: int = 1) -> int:
    """The smallest patch that divides the side and makes at most so many tokens; 0 if there is none."""
    patches = (patch for patch in range(smallest, side + 1) if side % patch == 0)
    return next((patch for patch in patches if (side // patch) ** 2 <= most_tokens), 0)


def coarser(side: int, patch: int, channels: int) -> int:
    """The largest patch from this one on that divides the side and has at most 48 numbers, or this one."""
    larger = (n for n in range(patch, side + 1) if side % n == 0 and channels * n**2 <= NUMBERS)
    return max(larger, default=patch)


def is_divisible(side: int, *, smallest: int) -> bool:
    """True if some patch makes at most 64 tokens of a side but not too few, as of 62, whose patches are 2 or 31."""
    patch = patch_of(side, TOKENS, smallest=smallest)
    return bool(patch) and (side // patch) ** 2 >= min(FEWEST_TOKENS, (side // smallest) ** 2)


def pixel_side(sides: Sequence[int], *, most: int, multiple: int, stride: int = 1) -> int:
    """The side that images are cropped to: at most `most` pixels, no more than the images have, and a multiple.

    It is one that patches divide well, after an autoencoder of this stride. Raises ValueError for images that are
    smaller than two patches.
    """
    side = min(most, *sides) // multiple * multiple
    if side < 2 * multiple:
        raise ValueError(
            f"the smallest images are {sides[1]} pixels wide or {sides[0]} high, and at least {2 * multiple} are "
            f"needed: remove them (`fluvial data inspect` lists sizes), or give --data.size, to which all are resized"
        )
    smallest = 2 if stride == 1 else 1
    return next(n for n in range(side, 0, -multiple) if is_divisible(n // stride, smallest=smallest))


def known(method: str) -> Proportioned:
    """The method of a name. Raises ValueError if there is none, or it does not say what its networks look like."""
    methods.check_known(method)
    found = methods.METHODS[method]
    if not isinstance(found, Proportioned):
        able = ", ".join(name for name, each in methods.METHODS.items() if isinstance(each, Proportioned))
        raise ValueError(f"--method {method}: it has no function `proportioned` that chooses a network; give {able}")
    return found
