"""Edits of real images, measured: what stays, what fits, and what is drawn as its class.

    python benchmarks/edits.py RUN [RUN ...] [--test digits:test] [--train digits:train] [--extractor pixels]
                               [--count 400] [--only inpaint] [--picture FILE.png]
    python benchmarks/edits.py RUN --missing 3 [--count 1000]

Images in turn have a hole in the middle, or miss their right half. "As its class" is by an SVM fitted to the features
of 5,000 training images; real test images stand beside it. The seam is the mean squared difference of neighbouring
pixels of which one is known: its difference from that of the same real images is paired. Errors are one standard error.
With --missing, a class that the run was not trained on is drawn from 8 test images of it as history.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluvial.data.images import DataConfig
from fluvial.evaluation.images import Images
from fluvial.evaluation.opening import open_images
from fluvial.flow.solvers import SolverName
from fluvial.methods import method_of, name_of
from fluvial.metrics.accuracy import classifier
from fluvial.metrics.features import Extractor, extractor
from fluvial.run import edit
from fluvial.run.load import Sampler, load
from fluvial.sampling.edit import pooled
from fluvial.utils import pictures

FITTED, EXAMPLES, SHOWN = 5000, 8, 16
Rows = dict[str, Tensor]
Found = tuple[str, Tensor, Tensor, str]  # name of an edit, results, their labels, and what else there is to say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--test", default="digits:test")
    parser.add_argument("--train", default="digits:train")
    parser.add_argument("--extractor", default="pixels")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--only", choices=("inpaint", "vary", "grow", "invert"))
    parser.add_argument("--missing", type=int)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    look = extractor(options.extractor)
    like = None if options.test.startswith("digits") else DataConfig(size=28, crop="centre", channels=1)
    test, train = open_images(options.test, like), open_images(options.train, like)
    images, labels = read(test, options.count)
    in_class = accuracy(look, *read(train.some(FITTED), FITTED))
    print("| run | edit | as its class | other |\n| --- | --- | ---: | --- |")
    print(f"| | real images | {share(in_class(images, labels))} | |", flush=True)
    rows: Rows = {"real": images[:SHOWN]}
    for folder in options.runs:
        sampler = load(folder)
        if options.missing is not None:
            found = missing(sampler, test, options.missing, options.count)
        else:
            found = edits(sampler, images, labels, options.only)
        for name, drawn, wanted, other in found:
            print(f"| {folder.name} | {name} | {share(in_class(drawn, wanted))} | {other} |", flush=True)
            rows[f"{folder.name}: {name}"] = drawn[:SHOWN]
        if options.picture:
            pictures.save_labelled_rows(rows, options.picture)


def read(images: Images, most: int) -> tuple[Tensor, Tensor]:
    found, labels = images.read(list(range(min(images.n, most))))
    assert labels is not None
    return found, labels


def accuracy(look: Extractor, images: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def features(of: Tensor) -> Tensor:
        return torch.cat([look.extract(part.expand(-1, 3, -1, -1)).pooled for part in of.split(250)])

    fitted = classifier(features(images), labels)
    return lambda drawn, wanted: fitted(features(drawn), wanted)


def share(hits: Tensor) -> str:
    p = float(hits.float().mean())
    return f"{p:.3f} ± {math.sqrt(p * (1 - p) / len(hits)):.3f}"


def mean(values: Tensor) -> str:
    return f"{float(values.mean()):.3g} ± {float(values.std()) / math.sqrt(len(values)):.2g}"


def edits(sampler: Sampler, images: Tensor, labels: Tensor, only: str | None) -> Iterator[Found]:
    """The edits that the method of the run can make."""
    config = sampler.run.method
    names = method_of(config).scales(config)
    if only in (None, "inpaint"):
        yield from inpainting(sampler, images, labels)
    for keep in range(len(names) if only in (None, "vary") else 0):
        drawn = edit.vary(sampler, images, keep=keep, classes=labels).images
        yield f"vary, keep {keep} of {len(names)}", drawn, labels, f"distance {mean(distance(drawn, images))} levels"
    if names and only in (None, "grow"):
        maps = [clean.shape[-2:] for _, clean in method_of(config).targets(config, torch.zeros(1, 1, *config.size))]
        small = pooled(images.float(), (int(maps[-2][0]), int(maps[-2][1]))).round().to(torch.uint8)
        for agree in (False, True):
            drawn = edit.grow(sampler, small, agree=agree, classes=labels).images
            off = (pooled(drawn.float(), (int(maps[-2][0]), int(maps[-2][1]))) - small).abs().flatten(1).mean(1)
            yield f"grow{' --agree' * agree}", drawn, labels, f"pooled, off by {mean(off)} levels"
    if not names and only in (None, "invert"):
        tried: tuple[tuple[SolverName, int], ...] = (("ab2", 20), ("heun", 40))
        for solver, steps in tried:
            found = edit.invert(sampler, images[:100], classes=labels[:100], solver=solver, steps=steps)
            other = f"latents off by {mean(found.error)}, pixels by {mean(distance(found.back.images, images[:100]))}"
            yield f"invert, {solver} {steps}", found.back.images, labels[:100], f"{other} levels"


def distance(drawn: Tensor, images: Tensor) -> Tensor:
    """The root mean square difference of each image, in levels of 256."""
    return (drawn.float() - images.float()).square().flatten(1).mean(1).sqrt()


def inpainting(sampler: Sampler, images: Tensor, labels: Tensor) -> Iterator[Found]:
    side, method = images.shape[-1], sampler.run.method
    by_scales = len(method_of(method).scales(method)) > 0
    hole, half = (torch.zeros(side, side, dtype=torch.bool) for _ in range(2))
    hole[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    half[:, side // 2 :] = True
    masks = torch.stack([hole, half])[torch.arange(len(images)) % 2]
    own = sampler.sample(len(images), classes=labels, seed=1).images
    pasted = torch.where(masks[:, None], own, images)
    yield "inpaint, pasted", pasted, labels, told(pasted, images, masks)
    for repeats in (0, 4):
        drawn = torch.empty_like(images)
        for i, mask in enumerate((hole, half)):
            rows = slice(i, None, 2)
            once: dict[str, Any] = {"passes": 1} if by_scales and not repeats else {}
            found = edit.inpaint(sampler, images[rows], mask, repeats=repeats, classes=labels[rows], **once)
            drawn[rows] = found.images
        yield f"inpaint, {'taken again' if repeats else 'replaced only'}", drawn, labels, told(drawn, images, masks)


def told(drawn: Tensor, images: Tensor, masks: Tensor) -> str:
    known = (~masks)[:, None].expand_as(images)
    same = "known pixels the same" if torch.equal(drawn[known], images[known]) else "known pixels CHANGED"
    more = seam(drawn, masks) - seam(images, masks)
    return f"seam {mean(seam(drawn, masks))}, more than real by {mean(more)}; {same}"


def seam(images: Tensor, masks: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels of which one is masked, for each image."""
    total, count = 0.0, 0.0
    for axis in (1, 2):
        size = masks.shape[axis] - 1
        across = masks.narrow(axis, 0, size) != masks.narrow(axis, 1, size)
        step = images.float().narrow(axis + 1, 0, size) - images.float().narrow(axis + 1, 1, size)
        total = total + (step.square().mean(1) * across).flatten(1).sum(1)
        count = count + across.flatten(1).sum(1)
    return torch.as_tensor(total / count)


def missing(sampler: Sampler, test: Images, label: int, count: int) -> Iterator[Found]:
    images, labels = read(test, 2000)
    examples, wanted = images[labels == label][:EXAMPLES], torch.full((count,), label)
    config = sampler.run.method
    name = f"{name_of(type(config))}, {config.images_per_sequence} images a sequence, label drop {config.label_drop}"
    for classes, by in ((None, "null label"), (label, "its label")):
        alone = edit.fork(sampler, 0, count, at=1e-6, classes=classes, guidance=1.0).images
        yield f"{by}, no examples", alone, wanted, name
        for beside in (False, True):
            drawn = edit.in_context(sampler, examples, count, classes=classes, alone=not beside, guidance=1.0).images
            yield f"{by}, {EXAMPLES} examples{' beside the trajectory' * beside}", drawn, wanted, name


if __name__ == "__main__":
    main()
