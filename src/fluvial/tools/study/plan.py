"""A study as its file describes it: which runs, with which seeds, how long, and how they are measured."""

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fluvial.config import Run
from fluvial.run.configuration import run_with, text_of
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.study.study import Budget, Measure, Study
from fluvial.utils.places import closest
from fluvial.utils.yaml_text import Settings, parse

RUNS, COMMON, VARIANTS, SAMPLINGS = "runs", "common", "variants", "samplings"
SECTIONS = (RUNS, COMMON, VARIANTS, SAMPLINGS)
OF_STUDY = {
    "train.steps": "follows from the budget",
    "train.keep_every": "follows from measure.points",
    "train.save_every": "is chosen, about once a minute",
    "seed": "is one of the seeds",
}
"""Settings of a run that a study sets itself."""
EMPTY = Settings({}, {}, [])
USUAL = "usual"  # the name of the run's own sampling, if no others are named


def read_study(file: Path | str) -> Study:
    """The study that a YAML file describes. Raises ValueError that names the file, and what is wrong in it.

    `runs` has a name for each run, and below it what a file of `fluvial train` has: a base, and the settings that
    differ. `common` are settings of all runs; `variants` are settings with which each run is trained once more;
    `samplings` settings of sampling, with which the trained runs are measured. A run may have samplings of its own,
    besides.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{file} is no file{closest(str(file))}; expected a study in YAML, such as studies/digits.yaml"
        )
    text = text_of(file)
    try:
        return replace(_study(parse(text), str(file)), text=text)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(str(file)) else f"{file} cannot be used: {told}") from error


def _study(settings: Settings, file: str) -> Study:
    if settings.faults:
        raise ValueError("; ".join(f"line {line}: {text}" for line, text in sorted(settings.faults)))
    parts = {name: _below(settings, name) for name in SECTIONS}
    own = {path: value for path, value in settings.values.items() if path.partition(".")[0] not in SECTIONS}
    _check_known(own, settings)
    named = {name: _named(parts[name]) for name in (RUNS, VARIANTS, SAMPLINGS)}
    if not named[RUNS]:
        raise ValueError("it has no runs: give each a name below runs:, and below that a base, such as digits-sit")
    runs, samplings = dict[str, Run](), dict[str, dict[str, SampleConfig]]()
    for name, settings_of_run in named[RUNS].items():
        trained, own_samplings = _apart(settings_of_run)
        those = (named[SAMPLINGS] or {USUAL: EMPTY}) | own_samplings
        _check_samplings(own_samplings)
        for variant, settings_of_variant in (named[VARIANTS] or {"": EMPTY}).items():
            title = f"{name}, {variant}" if variant else name
            merged = _merged(parts[COMMON], trained, settings_of_variant)
            for path, why in OF_STUDY.items():
                if path in merged.values:
                    raise ValueError(f"line {merged.lines[path]}: {path} {why} in a study: leave it out")
            runs[title] = run_with(merged, f"{file}, run {title},")
            samplings[title] = {
                sampling: run_with(_merged(merged, more), f"{file}, sampling {sampling} of run {title},").sample
                for sampling, more in those.items()
            }
    _check_samplings(named[SAMPLINGS])
    return Study(
        runs=runs,
        samplings=samplings,
        budget=_part(Budget, "budget", own),
        measure=_part(Measure, "measure", own),
        **{name: _tuple(own[name]) for name in ("seeds", "baseline", "question") if name in own},
    )


def _apart(run: Settings) -> tuple[Settings, dict[str, Settings]]:
    """The settings that a run is trained with, and those of its own samplings by name."""
    start = f"{SAMPLINGS}."
    values = {path: value for path, value in run.values.items() if not path.startswith(start)}
    lines = {path: line for path, line in run.lines.items() if not path.startswith(start)}
    return Settings(values, lines, []), _named(_below(run, SAMPLINGS))


def _check_samplings(those: Mapping[str, Settings]) -> None:
    """Raises ValueError for a sampling with settings that are not of sampling."""
    for name, more in those.items():
        if others := [path for path in more.values if not path.startswith("sample.")]:
            line = more.lines[others[0]]
            raise ValueError(f"line {line}: a sampling has settings of sample alone, and {name} has {others[0]}")


def _tuple(value: Any) -> Any:  # noqa: ANN401 - of YAML
    return tuple(value) if isinstance(value, list) else value


def _part(kind: type, name: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    given = {path.partition(".")[2]: value for path, value in values.items() if path.startswith(f"{name}.")}
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_known(own: Mapping[str, Any], settings: Settings) -> None:
    """Raises ValueError for what is no setting of a study, with the closest."""
    parts = {"budget": Budget, "measure": Measure}
    known = [f"{name}.{field.name}" for name, kind in parts.items() for field in fields(kind)]
    known += ["seeds", "baseline", "question"]
    for path, value in own.items():
        line = settings.lines[path]
        if path not in known:
            close = get_close_matches(path, [*known, *SECTIONS], n=1)
            hint = f"did you mean {close[0]}?" if close else f"a study has {', '.join([*SECTIONS, *known])}"
            raise ValueError(f"line {line}: there is no {path}; {hint}")
        if path == "seeds" and not (isinstance(value, list) and value and all(type(seed) is int for seed in value)):
            raise ValueError(
                f"line {line}: seeds must be a list of whole numbers, such as [0, 1, 2], got {value!r:.80}"
            )
        if path in ("baseline", "question") and not isinstance(value, str):
            raise ValueError(f"line {line}: {path} must be a text, got {value!r:.80}")


def _below(settings: Settings, section: str) -> Settings:
    """The settings below a section, by the rest of their path. Raises ValueError if it has a value instead."""
    start = f"{section}."
    if (value := settings.values.get(section)) is not None:
        told = f"{section} must have settings below it, as base: digits-sit, got {value!r:.80}"
        raise ValueError(f"line {settings.lines[section]}: {told}")
    return Settings(
        {path.removeprefix(start): value for path, value in settings.values.items() if path.startswith(start)},
        {path.removeprefix(start): line for path, line in settings.lines.items() if path.startswith(start)},
        [],
    )


def _named(settings: Settings) -> dict[str, Settings]:
    """The settings below each name, in the order of the file; a name without any has none."""
    names = dict.fromkeys(path.partition(".")[0] for path in settings.lines)
    return {name: _below(settings, name) for name in names}


def _merged(*parts: Settings) -> Settings:
    """The settings of all parts; of two for the same path, the later stands."""
    values, lines = dict[str, Any](), dict[str, int]()
    for part in parts:
        values |= part.values
        lines |= part.lines
    return Settings(values, lines, [])
