"""fluvial --completion: a script for a shell that completes commands, options, recipes and run folders.

All words are in the script, so that completing starts no Python; run folders and files the shell finds itself.
"""

from dataclasses import MISSING, replace
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from fluvial import recipes
from fluvial.cli import COMMANDS
from fluvial.cli.known import Known, negated, options_of
from fluvial.cli.short import FLAGS, SHORT
from fluvial.methods import find_installed
from fluvial.sampling.settings import SOLVERS, SampleConfig
from fluvial.utils.errors import UsageError

OPTIONS = {  # by command, the module and class of its options
    "train": "train.TrainOptions",
    "sample": "sample.SampleOptions",
    "edit": "edit.EditOptions",
    "walk": "walk.WalkOptions",
    "score": "score.MeasuredRun",
    "likelihood": "likelihood.LikelihoodOptions",
    "guide": "guide.GuideOptions",
    "distill": "distill.DistillOptions",
    "plot": "health.PlotOptions",
    "doctor": "health.DoctorOptions",
    "compare": "runs.CompareOptions",
    "study": "study.StudyOptions",
    "studio": "studio.StudioOptions",
    "bench": "bench.BenchOptions",
    "import": "weights.ImportOptions",
    "ema": "average.EmaOptions",
    "export": "weights.ExportOptions",
    "report": "report.ReportOptions",
    "config": "config.ConfigOptions",
    "data": "data.InspectOptions",
    "encode": "data.EncodeOptions",
}
OF_RUNS = (
    *("train", "sample", "walk", "score", "likelihood", "guide", "distill"),
    *("plot", "doctor", "report", "config", "ema", "export"),
)
"""Commands that take a run folder."""
ALWAYS = {"--help": (), "--help-all": (), "--traceback": (), "--plugin": ()}
Options = dict[str, tuple[str, ...]]
"""Options with their dashes, each with the values there are to choose from."""


def completion(arguments: list[str]) -> None:
    """Prints the script for a shell."""
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        got = " ".join(arguments) or "nothing"
        raise UsageError(f"--completion takes a shell, one of {', '.join(SCRIPTS)}; got {got}")
    find_installed()
    print(SCRIPTS[arguments[0]](options()))


def options() -> dict[str, Options]:
    """The options of every command, in short, in full, and as switches that are off."""
    solvers = [SampleConfig(solver=kind()) for kind in SOLVERS.values()]
    runs = [replace(recipe(), sample=sample) for recipe in recipes.RECIPES.values() for sample in solvers]
    given = {"train": [{"run": run} for run in runs], "bench": [{"run": run} for run in runs]}
    sampling = ("sample", "edit", "walk", "score", "guide", "distill")
    given |= {command: [{"sample": sample} for sample in solvers] for command in sampling}
    found = dict[str, Options]()
    for command, place in OPTIONS.items():
        module, _, name = place.partition(".")
        kind = getattr(import_module(f"fluvial.cli.{module}"), name)
        found[command] = _all(kind, [kind(**values) for values in given.get(command, [])] or [None])
    for command, shorts in SHORT.items():
        found[command] = {f"--{s.name}": found[command].get(f"--{s.setting}", ()) for s in shorts} | found[command]
    found["train"] |= {f"--{name}": () for flag in FLAGS for name in (flag, f"no-{flag}")}
    return {command: found.get(command, {}) | ALWAYS for command in COMMANDS}


def _all(kind: type, defaults: list[Any]) -> Options:
    """The options of a command with any of these defaults."""
    found: Options = {}
    for default in defaults:
        for name, option in options_of(kind, default).items():
            if not option.found:
                found[f"--{name}"] = _choices(option)
                if option.is_switch and option.value is not MISSING:
                    found[f"--{negated(name)}"] = ()
    return found


def _choices(option: Known) -> tuple[str, ...]:
    return tuple(map(str, get_args(option.type))) if get_origin(option.type) is Literal else ()


def _arguments() -> dict[str, tuple[str, ...]]:
    """By command, the words that its first argument can be, beside run folders and files."""
    names = tuple(recipes.RECIPES)
    return {
        "train": names,
        "bench": ("train", "sample", *names),
        "data": ("inspect", "verify"),
        "edit": tuple(import_module("fluvial.cli.edit").OWN),
        "compare": ("digits",),
    }


def _bash(found: dict[str, Options]) -> str:
    of_values: dict[tuple[str, ...], list[str]] = {}
    for command, of_command in found.items():
        for name, choices in of_command.items():
            if choices:
                of_values.setdefault(choices, []).append(f"{command}:{name}")
    values = "\n".join(f"    {'|'.join(names)}) words='{' '.join(c)}' ;;" for c, names in of_values.items())
    by_command = "\n".join(f"    {command}) words='{' '.join(options)}' ;;" for command, options in found.items())
    first = "\n".join(f"    {command}) words='{' '.join(words)}' ;;" for command, words in _arguments().items())
    return _BASH.format(
        commands=" ".join((*found, "--help", "--version", "--completion")),
        values=values,
        options=by_command,
        first=first,
        of_runs="|".join(OF_RUNS),
    )


def _zsh(found: dict[str, Options]) -> str:
    return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{_bash(found)}"


def _fish(found: dict[str, Options]) -> str:
    begin = "complete -c fluvial"
    lines = [_FISH, f"{begin} -n 'test (count (commandline -opc)) = 1' -f -a '{' '.join(found)}'"]
    for command, options in found.items():
        of = f"{begin} -n '__fluvial_runs {command}'"
        if words := _arguments().get(command):
            lines.append(f"{of} -a '{' '.join(words)}'")
        if command in OF_RUNS:
            lines.append(f"{of} -a '(for run in runs/*/run.json; dirname $run; end)'")
        lines += [f"{of} -l {name[2:]}" + (f" -x -a '{' '.join(c)}'" if c else "") for name, c in options.items()]
    return "\n".join(lines)


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
_FISH = """function __fluvial_runs
  set -l words (commandline -opc)
  test (count $words) -gt 1; and test $words[2] = $argv[1]
end"""
_BASH = r"""_fluvial() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
  local words='' run
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{commands}' -- "$current"))
    return
  fi
  case "$command:$previous" in
{values}
    *:--completion) words='bash zsh fish' ;;
  esac
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    return
  fi
  case "$current" in -*)
    case "$command" in
{options}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    return
  esac
  case "$previous" in -*) return ;; esac
  case "$command" in
{first}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  case "$command" in
    {of_runs})
      for run in runs/*/run.json; do
        run="${{run%/run.json}}"
        case "$run" in "$current"*) [ -e "$run/run.json" ] && COMPREPLY+=("$(printf '%q' "$run")") ;; esac
      done ;;
  esac
}}
complete -o default -F _fluvial fluvial"""
