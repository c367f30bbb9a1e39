"""Train, sample and measure image generators that join autoregression with flow matching.

fluvial recipes                       list the recipes
fluvial train IMAGES [options]        train on a folder or file of images: looks, plans for 30 minutes, and trains
fluvial train RECIPE [options]        train a recipe, or go on where it stopped
fluvial train RUN [options]           go on with a run folder, or start another from its weights
fluvial train FILE [options]          train the run that a file describes: my.yaml, my.py, run.json
fluvial config RECIPE|RUN|FILE        print all settings as YAML, each with a comment: > my.yaml
fluvial sample RUN [options]          draw images from a run folder
fluvial edit KIND RUN [options]       inpaint, vary, grow, redraw or invert images; fork one, or show examples
fluvial walk RUN --from A --to B      draw the images between two as a GIF, or between four as a grid
fluvial score RUN|IMAGES [options]    measure samples against real images: FID and its family, with provenance
fluvial likelihood RUN [IMAGES]       how likely images are under a model, in bits per dimension
fluvial guide RUN [options]           find the guidance: weights, intervals and averages measured on few images
fluvial distill RUN --steps 4         a run that samples in a few steps
fluvial plot RUN [RUN ...] [options]  draw the curves of runs into one picture
fluvial doctor RUN                    compare a run with what is expected: what is wrong, why, and what to do
fluvial compare digits [options]      train all methods for the same time and put them side by side
fluvial compare A B [...] [options]   the same of runs, measured as they are, and recipes, trained for the same time
fluvial study FILE [options]          runs x seeds for the same budget, and a page: means, differences, their errors
fluvial runs [FOLDER]                 a table of the runs in a folder: how far, losses, score, size, state
fluvial runs clean [RUN ...] [--yes]  what could be removed of runs, or its removal
fluvial report RUN [RUN ...]          one HTML page: curves, samples, scores, what is wrong, settings that differ
fluvial studio [FOLDER]               a web page over the runs in a folder: see them train, draw from them
fluvial bench train RECIPE [options]  how fast training is, or sampling: images/s, memory, share of the machine's rate
fluvial import FILE [options]         a run folder of published weights
fluvial ema RUN --length 0.1          a run folder with another average of a run's weights
fluvial export RUN --to FORM          files of a run to publish: safetensors, diffusers, or the Hugging Face hub
fluvial data inspect DATA [options]   what is in a folder or data set: counts, sizes, classes, a contact sheet
fluvial encode DATA [options]         write the latents of all images, to train on
fluvial data verify LATENTS           check what `fluvial encode` or `sample` wrote

fluvial COMMAND --help lists the usual options of a command with their defaults, --help all every one of them.
fluvial --completion bash|zsh|fish prints a script that completes commands, options, recipes and runs with TAB.
--traceback, with any command, shows where an error comes from.
--plugin FILE.py, with any command, imports a file first, which registers methods and recipes: docs/add-a-method.md.
"""

import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module

from fluvial import __version__
from fluvial.cli import plugins
from fluvial.cli.quiet import quiet
from fluvial.cli.short import HELP, SHORT, short_help, with_all
from fluvial.utils.errors import Stopped, UsageError

TRACEBACK = "--traceback"
LONGEST = 2000  # characters of a message: what it quotes may be damaged, or not written to be read
LESS_MEMORY = (
    "Training takes less with --train.precision bf16, --train.accumulate N or --train.activation-checkpointing"
)
COMMANDS = {  # by command, its module and function: torch is imported by those that need it
    "recipes": "runs.list_recipes",
    "train": "train.train",
    "config": "config.config",
    "sample": "sample.sample",
    "edit": "edit.edit",
    "walk": "walk.walk_",
    "score": "score.score",
    "likelihood": "likelihood.likelihood",
    "guide": "guide.guide_",
    "distill": "distill.distill",
    "plot": "health.plot",
    "doctor": "health.doctor",
    "compare": "runs.compare",
    "study": "study.study",
    "runs": "listing.runs",
    "report": "report.report",
    "studio": "studio.studio",
    "bench": "bench.bench",
    "import": "weights.import_",
    "ema": "average.ema",
    "export": "weights.export",
    "data": "data.data",
    "encode": "data.encode",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a wrong command line, 1 for anything else that is wrong.

    130 is for an interrupt, and 141 for a reader of the output that has gone, as `head` does: there the shell, too,
    counts from 128. Whatever goes wrong is one line on stderr, with --traceback anywhere among the arguments all of it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    in_full = TRACEBACK in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and classes can be of any alphabet
    try:
        with quiet():
            code = _run([argument for argument in arguments if argument != TRACEBACK])
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk behind it is an error of ours
        return code
    except BaseException as error:
        if _nobody_reads(error):
            return 141
        text = "".join(traceback.format_exception(error)) if in_full else ""
        return _say(f"{text}fluvial: {_told(error, in_full)}", 2 if isinstance(error, UsageError) else 1)


def _run(arguments: list[str]) -> int:
    """The exit code of a command that ends as it should, or is asked to stop."""
    try:
        files, arguments = plugins.taken_from(arguments)
        with plugins.loaded(files):
            return _command(arguments)
    except Stopped as stopped:  # as schedulers expect of a job that was asked to end
        return _say(str(stopped), 0)
    except KeyboardInterrupt as stop:
        return _say(str(stop) or "interrupted", 130)
    except SystemExit as stop:  # tyro has printed the help or what is wrong
        if isinstance(stop.code, str):
            return _say(f"fluvial: {stop.code}", 1)
        return stop.code or 0


def _command(arguments: list[str]) -> int:
    """Does what the arguments say."""
    match arguments:
        case [] | ["-h" | "--help", *_]:
            print(__doc__)
        case ["--version", *_]:
            print(f"fluvial {__version__}")
        case ["--completion", *rest]:
            import_module("fluvial.cli.completion").completion(rest)
        case [command, *rest] if command in COMMANDS:
            rest = with_all(rest)
            if command in SHORT and rest and rest[0] in HELP and "--help-all" not in rest:
                print(short_help(command))  # which needs no torch
                return 0
            module, _, function = COMMANDS[command].partition(".")
            getattr(import_module(f"fluvial.cli.{module}"), function)(rest)
        case [command, *_]:
            close = get_close_matches(command.lower(), COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(f"unknown command {command!r}.{hint} There are: {', '.join(COMMANDS)}")
    return 0


def _told(error: BaseException, in_full: bool) -> str:
    """The message of an error, with its type unless it is one that is raised to be read."""
    ours = type(error).__module__.partition(".")[0] == "fluvial"
    if ours or type(error) is ValueError:
        return f"error: {error!s:.{LONGEST}}"
    text = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, OSError) or type(error) is RuntimeError:
        return f"error: {text or type(error).__name__}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return f"error: {text.rstrip('.')}. {LESS_MEMORY}"
    hint = "" if in_full else f" ({TRACEBACK} shows where)"
    return f"error: {type(error).__name__}{': ' if text else ''}{text}{hint}"


def _nobody_reads(error: BaseException) -> bool:
    """True for an error of writing to a pipe whose reader has gone."""
    gone = False
    if sys.stdout is not None:  # as it is where it was closed before we began
        with suppress(OSError, ValueError):  # what stands in for stdout in tests and notebooks has no descriptor
            gone = _lacks_reader(sys.stdout.fileno())
        _give_up_stdout()
    return gone and isinstance(error, BrokenPipeError)


def _lacks_reader(descriptor: int) -> bool:
    """True if stdout is a pipe whose reader has gone, and without `poll`, as on Windows, where only the error tells."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _give_up_stdout() -> None:
    """If stdout takes nothing any more, sends what is left of it nowhere: Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str, code: int) -> int:
    with suppress(OSError):  # of a stderr that nobody reads either
        print(text, file=sys.stderr, flush=True)
    return code
