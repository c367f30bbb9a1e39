"""The training data of a run: its autoencoder, and images or cached latents, checked against the model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fluvial import autoencoders
from fluvial.autoencoders import Autoencoder, AutoencoderConfig, kl16
from fluvial.config import Run
from fluvial.data import images as data_images
from fluvial.data import latents
from fluvial.data.batches import Batch, Examples, batches, in_two, with_same_classes
from fluvial.data.given import Given, checked, image_sets, is_place
from fluvial.data.images import DataConfig, ImageSet, Split, listed
from fluvial.data.latents import LatentSet, Manifest, Plan
from fluvial.data.manifest import is_cache
from fluvial.data.pixels import to_signed
from fluvial.data.sources import check_there
from fluvial.training.step import Batches
from fluvial.training.validation import EXAMPLES, validation_losses
from fluvial.utils.places import HUB, missing, repository
from fluvial.utils.randomness import address, generator, numpy_generator

WEIGHT_FILES = (".ckpt", ".pt", ".pth", ".safetensors")
MEASURED = 1024  # images behind the measured shift and scale, where no cache has those of all


@dataclass(frozen=True, kw_only=True)
class Inputs:
    run: Run
    """The run with what was found: shift, scale and hash of the autoencoder, names of the classes."""
    autoencoder: Autoencoder
    train: Examples
    held_out: Examples | None


def open_autoencoder(config: AutoencoderConfig, given: Autoencoder | None = None) -> Autoencoder:
    """The autoencoder of that name, or the one `given` in Python, with the configured shift and scale, or its own.

    Raises ValueError if there is none of that name, or its weights are not those that the configuration was made with.
    """
    if given is None:
        autoencoder = _named(config)
        wrong = f"weights have the hash {config.hash}, {config.name!r} has {autoencoder.hash}"
        advice = "name the right one (--autoencoder of sample and score, --autoencoder.name of train)"
    else:
        autoencoder = given
        wrong = f"hash is {config.hash}, got {type(given).__name__} whose hash is {given.hash}"
        advice = "give the one that the run was trained with"
    if config.hash and autoencoder.hash != config.hash:
        raise ValueError(f"the run was made with an autoencoder whose {wrong}; {advice}")
    return autoencoder.standardised(config.shift, config.scale) if config.shift else autoencoder


def _named(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder of that name as it is published. Raises ValueError if there is none."""
    file = Path(config.name).suffix in WEIGHT_FILES
    if file and not Path(config.name).exists():
        raise ValueError(
            f"the autoencoder {config.name} is not there: name its file or folder with --autoencoder; "
            f"{missing(config.name)}"
        )
    return kl16.load(config.name) if file else autoencoders.load(config.name)


def open_inputs(
    run: Run,
    *,
    images: ImageSet | None = None,
    held_out: ImageSet | None = None,
    autoencoder: Autoencoder | None = None,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    tell: Callable[[str], None] = print,
) -> Inputs:
    """The autoencoder and the data of a run, checked against its model. What is given stands in for what it names.

    `cache` is the folder for the latents of a run with data.cache. `tell` is called with what is left out of the data.

    Raises ValueError if something cannot be found or read, or does not fit.
    """
    for place in (run.data.place, run.data.test_path) if images is None else ():
        if place and place not in (*data_images.BUILT_IN, "given"):
            check_there(place)  # before anything is downloaded or read
    autoencoder = open_autoencoder(run.autoencoder, autoencoder).to(device)
    run, train, test = _open_data(run, autoencoder, images, held_out, cache, device, tell)
    if not run.autoencoder.shift and run.autoencoder.statistics == "measured":
        autoencoder.standardised(*_measured(train, autoencoder, device))
    for part in (train, *([] if test is None else [test])):
        _check_fit(run, part, autoencoder, device, whole=part is train)
    found = replace(
        run.autoencoder, shift=autoencoder.shift, scale=autoencoder.scale, hash=run.autoencoder.hash or autoencoder.hash
    )
    return Inputs(run=replace(run, autoencoder=found), autoencoder=autoencoder, train=train, held_out=test)


def check_data(run: Run, tell: Callable[[str], None] = print) -> Examples:
    """The training examples of a run whose autoencoder is not here: all is checked that does not depend on it.

    Raises ValueError if something cannot be found or read, or does not fit.
    """
    run, train, test = _open_data(run, None, None, None, None, "cpu", tell)
    for part in (train, *([] if test is None else [test])):
        _check_labels(run, part, whole=part is train)
    settings = {"images_per_sequence": run.method.images_per_sequence, "small_classes": run.data.small_classes}
    batches(train, lambda rows, *_: rows, batch=run.train.batch, seed=run.seed, **settings)  # the size of the classes
    return train


def on_the_hub(run: Run) -> dict[Literal["data", "autoencoder"], str]:
    """The inputs of a run that have to be downloaded from the hub, each with the option that names a local copy."""
    found: dict[Literal["data", "autoencoder"], str] = {}
    places = [run.data.place, *([run.data.test_path] if run.data.test_path else [])]
    if any(place.startswith(HUB) for place in places):
        found["data"] = f"the images {' and '.join(places)}, on the hub; name files here with --data.path"
    name = run.autoencoder.name
    is_here = name == "pixels" or Path(name).suffix in WEIGHT_FILES or Path(name).expanduser().exists()
    if not is_here and repository(name) is not None:
        found["autoencoder"] = f"the autoencoder {name}, on the hub; name its folder with --autoencoder.name"
    return found


def _open_data(
    run: Run,
    autoencoder: Autoencoder | None,
    images: ImageSet | None,
    held_out: ImageSet | None,
    cache: Path | None,
    device: torch.device | str,
    tell: Callable[[str], None],
) -> tuple[Run, Examples, Examples | None]:
    """Training and validation examples, and the run with what they tell: see `open_inputs`."""
    if images is None and held_out is not None:
        raise ValueError("held-out images were given without training images: give both, or name both with run.data")
    given = run.data
    if images is None:
        data = given if run.method.classes else replace(given, label_column="none")
        as_it_is = replace(data, class_names=())  # classes are called what they are called there
        train = _examples(data if data.cache else as_it_is, autoencoder, "train", cache, device, tell)
        assert train is not None
        test = _examples(as_it_is, autoencoder, "test", cache, device, tell)
        run = replace(run, data=replace(given, digest=train.digest))
    else:
        train, test = checked(images), None if held_out is None else checked(held_out, "held-out images")
        if test is None and given.validation:
            train, test = in_two(train, given.validation)
    for part in (train, test):
        if part is not None and (left_out := _left_out(part)):
            tell(left_out)
    if run.method.classes == 0:
        train = train._replace(labels=None, class_names=())
        test = test and test._replace(labels=None, class_names=())
    train, test = with_same_classes(train, test, given)
    found = {"class_names": train.class_names or given.class_names, "names_given": given.renames}
    if isinstance(train, ImageSet) and images is not None:
        found["digest"] = train.checksum()  # with the class ids of the run, whatever their order where they are from
    run = replace(run, data=replace(run.data, **found))
    return run, train, test


def _left_out(examples: Examples) -> str:
    """A summary of the files and images left out of the examples; "" if none are."""
    if isinstance(examples, ImageSet):
        unreadable = f"left out: {listed(examples.skipped)}" if examples.skipped else ""
        return "\n".join(filter(None, (examples.left_out, unreadable)))
    skipped = examples.moments.manifest.skipped
    return f"left out when the latents were made: {listed(skipped)}" if skipped else ""


def encoder(autoencoder: Autoencoder, examples: Examples) -> Callable[..., Tensor]:
    """A function from rows of these examples, pixels in 0 ... 255 or moments, to latents: see `Vae.latents`."""
    if isinstance(examples, LatentSet):
        return autoencoder.latents
    return lambda pixels, *draw: autoencoder.latents(autoencoder.moments(to_signed(pixels)), *draw)


def batches_of(
    inputs: Inputs,
    examples: Examples,
    batch: int,
    device: torch.device | str,
    **options: Any,  # noqa: ANN401 - any of `batches`
) -> Callable[[int], Batch]:
    """Batches of the run's training or held-out examples, by step; `options` replace the run's."""
    run = inputs.run
    settings = {"seed": run.seed, "small_classes": run.data.small_classes, "device": device}
    settings |= {"images_per_sequence": run.method.images_per_sequence}
    return batches(examples, encoder(inputs.autoencoder, examples), batch=batch, **{**settings, **options})


def with_data(
    run: Run, data: Given | Path | str | None, validation: Given | Path | str | None
) -> tuple[Run, ImageSet | None, ImageSet | None]:
    """The run with the data that was given in place of its own: as a place in its settings, or as image sets."""
    if is_place(data):
        if validation is not None and not is_place(validation):
            raise ValueError(f"validation must be a place like the data, got {type(validation).__name__}")
        given: dict[str, Any] = {"path": str(data), "test_path": str(validation or ""), "split": "", "test_split": ""}
        of_pixels = run.autoencoder.name == "pixels" and run.method.channels in (1, 3)
        if of_pixels and str(data) not in data_images.BUILT_IN:
            given["channels"] = run.method.channels  # files are read as the model wants them
        return replace(run, data=replace(run.data, **given)), None, None
    if is_place(validation):
        raise ValueError(f"validation must be given like the data, got the place {validation}")
    images, held_out = image_sets(data, validation)
    if images is not None:
        run = replace(run, data=replace(run.data, name="given", path="", test_path=""))
    return run, images, held_out


def class_names_of(run: Run, images: ImageSet | None) -> tuple[str, ...]:
    """The names of the classes in the training images themselves, or in their latents; () for none."""
    if images is not None:
        return images.class_names
    if is_cache(place := run.data.place):
        return latents.read_manifest(Path(place).expanduser()).plan.class_names
    if place not in data_images.BUILT_IN:
        check_there(place)
    found = data_images.load(replace(run.data, class_names=()), "train", scan=False)
    return () if found is None else found.class_names


def batches_in_order(inputs: Inputs, device: torch.device, share: Callable[[int], slice], order: int) -> Batches:
    """This rank's training batches by step; `order` 0 is the run's own order of the data, others follow rollbacks."""
    run = inputs.run
    seed = address(run.seed, "order", order) if order else run.seed
    return batches_of(inputs, inputs.train, run.train.batch, device, seed=seed, flip=run.data.flip, share=share)


def validation_of(
    inputs: Inputs,
    device: torch.device,
    objective: Any = None,  # noqa: ANN401 - an Objective
) -> Callable[[nn.Module], dict[str, Any]] | None:
    """A function from a model to its validation loss, of the run's objective by default; None without such examples."""
    if inputs.held_out is None:
        return None
    run = inputs.run
    batch = batches_of(inputs, inputs.held_out, EXAMPLES, device, seed=0, small_classes="repeat")
    size = run.train.batch // run.train.accumulate
    return validation_losses(objective or run.objective, run.method, batch, size, device)


def encode(
    data: DataConfig,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    flip: bool = True,
    dtype: Literal["bf16", "fp32"] = "bf16",
    shard: int = 2048,
    batch: int = 32,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    tell: Callable[[str], None] = print,
) -> Manifest | None:
    """Writes the latents of the training split of `data` into a folder, or what is missing of them there.

    `tell` is called with what is left out of the data. Returns the manifest, or None while other processes of the
    `world` are at work.
    """
    if data.crop == "random":
        raise ValueError("latents of random crops cannot be cached: choose crop centre or pad")
    images = data_images.load(data, "train", scan=False)
    assert images is not None
    if images.left_out:
        tell(images.left_out)
    if images.labels is not None:
        _refuse_negative(images.labels)
    _check_encodes(images, autoencoder)
    plan = Plan(
        source=data.path or data.name,
        digest=images.digest,
        labels="" if images.labels is None else hashlib.sha256(images.labels.numpy().tobytes()).hexdigest(),
        images=len(images.pixels),
        autoencoder=autoencoder.identity,
        hash=autoencoder.hash,
        stride=autoencoder.stride,
        channels=autoencoder.channels or images.pixels.shape[1],
        image_size=images.pixels.shape[-1],
        crop=data.crop,
        flip=flip,
        dtype=dtype,
        shard=shard,
        class_names=images.class_names,
    )
    skip = data.unreadable == "skip"
    options = {"batch": batch, "skip_unreadable": skip, "device": device, "rank": rank, "world": world}
    return latents.write(images, autoencoder.moments, plan, folder, **options)


def _examples(
    data: DataConfig,
    autoencoder: Autoencoder | None,
    split: Split,
    cache: Path | None,
    device: torch.device | str,
    tell: Callable[[str], None],
) -> Examples | None:
    place = (data.test_path if split == "test" else "") or data.place
    if is_cache(place):
        if split == "test" and not data.test_path and not data.validation:
            return None
        folder = Path(place).expanduser()
        if autoencoder is not None:
            _check_cache(folder, data, autoencoder, flips=split == "train" and data.flip)
        found = latents.load(folder)
        return found if data.test_path or not data.validation else in_two(found, data.validation)[split == "test"]
    if split == "train" and data.cache and autoencoder is not None:
        if cache is None:
            raise ValueError("data.cache needs the folder of a run, which is not known here")
        if encode(data, autoencoder, cache, flip=data.flip, device=device, tell=tell) is None:
            raise ValueError(f"another process is writing {cache}; wait for it, then repeat the command")
        return latents.load(cache)
    return data_images.load(data, split)


def _check_cache(folder: Path, data: DataConfig, autoencoder: Autoencoder, *, flips: bool) -> None:
    """Raises ValueError naming both values if the cache was made otherwise than the run asks for."""
    plan = latents.read_manifest(folder).plan
    wrong = []
    if plan.hash != autoencoder.hash:
        wrong.append(
            f"the autoencoder is {plan.autoencoder} ({plan.hash}) there and {autoencoder.identity} "
            f"({autoencoder.hash}) here (autoencoder.name)"
        )
    if data.size and plan.image_size != data.size:
        wrong.append(f"images have {plan.image_size} pixels there and {data.size} here (data.size)")
    if plan.crop != data.crop:
        wrong.append(f"the crop is {plan.crop} there and {data.crop} here (data.crop)")
    if flips and not plan.flip:
        wrong.append("there are no mirror images there, and data.flip is True here")
    if wrong:
        raise ValueError(f"the latents in {folder} do not fit the run: {'; '.join(wrong)}")


def _check_encodes(examples: Examples, autoencoder: Autoencoder) -> None:
    """Raises ValueError for images with the wrong channels, or a size that is not a multiple of the stride."""
    if isinstance(examples, LatentSet):
        return
    _, channels, height, width = examples.pixels.shape
    if autoencoder.image_channels not in (None, channels):
        raise ValueError(
            f"the images have {channels} channels, {autoencoder.identity} takes {autoencoder.image_channels}; "
            f"set data.channels"
        )
    if height % autoencoder.stride or width % autoencoder.stride:
        raise ValueError(
            f"images of {width} x {height} pixels cannot be encoded by {autoencoder.identity}, whose latents stand for "
            f"{autoencoder.stride} x {autoencoder.stride} pixels each; choose a multiple of {autoencoder.stride}"
        )


def _check_fit(
    run: Run, examples: Examples, autoencoder: Autoencoder, device: torch.device | str, *, whole: bool
) -> None:
    """Raises ValueError unless the labels are the model's classes, and one example, encoded, has the shape it takes."""
    _check_encodes(examples, autoencoder)
    _check_labels(run, examples, whole=whole)
    first = examples.rows(torch.tensor([0])).to(device)
    shape = tuple(encoder(autoencoder, examples)(first, None).shape[1:])
    expected = (run.method.channels, *run.method.size)
    if shape != expected:
        raise ValueError(
            f"the data gives latents of {shape} (channels, height, width), the model takes {expected}; "
            f"set method.channels and method.size"
        )


def _check_labels(run: Run, examples: Examples, *, whole: bool) -> None:
    """Raises ValueError unless there are examples, and their labels are the classes of the model."""
    if len(examples[0]) == 0:
        raise ValueError("the data set has no images")
    if run.method.classes == 0:
        return
    labels, names = examples.labels, examples.class_names
    if labels is None:
        raise ValueError("the data has no labels; set method.classes to 0 to train without")
    _refuse_negative(labels)
    if int(labels.max()) >= run.method.classes:
        raise ValueError(
            f"the labels run from {int(labels.min())} to {int(labels.max())}, the model has "
            f"{run.method.classes} classes (0 to {run.method.classes - 1}): number them from 0, or set method.classes"
        )
    if len(names) == 1 or (whole and len(labels.unique()) == 1):
        one = repr(names[int(labels[0])]) if names else int(labels[0])
        raise ValueError(f"the data has one class only, {one}; set method.classes to 0 to train without labels")
    if names and len(names) != run.method.classes:
        raise ValueError(f"the data has {len(names)} classes, the model {run.method.classes}; set method.classes")


@torch.no_grad()
def _measured(
    examples: Examples, autoencoder: Autoencoder, device: torch.device | str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale that give each channel of the training latents mean 0 and standard deviation 1."""
    if isinstance(examples, LatentSet):
        return _standardising(examples.moments.manifest.mean, examples.moments.manifest.std)
    order = numpy_generator(0, "statistics").permutation(len(examples.pixels))[:MEASURED]
    autoencoder.standardised((0.0,), (1.0,))
    encode = encoder(autoencoder, examples)
    draws = generator(0, "statistics", device=device)
    parts = [encode(examples.rows(part).to(device), draws) for part in torch.from_numpy(order).split(32)]
    z = torch.cat(parts).double().cpu()
    return _standardising(z.mean((0, 2, 3)).tolist(), z.std((0, 2, 3)).tolist())


def _standardising(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale. Raises ValueError for a channel that is constant."""
    if constant := [channel for channel, s in enumerate(std) if not s > 0]:
        raise ValueError(f"channels {constant} of the latents are constant, so no scale can be measured; give one")
    return tuple(mean), tuple(1 / s for s in std)


def _refuse_negative(labels: Tensor) -> None:
    """Raises ValueError for labels below 0, which mean something in some data sets, and are no class."""
    if negative := int((labels < 0).sum()):
        first = int((labels < 0).nonzero()[0])
        raise ValueError(
            f"labels are class ids from 0 on, and {negative:,} of {len(labels):,} are below: that of image {first:,} "
            f"is {int(labels[first])}; give these images a class, or leave them out of the data"
        )
