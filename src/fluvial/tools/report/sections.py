"""The sections of a report, each from the runs that were gathered. Several runs stand side by side."""

from collections.abc import Mapping, Sequence
from shlex import join
from typing import Any

from fluvial import __version__
from fluvial.config import Run, differences
from fluvial.methods import name_of
from fluvial.metrics import report as cards
from fluvial.tools.doctor.check import Check
from fluvial.tools.doctor.settings import FOUND
from fluvial.tools.report.contents import Gathered, Picture
from fluvial.tools.report.html import Html, element, joined, note, picture, section, table
from fluvial.tools.runs import in_bytes
from fluvial.utils.progress import duration

VERDICTS = ("wrong", "look", "ok", "not checked")


def heading(title: str, runs: Sequence[Gathered]) -> Html:
    """The title, and one line on the run."""
    line = ", ".join(run.name for run in runs) if len(runs) > 1 else f"{runs[0].listed.method} on {runs[0].listed.data}"
    line += f", as reported by fluvial {__version__}"
    return element("header", element("h1", title), element("p", line, klass="dim"))


def about(runs: Sequence[Gathered]) -> Html:
    """The facts of each run."""
    facts = [_facts(run) for run in runs]
    header = ["", *(run.name for run in runs)] if len(runs) > 1 else []
    return section("About", table(header, ([key, *(each[key] for each in facts)] for key in facts[0])))


def _facts(gathered: Gathered) -> dict[str, str]:
    run, listed = gathered.run, gathered.listed
    seen = f" ({listed.step * run.images_per_step:,} images)" if listed.step else ""
    size = " x ".join(map(str, run.method.size))
    classes = f"{run.method.classes:,} classes" if run.method.classes else "no classes"
    losses = {"training loss": listed.loss, "validation loss": listed.validation}
    return {
        "state": listed.state + (f": {listed.why}" if listed.why else ""),
        "method": listed.method,
        "data": f"{listed.data or '-'}, {classes}",
        "model": f"{run.method.channels} x {size} latents, "
        + ("parameters unknown" if gathered.parameters is None else f"{gathered.parameters:,} parameters"),
        "steps": f"{listed.step:,} of {run.train.steps:,}{seen}",
        "time of training": "-" if listed.seconds is None else duration(listed.seconds),
        **{name: "-" if value is None else f"{value:.4g}" for name, value in losses.items()},
        "recipe": gathered.recipe or "-",
        "seed": str(run.seed),
        "folder": f"{gathered.folder}, {in_bytes(listed.size)}",
    }


def samples(runs: Sequence[Gathered]) -> Html:
    """The grids of each run: earlier ones as a strip, the newest large."""
    return section("Samples", *(_each(run, runs, _strip(run.grids)) for run in runs))


def _each(run: Gathered, runs: Sequence[Gathered], content: Html) -> Html:
    """The part of a section about one run, which is named if there are several."""
    return content if len(runs) == 1 else element("div", element("h3", run.name), content, klass="run")


def _strip(grids: list[Picture] | str) -> Html:
    if isinstance(grids, str):
        return note(grids)
    shown = [picture(*grid) if grid.content else note(grid.caption) for grid in grids]
    earlier = element("div", *shown[:-1], klass="strip") if shown[1:] else ""
    return joined([earlier, element("div", shown[-1], klass="newest")])


def scores(runs: Sequence[Gathered]) -> Html:
    """The score cards side by side, with what they were measured against and whether they may be compared."""
    there = {run.name: run.card for run in runs if not isinstance(run.card, str)}
    missing = [note(run.card if len(runs) == 1 else f"{run.name}: {run.card}") for run in runs if run.name not in there]
    if not there:
        return section("Scores", *missing)
    names = {name: None for card in there.values() for name in card["scores"]}
    header = ["", *(there if len(runs) > 1 else ["value"]), "real images"]
    rows = [[name.replace("_", " "), *_values(there, name)] for name in names]
    first, *others = there.items()
    odd = [
        element("p", f"{name} and {first[0]} cannot be compared: {'; '.join(found)}", klass="wrong")
        for name, card in others
        if (found := cards.differences(first[1], card))
    ]
    told = [line for name, card in there.items() for line in _of_card(card, name if len(runs) > 1 else "")]
    return section("Scores", *odd, table(header, rows), *told, *missing)


def _values(there: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """A score of each card with its standard error, and at last that of real images."""
    found = [card["scores"].get(name, {}) for card in there.values()]
    values = [f"{score['value']:.4g} ± {score['error']:.2g}" if score else "-" for score in found]
    real = next((score["real"] for score in found if isinstance(score.get("real"), int | float)), None)
    return [*values, "-" if real is None else f"{real:.4g}"]


def _of_card(card: Mapping[str, Any], name: str) -> list[Html]:
    """The conditions of a card in a line, and its warnings."""
    images, sampling = card["images"], card["sampling"]
    line = (
        f"{images.get('count')} samples against {card['reference'].get('name')}, features {card['extractor']['name']}"
    )
    if sampling:
        evaluations = sampling.get("nfe", 0) + (sampling.get("nfe_null") or 0)
        line += f", {sampling.get('solver')} with {evaluations} evaluations, guidance {sampling.get('guidance')}"
        line += f", distilled {sampling['distilled']}" if "distilled" in sampling else ""
        line += f", step {sampling.get('train_step')}"
    before = f"{name}: " if name else ""
    warnings = [element("p", f"{before}warning: {warning}", klass="small look") for warning in card["warnings"]]
    return [element("p", before + line, klass="small dim"), *warnings]


def findings(runs: Sequence[Gathered]) -> Html:
    """The checks of `fluvial doctor`, what is wrong first."""
    return section("Findings", *(_each(run, runs, _findings(run.checks)) for run in runs))


def _findings(checks: list[Check] | str) -> Html:
    if isinstance(checks, str):
        return note(f"not checked: {checks}")
    rows = [
        [check.name, _verdict(check.verdict), check.found, check.expected, check.advice or "-"]
        for verdict in VERDICTS
        for check in checks
        if check.verdict == verdict and verdict in ("wrong", "look")
    ]
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    shown = table(["", "", "found", "expected", "likely cause, and what to do"], rows) if rows else ""
    return joined([shown, element("p", f"{told} of {len(checks)} checks", klass="small dim")])


def _verdict(verdict: str) -> Html:
    return element("span", verdict, klass=verdict)


def settings(runs: Sequence[Gathered]) -> Html:
    """The settings in which runs differ from one another; of one run, those in which it differs from its recipe."""
    if len(runs) > 1:
        first, *others = [run.run for run in runs]
        changed = [_told(first, other) for other in others]
        keys = sorted({key for each in changed for key in each})
        rows = []
        for key in keys:
            own = next(each[key][0] for each in changed if key in each)
            rows.append([key, own, *(each[key][1] if key in each else own for each in changed)])
        shown = table(["", *(run.name for run in runs)], rows) if rows else note("all settings are the same")
        return section("Settings that differ", shown)
    run, name = runs[0], runs[0].recipe or ""
    if (distilled := run.run.train.distillation).steps:
        return section("Settings", note(f"distilled {distilled.told}"))
    if run.original is None:
        return section("Settings", note(f"no recipe to compare with: {name or 'run.json names none'}"))
    changed = {key: values for key, values in _told(run.original, run.run).items() if not key.startswith(FOUND)}
    rows = [[key, *values] for key, values in changed.items()]
    shown = table(["", f"recipe {name}", "this run"], rows) if rows else note(f"all as in the recipe {name}")
    return section("Settings that differ", shown)


def _told(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    """The settings in which two runs differ as text; one that only one of them has is "-" in the other."""
    found = differences(a, b)
    for key, name in (("method", lambda run: name_of(type(run.method))), ("sample.solver", _solver)):
        if key in found:  # the names of their classes otherwise
            found[key] = name(a), name(b)
    return {key: (_short(old), _short(new)) for key, (old, new) in found.items()}


def _solver(run: Run) -> str:
    return run.sample.solver_settings.name


def _short(value: Any) -> str:  # noqa: ANN401 - a setting
    if value is None or value == "":
        return "-"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f"{value!s:.200}"


def commands(runs: Sequence[Gathered]) -> Html:
    """The commands that go on from here."""
    rows = []
    for run in runs:
        rows += [
            [what if len(runs) == 1 else f"{run.name}: {what}", element("code", line)] for what, line in _next(run)
        ]
    return section("Going on", table([], rows))


def _next(run: Gathered) -> list[tuple[str, str]]:
    """Commands by their purpose."""
    folder, listed = str(run.folder), run.listed
    train = join(["fluvial", "train", folder])
    use = [("draw images", join(["fluvial", "sample", folder])), ("measure", join(["fluvial", "score", folder]))]
    if (steps := run.run.train.distillation.steps) and listed.state != "running":
        again = f"fluvial distill TEACHER --steps {steps} --out {folder}"
        return [("go on, with the same teacher and options", again), *(use if listed.step else [])]
    match listed.state:
        case "running":
            return [("see how far it is", join(["fluvial", "runs", folder]))]
        case "damaged":
            return [("go on from what is whole", train)]
        case "finished":
            return [("train as long again", f"{train} --train.steps {listed.step + run.run.train.steps}"), *use]
        case "weights":
            return use
    return [(f"go on to step {run.run.train.steps:,}", train), *(use if listed.step else [])]
