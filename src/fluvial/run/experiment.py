"""A Run and its folder: train it, load it, sample from it, score it.

runs/digits-arflow/
  run.json        the whole configuration, the recipe, the versions that made it
  log.jsonl       loss, rate, gradient norm, images/s, held-out loss
  checkpoints/    the newest few: model, moving average, optimizer
  samples/        grids drawn during training, and what `fluvial sample` writes
  score.json      what `fluvial score` measured
"""

import json
import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fluvial
from fluvial.autoencoders import Autoencoder
from fluvial.config import Run, fixed_differences, from_json, to_json
from fluvial.data.images import ImageSet
from fluvial.evaluation.against import against, real_images
from fluvial.evaluation.statistics import statistics
from fluvial.methods import empty_model, method_of
from fluvial.metrics.features import extractor
from fluvial.run import finetune
from fluvial.run.inputs import Inputs, batches_of, check_data, on_the_hub, open_autoencoder, open_inputs
from fluvial.run.trained import Trained
from fluvial.training import checkpoint, distributed, loop
from fluvial.training.distributed import World
from fluvial.training.ema import whole
from fluvial.training.health import check_finite_weights
from fluvial.training.validation import EXAMPLES, validation_losses
from fluvial.utils import pictures
from fluvial.utils.files import Lazy, closest, is_held, json_checksum, only_one, read_bytes, write_json
from fluvial.utils.randomness import address

# what run.json may say, and of what type
RECORD = {"recipe": (str, type(None)), "made_by": dict, "imported": dict, "start": str, "ema": dict, "run": dict}
PREVIEW = 100  # images in the grids drawn during training


def default_device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(run: Run, device: torch.device | str = "cpu") -> nn.Module:
    """The run's model with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        return method_of(run.method).Model(run.method).to(device)


def images_per_step(run: Run) -> int:
    """Images that one training step looks at."""
    return run.train.batch * (run.method.images_per_sequence or 1)


def train(
    run: Run,
    out: Path | str,
    *,
    recipe: str | None = None,
    start: Path | str | None = None,
    images: ImageSet | None = None,
    held_out: ImageSet | None = None,
    device: torch.device | str | None = None,
    start_over: bool = False,
) -> "Trained":
    """Trains a run in the folder `out`, or goes on with what is there.

    `start` is a run folder with the weights to start from, which may have other classes and another image size: what
    that changes is printed.

    images and held_out stand in for the data set that `run.data` names, which is then recorded as "given". With
    method.classes 0 labels are left aside. `start_over` trains from the start again where none of the run's checkpoints
    is whole, which is refused otherwise.

    Raises ValueError if the folder holds a run with other settings or no whole checkpoint, if the images do not fit the
    model, or a class is too small for its sequences; RuntimeError if the weights are not finite at the end.
    """
    with distributed.world(torch.device(device or default_device())) as (world, device):
        return _train(run, Path(out), recipe, start, images, held_out, device, world, start_over)


def _train(
    run: Run,
    out: Path,
    recipe: str | None,
    start: Path | str | None,
    images: ImageSet | None,
    held_out: ImageSet | None,
    device: torch.device,
    world: World,
    start_over: bool,
) -> "Trained":
    if images is not None:  # in place of whatever data the run names
        run = replace(run, data=replace(run.data, name="given", path="", test_path=""))
    run = _continued(run, out, start)
    tell = partial(print, flush=True) if world.first else lambda text: None
    with world.one_by_one():  # the first writes what is cached
        options = {"cache": out / "latents", "device": device, "tell": tell}
        inputs = open_inputs(run, images=images, held_out=held_out, **options)
    run, autoencoder = inputs.run, inputs.autoencoder
    model = build(run, device)

    def batches(order: int) -> Callable[[int], Any]:
        seed = address(run.seed, "order", order) if order else run.seed
        options = {"seed": seed, "flip": run.data.flip, "share": world.share}
        return batches_of(inputs, inputs.train, run.train.batch, device, **options)

    batches(0)  # says what is wrong with the data before anything is written

    def sampler(model: nn.Module) -> Trained:
        return Trained(model=model, run=run, autoencoder=autoencoder, step=0, seconds=0.0)

    def preview(model: nn.Module, path: Path) -> None:
        side = run.method.size[0] * autoencoder.stride
        images = sampler(model).sample(PREVIEW if side <= 64 else PREVIEW // 6).images
        pictures.save_grid(images, path, columns=round(len(images) ** 0.5))

    score = _scorer(run, inputs, device) if run.train.score_every and world.first else None

    with only_one(out) if world.first else nullcontext():
        if world.first:
            _begin(out, run, recipe, start, model, start_over)
        world.barrier()
        average = loop.train(
            model,
            method=method_of(run.method),
            batches=batches,
            config=run.train,
            optim=run.optim,
            seed=run.seed,
            run=out,
            replica=lambda: empty_model(run.method).to(device),
            world=world,
            held_out=_validation(inputs, device),
            preview=preview if (autoencoder.image_channels or run.method.channels) in (1, 3) else None,
            score=None if score is None else lambda model: score(sampler(model)),
            start_over=start_over,
        )
        weights = {name: whole(p.detach()) for name, p in model.named_parameters()}
        check_finite_weights(weights, f"the weights that training in {out} ended with")
        check_finite_weights(average.state_dict(), f"the averaged weights that training in {out} ended with")
        return checkpoint.read(out, partial(_trained, average, run, autoencoder))


def check(
    run: Run,
    out: Path | str,
    *,
    start: Path | str | None = None,
    tell: Callable[[str], None] = print,
) -> int | None:
    """Makes the checks that `train` makes before its first step, on the CPU, and writes nothing to `out`.

    Returns the number of training images; None if they are on the hub, from where nothing is downloaded. `tell` is
    called with what is not checked, what is left out of the data, and what is changed in the weights of `start`.
    Raises ValueError as `train` does.
    """
    out = Path(out)
    run = _continued(run, out, start)
    if is_held(out):
        raise ValueError(f"another process is training in {out}; wait for it, or choose another folder")
    first = _start(out, start, start_over=False)
    unchecked = on_the_hub(run)
    for what in unchecked.values():
        tell(f"not checked: {what}")
    if checkpoint.newest(out) is not None:
        tell(f"not checked: the checkpoints in {out / 'checkpoints'}; they are verified when training goes on")
    if run.train.score_every:
        tell("not checked: what train.score_every measures against; it is read when training starts")
    if "data" in unchecked:
        if "autoencoder" not in unchecked:
            open_autoencoder(run.autoencoder)
        return None
    if "autoencoder" in unchecked:
        return len(check_data(run, tell)[0])
    inputs = open_inputs(replace(run, data=replace(run.data, cache=False)), tell=tell)
    batches_of(inputs, inputs.train, run.train.batch, "cpu")  # says which classes are too small
    _check_folder(out, replace(inputs.run, data=replace(inputs.run.data, cache=run.data.cache)))
    if first is not None:
        _first_weights(first, inputs.run, build(run), tell)
    return len(inputs.train[0])


def _continued(run: Run, out: Path, start: Path | str | None) -> Run:
    """The run as it goes on in the folder, or as weights start it. Raises ValueError if the folder is not for it."""
    if start is not None:
        run = finetune.fitted(run, read_run(start))
    run = _as_it_was(run, out)
    _check_folder(out, run)
    run.check_guidance()  # before hours of training, after which its pictures would be refused
    return run


def _validation(inputs: Inputs, device: torch.device) -> Callable[[nn.Module], dict[str, Any]] | None:
    """A function from a model to its validation loss; None without validation examples."""
    if inputs.held_out is None:
        return None
    run = inputs.run
    batch = batches_of(inputs, inputs.held_out, EXAMPLES, device, seed=0, small_classes="repeat")
    size = run.train.batch // run.train.accumulate
    return validation_losses(method_of(run.method), run.method, batch, size, device)


def _scorer(run: Run, inputs: Inputs, device: torch.device) -> Callable[[Trained], dict[str, Any]]:
    """A function from a model to the scores of its samples, for the log."""
    look = extractor(run.train.score_extractor, device=device)
    given = [part if isinstance(part, ImageSet) else None for part in (inputs.train, inputs.held_out)]
    measure = against("test", real_images(run.data, *given, labelled=run.method.classes > 0), look).measure

    def score(trained: Trained) -> dict[str, Any]:
        drawn = trained.draw(run.train.score_count)
        found = measure(statistics(drawn, look, batch=run.sample.batch))
        values = {name: estimate.value for name, estimate in found.values.items()}
        real = {f"{name}_real": value for name, value in found.real.items() if name in values}
        return {**values, **real, "extractor": look.name, "count": drawn.n}

    return score


def _begin(
    out: Path, run: Run, recipe: str | None, start: Path | str | None, model: nn.Module, start_over: bool
) -> None:
    """Claims the folder, and writes the weights that the run starts from, if it does."""
    first = _start(out, start, start_over)
    weights = None if first is None else _first_weights(first, run, model)
    _claim(out, run, recipe, read_record(out).get("start") if (out / "run.json").exists() else start)
    if weights is not None:
        checkpoint.write_weights(out, 0, weights, {})


def _start(out: Path, start: Path | str | None, start_over: bool) -> Path | str | None:
    """The run folder whose weights are to be the first of this run; None for new weights, or if it goes on.

    Raises ValueError if the folder started from others, or has lost those that it was made of.
    """
    record = read_record(out) if (out / "run.json").exists() else {}
    if record:
        there = record.get("start")
        if start is not None and str(start) != there:
            raise ValueError(f"{out} holds a run that started from {there or 'new weights'}, not from {start}")
        start = there
    if start_over and (whole := checkpoint.newest_whole(out)):
        raise ValueError(f"--start-over is for runs without a whole checkpoint, and {whole} is whole; leave it out")
    if (none := checkpoint.newest(out) is None) and start is None and record.keys() & {"imported", "ema"}:
        raise ValueError(f"the weights that {out} was made of are gone; make it again with fluvial import, or ema")
    return start if none and (start_over or not (out / checkpoint.SAVED).exists()) else None


def create(
    folder: Path,
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor | Lazy],
    *,
    step: int = 0,
    seconds: float = 0.0,
) -> None:
    """Makes a run folder of weights that come from elsewhere. Training goes on from them with a new optimizer."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_weights(folder, step, tensors, {"seconds": seconds})
    write_record(folder, record)


def load(
    folder: Path | str, *, autoencoder: str = "", device: torch.device | str | None = None, step: int | None = None
) -> Trained:
    """The newest checkpoint of a run folder, or that of `step`, verified against its checksums.

    `autoencoder` says where the run's is now, if no longer where it was. Raises ValueError if the folder is not a run,
    or its checkpoint is missing, damaged or another model's; RuntimeError if it is not finite.
    """
    folder = Path(folder)
    run = read_run(folder)
    if autoencoder:
        run = replace(run, autoencoder=replace(run.autoencoder, name=autoencoder))
    device = device or default_device()
    decoder = open_autoencoder(run.autoencoder).to(device)
    model = empty_model(run.method)

    def fill(there: Path) -> Trained:
        checkpoint.fill({f"ema/{name}": value for name, value in model.state_dict().items()}, there)
        check_finite_weights(model.state_dict(), f"the weights in {there}")
        return _trained(model, run, decoder, there)

    trained = checkpoint.read(folder, fill, step=step)
    model.requires_grad_(False).eval().to(device)
    return trained


def weights(folder: Path | str, *, step: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights that samples are drawn from, on the CPU, and the description of their checkpoint: see `load`."""

    def load(there: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = checkpoint.load(there, "ema")
        check_finite_weights(found, f"the weights in {there}")
        return found, checkpoint.load_meta(there)

    return checkpoint.read(Path(folder), load, step=step)


def _trained(average: nn.Module, run: Run, autoencoder: Autoencoder, there: Path) -> Trained:
    """The moving average with what its checkpoint says of it."""
    meta, record = checkpoint.load_meta(there), read_record(there.parent.parent)
    kind = f"average of decay {run.train.ema_decay:g}"
    if "ema" in record:
        kind = f"power-function average of length {record['ema']['length']:g}"
    elif meta.get("weights_only"):
        kind = "as imported"
    told = {"step": meta["step"], "seconds": meta["seconds"], "average": kind}
    return Trained(model=average, run=run, autoencoder=autoencoder, **told)


def read_run(folder: Path | str) -> Run:
    """The configuration of a run folder. Raises ValueError if there is none or it cannot be read."""
    file = Path(folder) / "run.json"
    try:
        record = json.loads(read_bytes(file))
        run, told = from_json(record["run"]), record.pop("sha256", None)
        if unknown := record.keys() - RECORD.keys():
            raise ValueError(f"it has the unknown entries {', '.join(sorted(unknown))}")
        if wrong := [key for key, types in RECORD.items() if key in record and not isinstance(record[key], types)]:
            raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r:.100}")
    except FileNotFoundError as error:
        hint = "" if Path(folder).exists() else closest(str(folder))
        raise ValueError(f"{folder} is not a run folder: it has no run.json{hint}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error!s:.1000}") from error
    if told not in (None, json_checksum(record)):
        raise ValueError(
            f"{file} is not as it was written: damaged, or edited. Settings are changed by options of `fluvial train`; "
            f'to keep an edit, delete the entry "sha256" in it'
        )
    return run


def _as_it_was(run: Run, out: Path) -> Run:
    """The run with what was found when it was first started, where it does not say otherwise."""
    if not (out / "run.json").exists():
        return run
    there = read_run(out)
    names, digest = run.data.class_names or there.data.class_names, run.data.digest or there.data.digest
    ours, theirs = run.autoencoder, there.autoencoder
    if not ours.shift and ours.statistics == theirs.statistics:
        ours = replace(ours, shift=theirs.shift, scale=theirs.scale)
    ours = replace(ours, hash=ours.hash or theirs.hash)
    found = {"class_names": names, "digest": digest, "names_given": run.data.renames or there.data.names_given}
    return replace(run, autoencoder=ours, data=replace(run.data, **found))


def _claim(out: Path, run: Run, recipe: str | None, start: Path | str | None) -> None:
    """Writes run.json, or checks that the one there is of the same run."""
    _check_folder(out, run)
    origin: dict[str, Any] = {} if start is None else {"start": str(start)}
    if start is not None and not (out / "run.json").exists() and (imported := read_record(start).get("imported")):
        origin["imported"] = imported  # where the weights are from in the first place
    record = record_of(run, recipe, **origin)
    if (out / "run.json").exists():
        record = {**record, **read_record(out), "run": record["run"]}
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, record)


def _first_weights(
    start: Path | str, run: Run, model: nn.Module, tell: Callable[[str], None] = partial(print, flush=True)
) -> dict[str, Tensor]:
    """The weights of another run for this one; `tell` is called with what was changed in them."""
    adapted, changes = finetune.adapted(weights(start)[0], read_run(start), run, model.state_dict())
    tell("\n".join([f"starts from the weights in {start}", *changes]))
    return adapted


def record_of(run: Run, recipe: str | None = None, **origin: Any) -> dict[str, Any]:  # noqa: ANN401
    """What run.json says: the run, the recipe, what made it, and where its weights come from."""
    made_by = {"fluvial": fluvial.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"recipe": recipe, "made_by": made_by, **origin, "run": to_json(run)}


def _check_folder(out: Path, run: Run) -> None:
    """Raises ValueError if the folder holds another run, or something that is no run."""
    if (out / "run.json").exists():
        there = read_run(out)
        fatal = {k: v for k, v in fixed_differences(there, run).items() if not _named_anew(k, *v)}
        newest = checkpoint.newest(out)
        if newest is not None and checkpoint.is_untrained(newest):
            fatal = {k: v for k, v in fatal.items() if k.startswith("method.") or (k.startswith("auto") and v[0])}
        if there.optim.schedule == "constant":
            fatal.pop("train.steps", None)  # more steps leave those already taken as they are
        if fatal:
            listed = ", ".join(f"{k} is {old} there and {new} here" for k, (old, new) in fatal.items())
            raise ValueError(f"{out} holds another run: {listed}. Choose another folder with --out, or remove it")
    elif out.exists() and any(path.name[0] != "." and path.name != "latents" for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and not a run folder; choose another with --out")


def _named_anew(key: str, there: Any, here: Any) -> bool:  # noqa: ANN401 - a setting
    """Whether the same data has another name: a path in place of the hub's, or class names where it had none."""
    return (key == "data.name" and "" in (there, here)) or (key == "data.class_names" and there == ())


def read_record(folder: Path | str) -> dict[str, Any]:
    """run.json as it is, but for its checksum."""
    record = json.loads(read_bytes(Path(folder) / "run.json"))
    return {key: value for key, value in record.items() if key != "sha256"}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes run.json, with a checksum of itself."""
    write_json(folder / "run.json", {**record, "sha256": json_checksum(record)})
