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
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

import fluvial
from fluvial import finetune, pictures
from fluvial.autoencoders import Autoencoder
from fluvial.config import Run, differences, from_json, to_json
from fluvial.data import images as data_images
from fluvial.data.images import DataConfig, ImageSet, listed, to_signed
from fluvial.data.latents import is_cache
from fluvial.files import Lazy, write_json
from fluvial.generate import Generated, SampleConfig, generate
from fluvial.inputs import batches_of, open_autoencoder, open_inputs
from fluvial.integrate import OnStep
from fluvial.interpolant import INTERPOLANTS
from fluvial.methods import empty_model, method_of
from fluvial.metrics.accuracy import class_accuracy
from fluvial.metrics.frechet import fit, frechet_distance
from fluvial.randomness import generator, numpy_generator
from fluvial.train import checkpoint, loop

# settings that a run may be continued with: they leave the steps already taken valid
CHANGEABLE = (
    "train.log_every",
    "train.save_every",
    "train.eval_every",
    "train.sample_every",
    "train.keep",
    "sample.",
    "data.path",  # the same images elsewhere
    "data.test_path",
    "data.cache",
    "autoencoder.name",  # its weights are checked by their hash
)
PREVIEW = 100  # images in the grids drawn during training
REFERENCE = 10_000  # real images of each part that a score looks at, at most
SVM_IMAGES, SVM_TESTED = 5_000, 1_000  # of them, those that the SVM learns from, and is tested on
SIDE = 32  # larger images are averaged to this side: statistics of more pixels are not to be had
WEIGHTS_ONLY = {"weights_only": True, "seconds": 0.0}  # of a checkpoint that training starts from with a new optimizer
HELD_OUT = 256  # examples behind the held-out loss


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
) -> "Trained":
    """Trains a run in the folder `out`, or goes on with what is there.

    `start` is a run folder with the weights to start from, which may have other classes and another image size: what
    that changes is printed.

    images and held_out stand in for the data set that `run.data` names, which is then recorded as "given". With
    method.classes 0 labels are left aside. Raises ValueError if the folder holds a run with other settings, if the
    images do not fit the model, or a class is too small for its sequences.
    """
    out, method, device = Path(out), method_of(run.method), torch.device(device or default_device())
    if start is not None:
        run = finetune.fitted(run, read_run(start))
    run = _as_it_was(run if images is None else replace(run, data=replace(run.data, name="given")), out)
    _check_folder(out, run)
    inputs = open_inputs(run, images=images, held_out=held_out, cache=out / "latents", device=device)
    run, autoencoder = inputs.run, inputs.autoencoder
    if isinstance(inputs.train, ImageSet) and inputs.train.skipped:
        print(f"left out: {listed(inputs.train.skipped)}", flush=True)
    train_batch = batches_of(inputs, inputs.train, run.train.batch, device, flip=run.data.flip)
    model = build(run, device)
    if (out / "run.json").exists():
        start = read_record(out).get("start")
    first = _first_weights(start, run, model) if start is not None and checkpoint.newest(out) is None else None
    _claim(out, run, recipe, start)
    if first is not None:
        checkpoint.save(out, 0, {"ema": first}, WEIGHTS_ONLY, keep=1)
    loss = partial(method.loss, config=run.method)
    draws = partial(method.draws, run.method)

    fixed = None
    if inputs.held_out is not None:
        fixed = batches_of(inputs, inputs.held_out, HELD_OUT, device, seed=0, small_classes="repeat")(0)

    @torch.no_grad()
    def held_out_loss(model: nn.Module) -> float:
        """The loss on the same images, times and noises every time."""
        assert fixed is not None
        latents, labels = (None if a is None else a.to(device) for a in fixed)
        assert latents is not None
        chance = draws(latents.shape, generator=generator(0, "held-out", device=device), device=device)
        parts = loop.split(
            {"latents": latents, "labels": labels, **chance}, size=run.train.batch // run.train.accumulate
        )
        return sum(float(loss(model, **part)) * len(part["t"]) for part in parts) / HELD_OUT

    def preview(model: nn.Module, path: Path) -> None:
        trained = Trained(model=model, run=run, autoencoder=autoencoder, step=0, seconds=0.0)
        side = run.method.size[0] * autoencoder.stride
        images = trained.sample(PREVIEW if side <= 64 else PREVIEW // 6).images
        if images.shape[1] in (1, 3):  # of other channels there is no picture; the log and the checkpoints go on
            pictures.save_grid(images, path, columns=round(len(images) ** 0.5))

    average = loop.train(
        model,
        loss=loss,
        draws=draws,
        batch=train_batch,
        config=run.train,
        optim=run.optim,
        seed=run.seed,
        run=out,
        held_out=None if fixed is None else held_out_loss,
        preview=preview,
    )
    newest = checkpoint.newest(out)
    assert newest is not None
    return _trained(average, run, autoencoder, newest)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained run: its moving-average model, ready to sample."""

    model: nn.Module
    run: Run
    autoencoder: Autoencoder
    step: int
    """Training steps behind these weights."""
    seconds: float
    """Wall-clock seconds of training behind them."""

    def sample(
        self,
        count: int,
        *,
        classes: tuple[int, ...] | None = None,
        seed: int = 0,
        settings: SampleConfig | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_step: OnStep | None = None,
    ) -> Generated:
        """`count` images; image i is of class classes[i mod len(classes)], of all classes in turn by default.

        Raises ValueError for a class id out of range, a count below 1, or settings that the method does not have.
        """
        known, settings = self.run.method.classes, replace(self.run, sample=settings or self.run.sample).sample
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if wrong := [c for c in classes or () if not 0 <= c < known]:
            raise ValueError(f"class ids {wrong} are out of range: the model knows {known} classes, 0 to {known - 1}")
        method = method_of(self.run.method)
        return generate(
            self.model,
            method.sample,
            self.autoencoder.decode,
            settings,
            count=count,
            classes=classes or tuple(range(known)),
            shape=self.run.method.noise_shape,
            interpolant=INTERPOLANTS[self.run.method.interpolant],
            seed=seed,
            on_batch=on_batch,
            on_step=on_step,
        )


def create(
    folder: Path,
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor | Lazy],
    *,
    step: int = 0,
    seconds: float = 0.0,
) -> None:
    """Makes a run folder of weights that come from elsewhere. Training goes on from them with a new optimizer."""
    checkpoint.save(folder, step, {"ema": tensors}, {**WEIGHTS_ONLY, "seconds": seconds}, keep=1)
    write_json(folder / "run.json", record)


def load(folder: Path | str, *, autoencoder: str = "", device: torch.device | str | None = None) -> Trained:
    """The newest checkpoint of a run folder. `autoencoder` says where the run's is now, if no longer where it was.

    Raises ValueError if the folder is not a run, or its checkpoint is missing, damaged or another model's.
    """
    folder = Path(folder)
    run, newest = read_run(folder), newest_checkpoint(folder)
    if autoencoder:
        run = replace(run, autoencoder=replace(run.autoencoder, name=autoencoder))
    device = device or default_device()
    decoder = open_autoencoder(run.autoencoder).to(device)
    model = empty_model(run.method)
    checkpoint.fill(model, checkpoint.load(newest, "ema"), newest)
    return _trained(model.requires_grad_(False).eval().to(device), run, decoder, newest)


def _trained(average: nn.Module, run: Run, autoencoder: Autoencoder, newest: Path) -> Trained:
    """The moving average with what its checkpoint says of it."""
    meta = checkpoint.load_meta(newest)
    return Trained(model=average, run=run, autoencoder=autoencoder, step=meta["step"], seconds=meta["seconds"])


def read_run(folder: Path | str) -> Run:
    """The configuration of a run folder. Raises ValueError if there is none or it cannot be read."""
    file = Path(folder) / "run.json"
    try:
        return from_json(read_record(folder)["run"])
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a run folder: it has no run.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def score(
    folder: Path | str,
    *,
    count: int = 1000,
    seed: int = 0,
    real: ImageSet | None = None,
    held_out: ImageSet | None = None,
    data: DataConfig | None = None,
    settings: SampleConfig | None = None,
    autoencoder: str = "",
    device: torch.device | str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Draws `count` images and measures them against the held-out images of the run's data set; writes score.json.

    class_accuracy: the share that an SVM trained on the real training images puts in the class asked for.
    frechet_distance: between the pixels, in [-1, 1], of the samples and of the held-out images; beside it the same
    distance of the real training images, the floor that no honest sampler is below.

    `data` stands in for the run's own data, `real` and `held_out` for its two parts, as they must for a run trained on
    given images. Of a large data set no more than 10,000 images of a part are looked at; the SVM learns from 5,000.
    Images above 32 x 32 pixels are averaged to that.
    """
    folder = Path(folder)
    trained = load(folder, autoencoder=autoencoder, device=device)
    settings = settings or trained.run.sample
    data = data or trained.run.data
    real, held_out = _reference(data, real, held_out)
    started = time.perf_counter()
    generated = trained.sample(count, seed=seed, settings=settings, on_batch=on_batch)
    seconds = time.perf_counter() - started
    x_real, x_held_out, x = (_features(pixels) for pixels in (_pixels(real), _pixels(held_out), generated.images))
    averaged = "" if max(generated.images.shape[2:]) <= SIDE else f", averaged to {SIDE} x {SIDE}"
    result: dict[str, Any] = {}
    if generated.labels is not None and real.labels is not None and held_out.labels is not None:
        accuracy = class_accuracy(x_real[:SVM_IMAGES], real.labels[:SVM_IMAGES])
        result["class_accuracy"] = accuracy(x, generated.labels)
        result["class_accuracy_real"] = accuracy(x_held_out[:SVM_TESTED], held_out.labels[:SVM_TESTED])
    result |= {
        "frechet_distance": frechet_distance(fit(x), fit(x_held_out)),
        "frechet_distance_real": frechet_distance(fit(x_real), fit(x_held_out)),
        "features": f"pixels in [-1, 1]{averaged}",
        "reference": f"{data.test_path or data.path or data.name}, {len(held_out.pixels)} held-out images",
        "count": count,
        "seed": seed,
        "solver": settings.solver,
        "nfe": sum(n for name, n in generated.nfe.items() if name.startswith("conditional")),
        "nfe_null": sum(n for name, n in generated.nfe.items() if name.startswith("null")),
        "evaluations": generated.nfe,
        "guidance": settings.guidance.weight if generated.labels is not None else 1.0,
        "guidance_interval": settings.guidance.interval,
        "guidance_channels": settings.guidance.channels,
        "sample": to_json(replace(trained.run, sample=settings))["sample"],
        "train_step": trained.step,
        "train_seconds": round(trained.seconds, 1),
        "images_per_second": round(count / seconds, 1),
        "version": fluvial.__version__,
    }
    write_json(folder / "score.json", result)
    return result


def _reference(data: DataConfig, real: ImageSet | None, held_out: ImageSet | None) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images, shuffled where they are more than enough."""
    if real is None or held_out is None:
        if is_cache(data.path or data.name) or is_cache(data.test_path):
            raise ValueError(
                "the run was trained on cached latents, and a score needs images: name them with --data-path"
            )
        real, held_out = (data_images.load(data, split) for split in ("train", "test"))
        if real is None or held_out is None:
            raise ValueError(f"{data.path or data.name} has no held-out images: name some with --test-path")
    real, held_out = (
        part.subset(torch.from_numpy(numpy_generator(0, "reference").permutation(len(part.pixels))[:REFERENCE]))
        if len(part.pixels) > min(REFERENCE, SVM_IMAGES)
        else part
        for part in (real, held_out)
    )
    return real, held_out


def _features(pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    x = to_signed(pixels)
    return (functional.adaptive_avg_pool2d(x, SIDE) if max(x.shape[2:]) > SIDE else x).flatten(1)


def _pixels(images: ImageSet) -> UInt8[Tensor, "n c h w"]:
    return images.rows(torch.arange(len(images.pixels)))


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
    return replace(run, autoencoder=ours, data=replace(run.data, class_names=names, digest=digest))


def _claim(out: Path, run: Run, recipe: str | None, start: Path | str | None) -> None:
    """Writes run.json, or checks that the one there is of the same run."""
    _check_folder(out, run)
    record = record_of(run, recipe, **({} if start is None else {"start": str(start)}))
    if (out / "run.json").exists():
        record = {**record, **read_record(out), "run": record["run"]}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "run.json", record)


def _first_weights(start: Path | str, run: Run, model: nn.Module) -> dict[str, Tensor]:
    """The weights of another run for this one; what was changed in them is printed."""
    weights = checkpoint.load(newest_checkpoint(start), "ema")
    adapted, changes = finetune.adapted(weights, read_run(start), run, model.state_dict())
    print("\n".join([f"starts from the weights in {start}", *changes]), flush=True)
    return adapted


def newest_checkpoint(folder: Path | str) -> Path:
    """The newest checkpoint of a run folder. Raises ValueError if there is none."""
    newest = checkpoint.newest(Path(folder))
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet; train it first")
    return newest


def record_of(run: Run, recipe: str | None = None, **origin: Any) -> dict[str, Any]:  # noqa: ANN401
    """What run.json says: the run, the recipe, what made it, and where its weights come from."""
    made_by = {"fluvial": fluvial.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"recipe": recipe, "made_by": made_by, **origin, "run": to_json(run)}


def _check_folder(out: Path, run: Run) -> None:
    """Raises ValueError if the folder holds another run, or something that is no run."""
    if (out / "run.json").exists():
        there = read_run(out)
        changed = differences(there, run)
        fatal = {k: v for k, v in changed.items() if not k.startswith(CHANGEABLE)}
        newest = checkpoint.newest(out)
        if newest is not None and checkpoint.load_meta(newest).get("weights_only"):  # no step has been taken here
            fatal = {k: v for k, v in fatal.items() if k.startswith("method.") or (k.startswith("auto") and v[0])}
        if there.optim.schedule == "constant":
            fatal.pop("train.steps", None)  # more steps leave those already taken as they are
        if fatal:
            listed = ", ".join(f"{k} is {old} there and {new} here" for k, (old, new) in fatal.items())
            raise ValueError(f"{out} holds another run: {listed}. Choose another folder with --out, or remove it")
    elif out.exists() and any(path.suffix != ".tmp" and path.name != "latents" for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and not a run folder; choose another with --out")


def read_record(folder: Path | str) -> dict[str, Any]:
    """run.json as it is."""
    return json.loads((Path(folder) / "run.json").read_text())
