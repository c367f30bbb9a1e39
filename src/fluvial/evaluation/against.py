"""Reference sets from the data of a run: its test or training images, and a real baseline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from fluvial.data import images as data_images
from fluvial.data.batches import in_two, with_same_classes
from fluvial.data.images import DataConfig, ImageSet
from fluvial.data.manifest import is_cache
from fluvial.evaluation.images import Images
from fluvial.evaluation.opening import of_set
from fluvial.evaluation.reference import Reference, reference
from fluvial.evaluation.scores import Scores, measuring
from fluvial.evaluation.statistics import Statistics
from fluvial.metrics.features import Extractor
from fluvial.training.distributed import ALONE, World

BESIDE = 10_000  # real images used besides the reference set: to train the class classifier, and as the real baseline


class Real(NamedTuple):
    """The training and test images of a data set."""

    training: Images
    test: Images | None


def real_images(
    data: DataConfig, training: ImageSet | None = None, test: ImageSet | None = None, *, labelled: bool = True
) -> Real:
    """The training and test images of a run's data, or those given, with the run's class ids if it has classes.

    Raises ValueError if the data is cached latents, or the classes of the test images have other names.
    """
    name = data.path or data.name
    if training is None:
        if is_cache(name) or is_cache(data.test_path):
            raise ValueError(
                "the run was trained on cached latents, and a score needs images: name some with --reference, and with "
                "--training those that were encoded"
            )
        scan = data.unreadable == "skip"  # otherwise images are decoded when needed
        with_own_names = replace(data, class_names=())
        training, test = (data_images.load(with_own_names, split, scan=scan) for split in ("train", "test"))
        assert training is not None
    elif test is None and data.validation:
        training, test = in_two(training, data.validation)
    if labelled:
        training, test = with_same_classes(training, test, data)
    name_of_test = data.test_path or f"{name}, held out"
    return Real(of_set(training, name, data), None if test is None else of_set(test, name_of_test, data))


Which = Literal["test", "train"] | Reference


class Against(NamedTuple):
    """A reference set, and the function that scores statistics of samples against it."""

    reference: Reference
    training: Reference | None
    measure: Callable[[Statistics], Scores]


def against(which: Which, real: Real | None, extractor: Extractor, *, world: World = ALONE) -> Against:
    """The reference set and scoring function: for the test or training images of `real`, or for another reference.

    Of the part of `real` that is not the reference set, at most 10,000 images are used. Raises ValueError if test
    images are asked for and there are none.
    """

    def beside(images: Images | None) -> Reference | None:
        return None if images is None else reference(images.some(BESIDE), extractor, world=world)

    test = None
    if isinstance(which, Reference):
        found, training = which, beside(real and real.training)
        test = found if training is not None and found.hash != training.hash else None
    elif real is None:
        raise ValueError("there is no data set whose images could be the reference")
    elif which == "train":
        found = training = reference(real.training, extractor, world=world)
        test = beside(real.test)
    elif real.test is None:
        raise ValueError(
            f"{real.training.name} has no test images: name others (--reference of fluvial score, --data.test-path of "
            f"fluvial train), or take the training images (--reference train)"
        )
    else:
        found = test = reference(real.test, extractor, world=world)
        training = beside(real.training)
    statistics = [None if part is None else part.statistics for part in (training, test)]
    return Against(found, training, measuring(found.statistics, extractor.name, *statistics, device=extractor.device))
