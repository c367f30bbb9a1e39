"""Weight, interval, average and steps swept: every combination drawn from the same noise, and measured."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fluvial.autoencoders import Autoencoder
from fluvial.config import Run, to_json
from fluvial.data.given import Given, image_sets
from fluvial.evaluation import better
from fluvial.evaluation.against import Against, against
from fluvial.methods import method_of
from fluvial.metrics.features import Extractor
from fluvial.metrics.frechet import moves
from fluvial.run.folder import RunFolder
from fluvial.run.load import Sampler, load
from fluvial.run.measure import Opened, card_of, open_for_run
from fluvial.sampling.generate import generate
from fluvial.sampling.labels import labels_for
from fluvial.sampling.remember import Memory, by_shared_steps, remembering
from fluvial.sampling.settings import SampleConfig
from fluvial.tools.guide import kept
from fluvial.tools.guide.result import Measured, Sweep
from fluvial.tools.guide.settings import WHOLE, Axes, Interval, Setting, Steps, axes_of
from fluvial.training.distributed import ALONE
from fluvial.utils.atomic import only_one, write_json
from fluvial.utils.checks import misfit
from fluvial.utils.devices import device_of
from fluvial.utils.files import check_folder, json_checksum
from fluvial.utils.progress import Bar
from fluvial.utils.tensors import tensors_checksum

WEIGHTS = (1.0, 1.25, 1.5, 2.0, 3.0)
INTERVALS: tuple[Interval, ...] = (WHOLE, (0.2, 1.0), (0.2, 0.8), (0.0, 0.8))
COUNT = 500  # images of each combination


def guide(
    run_folder: Path | str,
    *,
    weights: Sequence[float] = WEIGHTS,
    intervals: Sequence[Sequence[float]] = INTERVALS,
    averages: Sequence[str | float] = ("ema",),
    steps: Sequence[Steps] = (),
    count: int = COUNT,
    metric: str = "frechet_distance",
    seed: int = 0,
    settings: SampleConfig | None = None,
    reference: Path | str = "",
    training: Path | str = "",
    features: str | Callable[..., Any] = "",
    feature_weights: str = "",
    size: int = 0,
    channels: Literal[1, 3] = 3,
    data: Given | None = None,
    validation: Given | None = None,
    autoencoder: Autoencoder | Path | str = "",
    step: int | None = None,
    device: torch.device | str | None = None,
) -> Sweep:
    """Measures every combination of weights, intervals, averages and steps of a run; see `Sweep`.

    All are drawn from the same noise, with evaluations of the network that settings share made once. What is measured
    is kept in RUN/guide, and not measured again; guide.json there has all rows. `weights` are those of guidance,
    `averages` as `load` takes them, `steps` the run's own by default. `settings` are the other sampling settings, the
    run's own by default. `metric` is any score of a card. Reference, training, features, size, channels, data,
    validation, autoencoder and step are those of `score`, and feature_weights its weights.

    Raises ValueError, before anything is drawn, for a run that cannot be guided, values that cannot be swept, a metric
    that there is not, and what `score` refuses.
    """
    target, there = device_of(device), RunFolder(run_folder)
    run = there.run()
    base = settings or run.sample
    axes = axes_of(weights, intervals, averages, steps, base)
    check_guidable(run, axes, base)
    if wrong := misfit(count, int) or misfit(seed, int):
        raise ValueError(f"count and seed {wrong}")
    better.check_count(metric, count)
    make = partial(load, there.path, device=target, step=step, autoencoder=autoencoder)
    measuring = {
        "reference": str(reference),
        "training": str(training),
        "features": features,
        "weights": feature_weights,
        "size": size,
        "channels": channels,
        "given": image_sets(data, validation),
        "device": target,
        "world": ALONE,
    }
    rows = _opened(there, axes, make, base, metric, count, seed, measuring)
    started = time.perf_counter()
    with only_one(rows.place):
        cards, failed = _measured(rows, axes, make)
        name, look = rows.metric, rows.opened.look
        sweep = Sweep(
            axes=axes,
            rows=tuple(Measured.of(setting, card, name) for setting, card in cards.items() if name in card["scores"]),
            failed=failed,
            metric=name,
            lower=better.is_lower_better(name),
            about=f"{there}, {count:,} images each, features of {look.name}, against {rows.real.reference.name}",
            seconds=time.perf_counter() - started,
            folder=rows.place,
        )
        kept.clear(rows.place)
        write_json(rows.place / "guide.json", _record(sweep, cards, there))
    return sweep


def _opened(
    there: RunFolder,
    axes: Axes,
    make: Callable[..., Sampler],
    base: SampleConfig,
    metric: str,
    count: int,
    seed: int,
    measuring: dict[str, Any],
) -> "_Rows":
    """All that the rows have in common. Raises ValueError for averages that the run has not, and for the metric."""
    place, run = there.path / "guide", there.run()
    check_folder(place)
    sampler, opened = open_for_run(run, lambda: make(average=axes.averages[0]), **measuring)
    checksums = {average: tensors_checksum(make(average=average).model.state_dict()) for average in axes.averages}
    name = better.of_extractor(metric, opened.look.name)
    real = against(opened.which, opened.real, opened.look)
    check_measurable(name, opened.look, real, labelled=run.method.classes > 0)
    classes = sampler.asked(count, seed=seed).classes
    return _Rows(place, base, name, checksums, count, seed, classes, opened, real)


def check_guidable(run: Run, axes: Axes, base: SampleConfig) -> None:
    """Raises ValueError for a run without a null branch, and for sampling settings that it cannot follow."""
    if not run.train.guidance.is_off:
        raise ValueError(
            f"this run has learned its guidance (train.{run.train.guidance.told}) and is sampled without: "
            f"there is none to find"
        )
    if run.train.distillation.steps:
        raise ValueError(
            f"this run was distilled ({run.train.distillation.told}) and has its teacher's guidance: find that of its "
            f"teacher, and distill with it"
        )
    why = ""
    if not run.method.classes:
        why = "it was trained without classes, so its branches are the same"
    elif not run.method.label_drop:
        why = "it was trained with method.label_drop 0, so it has no null branch"
    if why:
        raise ValueError(
            f"this run cannot be guided: {why}; a less trained run can guide it, with fluvial sample --guide RUN:STEP"
        )
    for group in axes.groups():
        for setting in group:
            run.sampled_with(setting.of(base))


def check_measurable(name: str, look: Extractor, real: Against, *, labelled: bool) -> None:
    """Raises ValueError if samples would have no score of that name."""
    there, why = real.reference.statistics, ""
    general = better.ranking(name)
    if general == "spatial_frechet_distance" and there.spatial is None:
        why = f"{look.name} or the reference has no spatial features"
    elif general == "classifier_score" and there.shape:
        probe = look.extract(torch.zeros(2, *there.shape, dtype=torch.uint8))
        why = "" if probe.logits is not None else f"{look.name} is no classifier"
    elif general == "class_accuracy" and not (labelled and real.training is not None):
        why = "it needs training images with classes (--training names them)"
    elif better.FEWEST.get(general, 0) and len(there.features) < better.FEWEST[general]:
        why = "the reference has statistics only, or too few images"
    if why:
        raise ValueError(f"there is no {name} to rank by: {why}; frechet_distance is always there")


@dataclass(frozen=True)
class _Rows:
    """All that the rows of a sweep have in common."""

    place: Path
    base: SampleConfig
    metric: str
    """The score to rank by, as cards name it."""
    checksums: Mapping[str, str]
    count: int
    seed: int
    classes: tuple[int, ...]
    opened: Opened
    real: Against

    def at(self, sampler: Sampler, setting: Setting) -> kept.Row:
        """The place of a row."""
        look, real = self.opened.look, self.real
        sampling = to_json(replace(sampler.run, sample=setting.of(self.base)))["sample"]
        sampled = kept.sampled_as(sampling, self.checksums[setting.average], self.count, self.seed)
        of_look = [look.name, look.hash, look.resize, look.dtype]
        training = None if real.training is None else real.training.hash
        measured = {"extractor": of_look, "reference": real.reference.hash, "training": training}
        return kept.Row(folder=self.place, sampled={**sampled, "step": sampler.step}, measured=measured)

    def parts(self) -> list[range]:
        """The indices of images that are drawn together."""
        starts = range(0, self.count, self.base.batch)
        return [range(start, min(start + self.base.batch, self.count)) for start in starts]

    @property
    def is_known(self) -> bool:
        """True if the extractor can be told from others; a function has no hash."""
        return bool(self.opened.look.hash) or self.opened.look.name == "pixels"


Cards = dict[Setting, dict[str, Any]]


def _measured(rows: _Rows, axes: Axes, make: Callable[..., Sampler]) -> tuple[Cards, dict[Setting, str]]:
    """The cards of all settings, and the reasons of those that cannot be drawn."""
    cards, failed, groups = Cards(), dict[Setting, str](), axes.groups()
    total = sum(map(len, groups)) * len(rows.parts())
    with Bar(total, what="guidance") as bar:
        done = 0
        for group in groups:
            sampler = make(average=group[0].average)
            places = {setting: rows.at(sampler, setting) for setting in group}
            found = {setting: place.read() if rows.is_known else None for setting, place in places.items()}
            missing = {setting: places[setting] for setting, card in found.items() if card is None}
            done += (len(group) - len(missing)) * len(rows.parts())
            for setting in _drawn(rows, sampler, missing, failed):
                done += 1
                bar.show(done, str(setting))
            for setting, place in missing.items():
                if setting not in failed:
                    found[setting] = place.write(_card(rows, sampler, setting, place))
            cards |= {setting: card for setting, card in found.items() if card is not None}
            bar.show(done)
    return cards, failed


def _drawn(
    rows: _Rows, sampler: Sampler, places: Mapping[Setting, kept.Row], failed: dict[Setting, str]
) -> Iterator[Setting]:
    """Draws the parts that are not there, those of all settings from the same noise together; yields each's setting."""
    settings = list(places)
    scales = len(method_of(sampler.run.method).scales(sampler.run.method))
    order = by_shared_steps([setting.of(rows.base) for setting in settings], scales=scales)
    for indices in rows.parts():
        memory = Memory()
        for setting in (settings[i] for i in order):
            if setting not in failed and places[setting].read_part(indices) is None:
                try:
                    places[setting].write_part(indices, _part(rows, sampler, setting, indices, memory))
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:  # of latents that are not finite, as under strong guidance
                    failed[setting] = str(error)
            yield setting


def _part(rows: _Rows, sampler: Sampler, setting: Setting, indices: range, memory: Memory) -> kept.Part:
    """The images of these indices, with evaluations that the memory has from settings before."""
    settings = setting.of(rows.base)
    model, sample = sampler.computing(settings)
    memory.begin()
    before = memory.asked.total(), memory.made.total()
    found = generate(
        remembering(model, memory),
        sample,
        sampler.autoencoder.decode,
        settings,
        indices=indices,
        labels=labels_for(indices, rows.classes),
        seed=rows.seed,
    )
    asked, made = memory.asked.total() - before[0], memory.made.total() - before[1]
    return kept.Part(found.images, found.nfe, asked, made)


def _card(rows: _Rows, sampler: Sampler, setting: Setting, place: kept.Row) -> dict[str, Any]:
    """The card of a row whose parts are there."""
    parts = [part for indices in rows.parts() if (part := place.read_part(indices)) is not None]
    if len(parts) < len(rows.parts()):
        raise RuntimeError(f"images in {place.folder / 'parts'} have gone or are damaged; repeat the command")
    nfe = {name: max(part.nfe.get(name, 0) for part in parts) for part in parts for name in part.nfe}
    about = sampler.provenance(seed=rows.seed, settings=setting.of(rows.base), evaluations=nfe)
    images = kept.images_of(parts, rows.classes, about)._replace(name=str(sampler.folder or "samples"))
    card, here = card_of(images, rows.opened.look, rows.real, batch=rows.base.batch, quiet=True, why=rows.opened.why)
    calls = {"asked": sum(part.asked for part in parts), "made": sum(part.made for part in parts)}
    moved = moves(here.pooled, rows.real.reference.statistics.pooled, here.features)
    return {**card, "guide": {**asdict(setting), **calls, "moves": [float(f"{move:.6g}") for move in moved.tolist()]}}


def _record(sweep: Sweep, cards: Cards, there: RunFolder) -> dict[str, Any]:
    """The content of guide.json."""
    some = next(iter(cards.values()), {})
    values = {
        "kind": "fluvial guide 1",
        "run": str(there),
        "about": sweep.about,
        "metric": sweep.metric,
        "better": "lower" if sweep.lower else "higher",
        "best": None if not sweep.rows else asdict(sweep.best.setting),
        "chosen": None if not sweep.rows else asdict(sweep.chosen.setting),
        "rows": [_line(row, sweep) for row in sweep.ranked],
        "failed": [{**asdict(setting), "why": why} for setting, why in sweep.failed.items()],
        "seconds": round(sweep.seconds, 1),
        **{part: some.get(part) for part in ("images", "extractor", "reference", "training", "warnings", "made_by")},
    }
    return {**values, "sha256": json_checksum(values)}


def _line(row: Measured, sweep: Sweep) -> dict[str, Any]:
    """A row of guide.json."""
    values = {key: value for key, value in asdict(row).items() if key != "moves"}
    return {**values, "error_of_difference_to_best": sweep.error_to_best(row), "not_told_apart": row in sweep.alike}
