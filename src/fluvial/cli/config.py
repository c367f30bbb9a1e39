"""fluvial config."""

from dataclasses import dataclass

from fluvial import recipes
from fluvial.cli.arguments import parse, positional
from fluvial.config import Run
from fluvial.run.configuration import ENDINGS, base_run, configuration_text, names_file, read_configuration
from fluvial.run.folder import RunFolder
from fluvial.utils.errors import UsageError

ABOUT = "Print the settings of a run as YAML, each with a comment: fluvial config digits-sit > my.yaml, to be changed "
ABOUT += "and trained with fluvial train my.yaml."


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    base: str = ""
    """A recipe or a run folder: print only the settings that differ from it."""


def config(arguments: list[str]) -> None:
    meaning = f"a recipe, a run folder, or a file of settings ({', '.join(ENDINGS)})"
    name, rest = positional(arguments, "config", "RECIPE|RUN|FILE", meaning, has_own_help=True)
    options = parse(ConfigOptions, ConfigOptions(), rest, "fluvial config RECIPE|RUN|FILE", ABOUT)
    run = _run_of(name)
    try:
        text = configuration_text(run, base=options.base)
    except ValueError as error:
        raise UsageError(f"--base: {error}") from error
    print(text, end="")


def _run_of(name: str) -> Run:
    """The run of a recipe, a run folder, or a file, as it is."""
    folder = RunFolder(name)
    if names_file(name) and not folder.exists():
        return read_configuration(name).run
    try:
        base_run(name)
    except ValueError as error:  # neither or both
        raise UsageError(str(error)) from error
    return folder.run() if folder.exists() else recipes.get(name)
