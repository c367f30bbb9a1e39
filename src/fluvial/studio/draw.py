"""Draws the pictures of the playground, with previews on the way."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fluvial.studio.scene import Scene, given
from fluvial.studio.work import Job
from fluvial.training.home import complete

if TYPE_CHECKING:
    from fluvial.flow.solvers import Step
    from fluvial.run.load import Sampler
    from fluvial.sampling.samples import Samples

Form = Literal["png", "gif", "npz"]
KEPT = 3  # samplers in memory
GREY = 127
PAUSE = 0.08  # seconds between previews, at least,
SHARE = 0.2  # and of the time, at most, that they may take


class Picture(NamedTuple):
    """A picture on the way, or at its end."""

    png: bytes
    told: str
    """A line about it: step, evaluations, seconds."""
    samples: "Samples | None" = None
    """The images at the end; None on the way."""


class Samplers:
    """The runs that were drawn from last, loaded."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], Sampler] = OrderedDict()

    def get(self, folder: Path, average: str) -> "Sampler":
        """The sampler of a run's newest checkpoint. Raises ValueError if there is none, or it is damaged."""
        from fluvial.run.load import load

        newest = [path.name for path in complete(folder)[-1:]]
        stamp = (folder / "run.json").stat().st_mtime_ns if (folder / "run.json").exists() else 0
        key = (folder.resolve(), average, *newest, stamp)
        if key not in self._kept:
            self._kept[key] = load(folder, average=average)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def settings_of(sampler: "Sampler", scene: Scene) -> Any:  # noqa: ANN401 - a SampleConfig
    """The sampling settings of a scene. Raises ValueError for what the run cannot follow."""
    chosen = given(scene)
    if (scene.low, scene.high) != (0, 1):
        guidance = sampler.run.sample.guidance
        weight = guidance.weight if scene.weight is None else scene.weight
        chosen["guidance"] = replace(guidance, weight=weight, interval=(scene.low, scene.high))
    return sampler.settings(**chosen)


def draw(sampler: "Sampler", scene: Scene, job: Job, show: Callable[[Picture], object]) -> Picture:
    """The picture of a scene; `show` is called with previews of it. Raises ValueError for settings that do not fit."""
    started = time.perf_counter()
    samples = sampled(sampler, scene, _Preview(sampler, scene, job, show))
    told = f"{sum(samples.nfe.values())} evaluations, {time.perf_counter() - started:.2f} s"
    return Picture(png_of(samples.images, scene.columns), told, samples)


def sampled(sampler: "Sampler", scene: Scene, on_step: "Callable[[Step], None]") -> "Samples":
    """The images of a scene, at a seed or between four."""
    from fluvial.run.walk import between_seeds, class_id

    how: dict[str, Any] = {"settings": settings_of(sampler, scene), "on_step": on_step}
    how |= {"classes": class_id(sampler.run, scene.label)} if scene.label else {}
    if scene.seed is None:
        return between_seeds(sampler, scene.seeds, scene.at, scene.count, **how)
    return sampler.sample(scene.count, seed=scene.seed, **how)


def file_of(sampler: "Sampler", scene: Scene, form: Form, job: Job) -> bytes:
    """A file of a scene, as `fluvial sample` writes it: grid.png, trajectory.gif or samples.npz."""
    from fluvial.sampling.samples import Frames

    frames = Frames(sampler.autoencoder.decode, scene.count)

    def follow(step: "Step") -> None:
        job.check()
        if form == "gif":
            frames(step)

    samples = replace(sampled(sampler, scene, follow), trajectory=tuple(frames.images))
    with TemporaryDirectory() as folder:
        samples.save(folder, columns=scene.columns)
        return (Path(folder) / {"png": "grid.png", "gif": "trajectory.gif", "npz": "samples.npz"}[form]).read_bytes()


def png_of(images: Any, columns: int) -> bytes:  # noqa: ANN401 - of any shape
    """The images as `Samples.save` writes its grid.png."""
    from fluvial.utils import pictures

    return pictures.encoded(pictures.grid(images, columns), "png")


def difference(one: Picture, other: Picture, columns: int) -> tuple[bytes, float] | None:
    """The absolute difference of the images of two pictures, and its mean; None if they are not of one shape."""
    if one.samples is None or other.samples is None or one.samples.images.shape != other.samples.images.shape:
        return None
    apart = (one.samples.images.int() - other.samples.images.int()).abs()
    return png_of(apart.byte(), columns), float(apart.float().mean())


class _Preview:
    """An `on_step` that shows the estimate of the images, where the steps take long enough for that.

    Images of batches that are done are shown as they are, those of batches to come in grey.
    """

    def __init__(self, sampler: "Sampler", scene: Scene, job: Job, show: Callable[[Picture], object]) -> None:
        self.sampler, self.scene, self.job, self.show = sampler, scene, job, show
        self.shown, self.cost = time.perf_counter(), 0.0
        self.done: list[Any] = []
        self.last: tuple[int, Any] = (0, None)

    def __call__(self, step: "Step") -> None:
        self.job.check()
        number, x = self.last
        if step.number <= number:  # of the next batch
            self.done.append(self._decoded(x))
        self.last = step.number, step.x
        started = time.perf_counter()
        if started - self.shown < max(PAUSE, self.cost / SHARE) or step.t > 1 - 1e-9:
            return
        import torch

        images = torch.cat([*self.done, self._decoded(step.seen.data(self.sampler.path).to(step.x.dtype))])
        to_come = images.new_full((self.scene.count - len(images), *images.shape[1:]), GREY)
        scale = f", scale {step.scale}" if step.scale else ""
        png = png_of(torch.cat([images, to_come]), self.scene.columns)
        self.show(Picture(png, f"step {step.number}{scale}"))
        self.shown = time.perf_counter()
        self.cost = self.shown - started

    def _decoded(self, latents: Any) -> Any:  # noqa: ANN401 - tensors
        from fluvial.sampling.generate import decoded

        return decoded(self.sampler.autoencoder.decode, latents, checked=False)
