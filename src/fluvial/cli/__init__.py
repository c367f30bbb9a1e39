"""The command line: parse, build, call.

fluvial recipes                       list the recipes
fluvial train RECIPE [options]        train one, or go on where it stopped
fluvial train RUN [options]           go on with a run folder, or start another from its weights
fluvial sample RUN [options]          draw images from a run folder
fluvial score RUN|IMAGES [options]    measure samples against real images: FID and its family, with provenance
fluvial plot RUN [RUN ...] [options]  draw the curves of runs into one picture
fluvial doctor RUN                    compare a run with what is expected: what is wrong, why, and what to do
fluvial compare digits [options]      train all methods for the same time and put them side by side
fluvial bench train RECIPE [options]  how fast training is, or sampling: images/s, memory, share of the machine's rate
fluvial import FILE [options]         a run folder of published weights
fluvial ema RUN --length 0.1          a run folder with another average of a run's weights
fluvial export RUN --to FORM          files of a run to publish: safetensors, diffusers, or the Hugging Face hub
fluvial data inspect DATA [options]   what is in a folder or data set: counts, sizes, classes, a contact sheet
fluvial encode DATA [options]         write the latents of all images, to train on
fluvial data verify LATENTS           check what `fluvial encode` wrote against its checksums

fluvial COMMAND --help lists the options of a command with their defaults; for train, those of the recipe.
"""

import sys
from collections.abc import Callable, Sequence

from fluvial import __version__
from fluvial.cli import average, bench, data, health, runs, score, weights
from fluvial.cli.arguments import UsageError
from fluvial.train.loop import Stopped

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "recipes": runs.list_recipes,
    "train": runs.train,
    "sample": runs.sample,
    "score": score.score,
    "plot": health.plot,
    "doctor": health.doctor,
    "compare": runs.compare,
    "bench": bench.bench,
    "import": weights.import_,
    "ema": average.ema,
    "export": weights.export,
    "data": data.data,
    "encode": data.encode,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a wrong command line, 1 for anything else that is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        match arguments:
            case [] | ["-h" | "--help", *_]:
                print(__doc__)
            case ["--version", *_]:
                print(f"fluvial {__version__}")
            case [command, *rest] if command in COMMANDS:
                COMMANDS[command](rest)
            case [command, *_]:
                raise UsageError(f"unknown command {command!r}; there are: {', '.join(COMMANDS)}")
    except UsageError as error:
        return _fail(error, 2)
    except (ValueError, OSError, RuntimeError) as error:
        return _fail(error, 1)
    except Stopped as stopped:  # as schedulers expect of a job that was asked to end
        print(stopped, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # tyro has printed the help or what is wrong
        return int(stop.code or 0)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"fluvial: error: {error}", file=sys.stderr)
    return code
