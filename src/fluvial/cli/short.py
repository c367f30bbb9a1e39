"""The short names of options, which parsing, help and completion read. Nothing here imports torch.

A command in SHORT shows these options in its `--help`, and all of its settings in `--help all`. Beside a short name its
long one is taken as well: --steps and --train.steps are one option, and giving both is refused.
"""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fluvial.utils.run_format import present_option

HELP = ("-h", "--help", "--help-all")
WIDTH = 80  # columns of the help
OF_IMAGES = ("method", "size", "name", "from", "autoencoder")  # options for `fluvial train IMAGES` alone
PLANNED = ("minutes", "epochs", *OF_IMAGES)  # options that recipes and files do not have
FLAGS = ("smoke", "dry-run", "start-over")  # switches of train that decide on the defaults of other options


class Short(NamedTuple):
    name: str
    """The option as it is typed, without the dashes."""
    setting: str
    """Its long name; the same as `name` for an option that has no other."""
    value: str
    """What it takes, as the help shows it; "" for a switch."""
    about: str
    """A line for the help; "" leaves it out there."""


SEED = Short("seed", "seed", "N", "seed; image i depends on (seed, i) alone")
DEVICE = Short("device", "device", "DEVICE", "cpu, cuda, cuda:1 or mps; auto is CUDA if it is there")
STEPS = Short("steps", "sample.steps", "N", "solver steps from noise to image; several for the scales of FlowAR")
NFE = Short("nfe", "nfe", "N", "evaluations of the network for an image, in place of steps")
GUIDANCE = Short("guidance", "sample.guidance.weight", "W", "weight of guidance by the class; 1 is none")
SOLVER = Short("solver", "sample.solver", "NAME", "euler, ab2, heun, midpoint, dopri5 or euler-maruyama")

SHORT: dict[str, tuple[Short, ...]] = {
    "train": (
        Short("minutes", "minutes", "M", "how long to train on IMAGES (default: 30), or how much longer RUN"),
        Short("steps", "train.steps", "N", "how long to train, in optimizer steps"),
        Short("epochs", "epochs", "N", "how long to train on IMAGES or RUN, in passes over the images"),
        Short("method", "method", "NAME", "arflow, flowar or sit, for IMAGES (default: arflow)"),
        Short("size", "size", "SIZE", "small, base or large network, for IMAGES; fits the time by default"),
        Short("autoencoder", "autoencoder", "PLACE", "train on its latents, for IMAGES"),
        Short("from", "from", "RUN", "start from the weights of a run, for IMAGES"),
        Short("name", "name", "NAME", "the run goes to runs/NAME, for IMAGES"),
        Short("data", "data.path", "PLACE", "images of a RECIPE or FILE that are elsewhere"),
        Short("batch", "train.batch", "N", "images a step, for ARFlow sequences of images"),
        Short("lr", "optim.lr", "RATE", "peak learning rate"),
        Short("seed", "seed", "N", "seed of weights, order of the data, and noise"),
        Short("out", "out", "FOLDER", "folder of the run; runs/RECIPE by default, or RUN itself"),
        DEVICE,
        Short("smoke", "smoke", "", "try the recipe with a small model, in runs/RECIPE-smoke"),
        Short("dry-run", "dry-run", "", "train nothing: print the size and settings, and make all checks"),
        Short("start-over", "start-over", "", "train from the start again where no checkpoint is whole"),
    ),
    "sample": (
        Short("classes", "classes", "NAME ...", "classes by name or id, for the images in turn; all by default"),
        Short("count", "count", "N", "number of images (default: 100); above 1,000 they are made in parts"),
        Short("indices", "indices", "I ...", "indices of images to draw again, in place of a count"),
        Short("form", "form", "FORM", "npz, png (one file an image), tar (shards) or latents (not decoded)"),
        STEPS,
        NFE,
        GUIDANCE,
        SOLVER,
        SEED,
        Short("gif", "gif", "", "also draw how the images form, as a GIF; --no-gif leaves it out"),
        Short("preview", "preview", "", "also draw the estimate of the images at every step, as preview.gif"),
        Short("step", "step", "N", "training step of the checkpoint; the newest by default"),
        Short("out", "out", "FOLDER", "folder for the pictures; RUN/samples by default"),
        DEVICE,
    ),
    "distill": (
        Short("steps", "steps", "N", "steps that the new run samples in; of FlowAR, at each scale"),
        Short("minutes", "minutes", "M", "time for it in all; by default 10,000 trajectories, 5,000 training steps"),
        Short("trajectories", "trajectories", "N", "trajectories to draw and store; 0: new ones in every step"),
        Short("images", "images", "", "learn from the images of RUN, in place of trajectories"),
        Short("updates", "updates", "N", "training steps, in place of minutes"),
        GUIDANCE,
        Short("solver", "sample.solver", "NAME", "solver of the trajectories: ab2, heun, midpoint or euler"),
        Short("step", "step", "N", "training step of the checkpoint; the newest by default"),
        Short("out", "out", "FOLDER", "folder of the new run; RUN-N-steps by default"),
        DEVICE,
    ),
    "edit": (
        Short("images", "images", "PLACE", "images to edit: file, folder, NAME:SPLIT or .npz; or examples"),
        Short("indices", "indices", "I ...", "which of these images; the first 16 by default"),
        Short("fit", "fit", "", "crop and scale images and mask to the size of the run; not for grow"),
        Short("mask", "mask", "FILE", "inpaint: an image of the same size, white where to draw, black where to keep"),
        Short("keep", "keep", "K", "vary: number of scales that are kept, from the coarsest"),
        Short("agree", "agree", "", "grow: change the result so that, pooled, it is the small image again"),
        Short("at", "at", "T", "redraw, fork: time between 0 (noise) and 1 (image) from which is drawn"),
        Short("count", "count", "N", "context, fork: number of images (default: 16)"),
        Short("classes", "classes", "NAME ...", "class to draw, or one for each image; none is without a class"),
        Short("copies", "copies", "N", "results for each image"),
        STEPS,
        GUIDANCE,
        SOLVER,
        Short("seed", "seed", "N", "seed; the noise of result i depends on (seed, i) alone"),
        Short("out", "out", "FOLDER", "folder for the results; RUN/edit-KIND by default"),
        DEVICE,
    ),
    "walk": (
        Short("from", "start", "IMAGE", "image to begin with: CLASS:INDEX, or INDEX, such as cat:3"),
        Short("to", "end", "IMAGE", "image to end with"),
        Short("frames", "frames", "N", "images from one to the other, both included (default: 24)"),
        Short("corners", "corners", "IMAGE ...", "four images in place of two: draws a plane between them"),
        Short("side", "side", "N", "images along each side of the plane (default: 8)"),
        Short("seeds", "seeds", "N ...", "four seeds in place of images: draws between what they draw,"),
        Short("at", "at", "X Y", "at this place, two numbers from 0 to 1"),
        STEPS,
        NFE,
        GUIDANCE,
        SOLVER,
        Short("seed", "seed", "N", "seed of the noise that the indices stand for"),
        Short("out", "out", "FOLDER", "folder for the pictures; RUN/walk by default"),
        DEVICE,
    ),
    "score": (
        Short("count", "count", "N", "number of images to draw and measure, of a run"),
        STEPS,
        NFE,
        GUIDANCE,
        SOLVER,
        SEED,
        Short("reference", "reference", "PLACE", "what to measure against; for a run test or train, of its own data"),
        Short("features", "features", "NAME", "pixels, inception, efficientnet-lite0, dinov2, clip, or a file"),
        Short("extractor", "features", "NAME", ""),
        Short("nearest", "nearest", "", "also look for copies of training images"),
        Short("keep", "keep", "FILE", "also write the statistics, to be a --reference later"),
        Short("against", "against", "FILE", "a card to compare with"),
        Short("out", "out", "FILE", "where to write the card; RUN/score.json for a run by default"),
        DEVICE,
    ),
    "likelihood": (
        Short("count", "count", "N", "number of images, a fixed random choice"),
        Short("solver", "solver", "NAME", "dopri5 (the default), heun, midpoint, ab2 or euler"),
        Short("tolerance", "tolerance", "X", "absolute and relative tolerance of dopri5 (default: 1e-4)"),
        Short("steps", "steps", "N", "steps of the other solvers (default: 64)"),
        Short("probes", "probes", "N", "random probes of the divergence (default: 2)"),
        Short("exact", "exact", "", "the exact divergence, of images of at most 1,024 numbers"),
        Short("history", "history", "on|off", "off is for ARFlow: another model than the one that samples"),
        Short("samples", "samples", "", "the run's own samples, by the Jacobian of its sampler"),
        Short("labels", "labels", "own|none", "none is for the model without classes"),
        Short("seed", "seed", "N", "seed of dequantisation and probes"),
        Short("step", "step", "N", "training step of the checkpoint; the newest by default"),
        Short("out", "out", "FILE", "where to write all numbers; RUN/likelihood.json by default"),
        DEVICE,
    ),
    "guide": (
        Short("weights", "weights", "W ...", "weights of guidance; 1 is none"),
        Short("intervals", "intervals", "T T ...", "times between which it acts, 0 (noise) to 1: two for each"),
        Short("averages", "averages", "A ...", "ema, raw, or lengths of averages that the run has stored"),
        Short("steps", "steps", "N ...", "numbers of solver steps; the run's own by default"),
        SOLVER,
        Short("count", "count", "N", "images of each combination"),
        Short("metric", "metric", "SCORE", "the score to rank by, such as precision or kernel_distance"),
        Short("write", "write", "", "write the chosen settings into the run, as its defaults"),
        SEED,
        Short("reference", "reference", "PLACE", "what to measure against; test or train of the run's own data"),
        Short("features", "features", "NAME", "pixels, inception, efficientnet-lite0, dinov2, clip, or a file"),
        Short("extractor", "features", "NAME", ""),
        DEVICE,
    ),
}
ABOUT = {
    "train": (
        "IMAGES|RUN|FILE|RECIPE",
        "Train on images, or go on with a run.",
        "IMAGES is a folder, parquet, tar, latents or OWNER/NAME of the hub; RUN a run folder, to go on with, or with "
        "--out to start another from its weights; FILE a .yaml of settings; RECIPE a name that `fluvial recipes` "
        "lists.",
    ),
    "sample": ("RUN", "Draw images from a run folder.", "RUN is a folder that `fluvial train` or `import` wrote."),
    "edit": (
        "KIND RUN",
        "Draw parts of known images, or images like them.",
        "KIND is inpaint (a mask), vary (other fine scales), grow (from small images), redraw (from noisy images), "
        "invert (to noise and back), context (with examples), or fork (trajectories that begin as one).",
    ),
    "walk": (
        "RUN",
        "Draw the images between two, as a GIF, or between four, as a grid; or at a place between four seeds.",
        "An image is CLASS:INDEX, or INDEX, as `fluvial sample --classes CLASS --indices INDEX` draws it. Noises are "
        "mixed on the sphere, and classes by their label embeddings.",
    ),
    "score": (
        "WHAT",
        "Measure images against real ones, and write a card of scores.",
        "WHAT is a run folder, whose samples are drawn; images: a folder, an .npz, what `fluvial sample` wrote, "
        "NAME:SPLIT; or a card, to put beside another with --against.",
    ),
    "likelihood": (
        "RUN [IMAGES]",
        "Measure how likely images are under a model: bits per dimension, the fewer the better.",
        "RUN is a run folder; IMAGES are test (its validation images, the default), train (its training images), a "
        "folder, an .npz or NAME:SPLIT. The density is that of the model without guidance, by the ODE that it samples "
        "along. ARFlow needs --history off, or --samples; FlowAR has a density for each scale.",
    ),
    "distill": (
        "RUN",
        "Make a run that samples in a few steps, with the guidance of RUN in its weights.",
        "RUN is a run folder, which draws trajectories with its own settings of sampling. The new run learns to follow "
        "them in --steps; or with --images it learns from the images that RUN was trained on. The same command goes on "
        "where it stopped.",
    ),
    "guide": (
        "RUN",
        "Find the guidance of a run: weights, intervals, averages and steps are measured on few images.",
        "RUN is a run folder. All combinations are drawn from the same noise and kept in RUN/guide.",
    ),
}
"""By command, its argument, what it does, and what the argument can be."""


def long_name(command: str, name: str) -> str:
    """The present long name of an option of a command, both without dashes and in any spelling of _ and -."""
    name = present_option(f"--{name}").removeprefix("--").replace("_", "-")
    return next((short.setting for short in SHORT.get(command, ()) if short.name == name), name)


def lengthened(command: str, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words with long names for short and former ones; and, by its long name, each option as it was written."""
    found, written = list[str](), dict[str, str]()
    for word in words:
        name, attached, value = word.partition("=")
        if is_option(name):
            long = f"--{long_name(command, name[2:])}"
            written[long] = name
            word = f"{long}{attached}{value}"
        found.append(word)
    return found, written


def is_option(word: str) -> bool:
    """True for what begins with -- and a letter: a value of that kind is taken only where it is attached with =."""
    return word[:2] == "--" and word[2:3].isalpha()


def with_all(words: Sequence[str]) -> list[str]:
    """The words with --help-all for --help all."""
    found = list[str]()
    for word in words:
        if word == "all" and found and found[-1] in ("-h", "--help"):
            found[-1] = "--help-all"
        else:
            found.append(word)
    return found


def short_help(
    command: str,
    what: str = "",
    *,
    about: Sequence[str] = (),
    defaults: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> str:
    """The help of a command on one screen: `what` stands in for its argument, `defaults` are by long name.

    The options `without` are left out.
    """
    argument, does, meaning = ABOUT[command]
    texts = [f"usage: fluvial {command} {what or argument} [options]", *(about or (does, meaning))]
    lines = [line for text in texts for line in (*_wrapped(text), "")]
    shown = [short for short in SHORT[command] if short.about and short.name not in without]
    left = max(len(_left(short)) for short in shown) + 2
    for short in shown:
        default = (defaults or {}).get(short.setting, "")
        text = short.about + (f" (default: {default})" if default else "")
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=_left(short).ljust(left), subsequent_indent=" " * left, break_on_hyphens=False
        )
    lines += ["", *_wrapped(_more(command, what or argument))]
    return "\n".join(lines)


def _left(short: Short) -> str:
    return f"  --{short.name} {short.value}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _more(command: str, what: str) -> str:
    """The line at the end of the help."""
    renamed = [f"--{s.name} is --{s.setting}" for s in SHORT[command] if s.about and s.name != s.setting]
    in_full = f" In full, {', '.join(renamed)}." if renamed else ""
    return f"`fluvial {command} {what} --help all` lists every setting.{in_full}"
