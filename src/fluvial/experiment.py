"""A Run and its folder: train it, load it, sample from it, score it.

runs/digits-arflow/
  run.json        the whole configuration, the recipe, the versions that made it
  log.jsonl       loss, rate, gradient norm, images/s, held-out loss
  checkpoints/    the newest few: model, moving average, optimizer
  samples/        grids drawn during training, and what `fluvial sample` writes
  score.json      what `fluvial score` measured
"""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fluvial
from fluvial import autoencoders, pictures
from fluvial.config import Run, differences, from_json, to_json
from fluvial.data import images as data_images
from fluvial.data.batches import batches
from fluvial.data.images import ImageSet, to_signed
from fluvial.generate import Generated, SampleConfig, generate
from fluvial.integrate import OnStep
from fluvial.interpolant import INTERPOLANTS
from fluvial.methods import method_of
from fluvial.metrics.accuracy import class_accuracy
from fluvial.metrics.frechet import fit, frechet_distance
from fluvial.randomness import generator
from fluvial.train import checkpoint, loop

# settings that a run may be continued with: they leave the steps already taken valid
CHANGEABLE = (
    "train.log_every",
    "train.save_every",
    "train.eval_every",
    "train.sample_every",
    "train.keep",
    "sample.",
)
PREVIEW = 100  # images in the grids drawn during training
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
    images: ImageSet | None = None,
    held_out: ImageSet | None = None,
    device: torch.device | str | None = None,
) -> "Trained":
    """Trains a run in the folder `out`, or goes on with what is there.

    images and held_out stand in for the data set that `run.data` names, which is then recorded as "given". With
    method.classes 0 labels are left aside. Raises ValueError if the folder holds a run with other settings, if the
    images do not fit the model, or a class is too small for its sequences.
    """
    out, method = Path(out), method_of(run.method)
    autoencoder = autoencoders.load(run.autoencoder)
    if images is None:
        images, held_out = data_images.load(run.data, "train"), data_images.load(run.data, "test")
    else:
        run = replace(run, data=replace(run.data, name="given"))
    if run.method.classes == 0:
        images, held_out = images._replace(labels=None), held_out and held_out._replace(labels=None)
    for part in (images, *([] if held_out is None else [held_out])):
        _check_fit(run, part, autoencoder.encode)
    batch = partial(batches, encode=autoencoder.encode, images_per_sequence=run.method.images_per_sequence)
    train_batch = batch(
        images, batch=run.train.batch, seed=run.seed, flip=run.data.flip, small_classes=run.data.small_classes
    )
    model = build(run, device or default_device())
    _claim(out, run, recipe)
    device = next(model.parameters()).device
    loss = partial(method.loss, config=run.method)
    draws = partial(method.draws, run.method)

    fixed = None if held_out is None else batch(held_out, batch=HELD_OUT, seed=0, small_classes="repeat")(0)

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
        if images.pixels.shape[1] not in (1, 3):
            return  # no picture of such channels; the log and the checkpoints go on
        trained = Trained(model=model, run=run, autoencoder=autoencoder, step=0, seconds=0.0)
        pictures.save_grid(trained.sample(PREVIEW).images, path)

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
    return _trained(average, run, newest)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained run: its moving-average model, ready to sample."""

    model: nn.Module
    run: Run
    autoencoder: autoencoders.Autoencoder
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


def load(folder: Path | str, *, device: torch.device | str | None = None) -> Trained:
    """The newest checkpoint of a run folder.

    Raises ValueError if the folder is not a run, or its checkpoint is missing, damaged or another model's.
    """
    folder = Path(folder)
    run = read_run(folder)
    newest = checkpoint.newest(folder)
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet; train it first")
    model = build(run)
    checkpoint.fill(model, checkpoint.load(newest, "ema"), newest)
    return _trained(model.requires_grad_(False).eval().to(device or default_device()), run, newest)


def _trained(average: nn.Module, run: Run, newest: Path) -> Trained:
    """The moving average with what its checkpoint says of it."""
    meta = checkpoint.load_meta(newest)
    return Trained(
        model=average,
        run=run,
        autoencoder=autoencoders.load(run.autoencoder),
        step=meta["step"],
        seconds=meta["seconds"],
    )


def read_run(folder: Path | str) -> Run:
    """The configuration of a run folder. Raises ValueError if there is none or it cannot be read."""
    file = Path(folder) / "run.json"
    try:
        return from_json(_read_json(folder)["run"])
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
    settings: SampleConfig | None = None,
    device: torch.device | str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Draws `count` images and measures them against the held-out images of the run's data set; writes score.json.

    class_accuracy: the share that an SVM trained on the real training images puts in the class asked for.
    frechet_distance: between the pixels, in [-1, 1], of the samples and of the held-out images; beside it the same
    distance of the real training images, the floor that no honest sampler is below. `real` and `held_out` stand in for
    the data set's two parts, as they must for a run trained on given images.
    """
    folder = Path(folder)
    trained = load(folder, device=device)
    settings = settings or trained.run.sample
    if real is None or held_out is None:
        real, held_out = (data_images.load(trained.run.data, split) for split in ("train", "test"))
    started = time.perf_counter()
    generated = trained.sample(count, seed=seed, settings=settings, on_batch=on_batch)
    seconds = time.perf_counter() - started
    x_real, x_held_out, x = (to_signed(p).flatten(1) for p in (real.pixels, held_out.pixels, generated.images))
    result: dict[str, Any] = {}
    if generated.labels is not None and real.labels is not None and held_out.labels is not None:
        result["class_accuracy"] = class_accuracy(x_real, real.labels, x, generated.labels)
        result["class_accuracy_real"] = class_accuracy(x_real, real.labels, x_held_out, held_out.labels)
    result |= {
        "frechet_distance": frechet_distance(fit(x), fit(x_held_out)),
        "frechet_distance_real": frechet_distance(fit(x_real), fit(x_held_out)),
        "features": "pixels in [-1, 1]",
        "reference": f"{trained.run.data.name}, {len(held_out.pixels)} held-out images",
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
    _write_json(folder / "score.json", result)
    return result


def _claim(out: Path, run: Run, recipe: str | None) -> None:
    """Writes run.json, or checks that the one there is of the same run."""
    made_by = {"fluvial": fluvial.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if (out / "run.json").exists():
        there, record = read_run(out), _read_json(out)
        recipe, made_by = record.get("recipe", recipe), record.get("made_by", made_by)
        changed = differences(there, run)
        fatal = {k: v for k, v in changed.items() if not k.startswith(CHANGEABLE)}
        if there.optim.schedule == "constant":
            fatal.pop("train.steps", None)  # more steps leave those already taken as they are
        if fatal:
            listed = ", ".join(f"{k} is {old} there and {new} here" for k, (old, new) in fatal.items())
            raise ValueError(f"{out} holds another run: {listed}. Choose another folder with --out, or remove it")
    elif out.exists() and any(path.suffix != ".tmp" for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and not a run folder; choose another with --out")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "run.json", {"recipe": recipe, "made_by": made_by, "run": to_json(run)})


def _check_fit(run: Run, images: ImageSet, encode: Callable[[Tensor], Tensor]) -> None:
    """Raises ValueError unless one image, encoded, has the shape the model takes, and the labels are its classes."""
    shape = tuple(encode(to_signed(images.pixels[:1])).shape[1:])
    expected = (run.method.channels, *run.method.size)
    if shape != expected:
        raise ValueError(
            f"the data gives latents of {shape} (channels, height, width), the model takes {expected}; "
            f"set method.channels and method.size"
        )
    if run.method.classes == 0:
        return
    if images.labels is None:
        raise ValueError("the data has no labels; set method.classes to 0 to train without")
    if int(images.labels.max()) >= run.method.classes or int(images.labels.min()) < 0:
        raise ValueError(
            f"the labels run from {int(images.labels.min())} to {int(images.labels.max())}, the model has "
            f"{run.method.classes} classes (0 to {run.method.classes - 1}); set method.classes"
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(values, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "run.json").read_text())
