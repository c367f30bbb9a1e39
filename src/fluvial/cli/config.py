"""fluvial config, and the settings that `fluvial train` reads from a file."""

from dataclasses import dataclass
from pathlib import Path

from fluvial import recipes
from fluvial.cli.arguments import parse, positional
from fluvial.config import Run
from fluvial.run.configuration import ENDINGS, Configuration, base_run, read_configuration
from fluvial.run.folder import RunFolder
from fluvial.run.written import written
from fluvial.utils.errors import UsageError
from fluvial.utils.places import closest

ABOUT = "Print the settings of a run as YAML, each with a comment: fluvial config digits-sit > my.yaml, to be changed "
ABOUT += "and trained with fluvial train my.yaml."


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    base: str = ""
    """A recipe or a run folder: print only the settings that differ from it."""


def is_file(name: str) -> bool:
    """True for the name of a file of settings, by its ending."""
    return name not in recipes.RECIPES and Path(name).suffix.lower() in ENDINGS


def from_file(name: str) -> Configuration:
    """The settings in a file. Raises UsageError if it is not there, ValueError for what is wrong in it."""
    file = Path(name).expanduser()
    if not file.exists():
        raise UsageError(f"{name} does not exist{closest(name)}")
    return read_configuration(file)


def config(arguments: list[str]) -> None:
    meaning = f"a recipe, a run folder, or a file of settings ({', '.join(ENDINGS)})"
    name, rest = positional(arguments, "config", "RECIPE|RUN|FILE", meaning, has_own_help=True)
    options = parse(ConfigOptions, ConfigOptions(), rest, "fluvial config RECIPE|RUN|FILE", ABOUT)
    try:
        text = written(_run_of(name), base=options.base)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(text, end="")


def _run_of(name: str) -> Run:
    """The run of a recipe, a run folder, or a file, as it is."""
    if is_file(name) and not RunFolder(name).exists():
        return from_file(name).run
    base_run(name)  # raises for a name of neither or both
    return RunFolder(name).run() if RunFolder(name).exists() else recipes.get(name)
