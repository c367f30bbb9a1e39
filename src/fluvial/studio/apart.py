"""The drawing of a few images, step by step, and drawn again from a scale, a time, or with less history."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from fluvial.flow.solvers import Step
    from fluvial.run.load import Sampler
    from fluvial.sampling.samples import Samples

MOST_FRAMES, MOST_BYTES = 256, 64 * 2**20  # of a recording; beyond that every second step is forgotten
LEAST_FRAMES = 8  # that are kept however large they are
VELOCITY = 4.0  # that is white in a picture; grey is 0, black its negative
FORKS = 4  # images that a fork draws
ENDED = 1 - 1e-9  # time from which an integral is at its end


class Frame(NamedTuple):
    """A step as the solver saw it, or the end of an integral."""

    number: int
    """Number of the step, from 1; of an end, of the step before it."""
    scale: str
    t: "Tensor"
    """Times (n,) of the images: 0 noise, 1 data."""
    x: "Tensor"
    """The noisy point, latents (n, c, h, w)."""
    velocity: "Tensor | None"
    """The velocity there, shaped like x; None at an end."""


@dataclass(frozen=True)
class Recorded:
    """Images that were drawn, and what the steps to them saw."""

    samples: "Samples"
    frames: tuple[Frame, ...]
    decays: tuple[tuple[float, ...], ...] = ()
    """Part of ARFlow's history that a step leaves, by block and head; () for a method without."""

    @property
    def ends(self) -> tuple[Frame, ...]:
        """The ends of all integrals: for FlowAR one for each scale, coarse to fine."""
        return tuple(frame for frame in self.frames if frame.velocity is None)


class Recording:
    """An `on_step` that keeps what the steps saw, in bounded memory. `check` is called at every step."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self.check, self.every, self.last = check, 1, 0
        self.frames: list[Frame] = []

    def __call__(self, step: "Step") -> None:
        self.check()
        if step.number <= self.last:  # once more, in smaller batches
            self.frames, self.every = [], 1
        self.last = step.number
        if (step.number - 1) % self.every == 0:
            x, t, velocity = (part.detach().cpu() for part in step.seen)
            self.frames.append(Frame(step.number, step.scale, t, x, velocity))
        if step.t > ENDED:
            x = step.x.detach().cpu()
            self.frames.append(Frame(step.number, step.scale, step.seen.t.new_ones(len(x)).cpu(), x, None))
        size = 2 * self.frames[0].x.nbytes * len(self.frames) if self.frames else 0
        if len(self.frames) > MOST_FRAMES or (size > MOST_BYTES and len(self.frames) > LEAST_FRAMES):
            self.every *= 2
            self.frames = [f for f in self.frames if f.velocity is None or (f.number - 1) % self.every == 0]


def record(
    sampler: "Sampler",
    *,
    count: int = 1,
    label: str = "",
    seed: int = 0,
    history: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Recorded:
    """The images that `Sampler.sample` draws, with what the steps saw. Raises ValueError as it does.

    `history` is the number of points that ARFlow's history holds, the run's own by default.
    """
    from fluvial.run.walk import class_id

    settings = sampler.settings()
    settings = replace(settings, batch=max(count, settings.batch))
    settings = settings if history is None else replace(settings, history=history)
    recording = Recording(check)
    classes = class_id(sampler.run, label) if label else None
    with gates(sampler.computing(settings)[0]) as decays:
        samples = sampler.sample(count, seed=seed, settings=settings, on_step=recording, classes=classes)
    return Recorded(samples, tuple(recording.frames), tuple(tuple(means) for means in decays()))


def redrawn(
    sampler: "Sampler",
    first: Recorded,
    *,
    keep: int,
    seed: int,
    label: str = "",
    check: Callable[[], None] = lambda: None,
) -> Recorded:
    """The images with their `keep` coarsest scales kept and the others drawn again, as `fluvial.run.edit.vary` does.

    They are of their own class, or that of `label`. Raises ValueError for a method without scales.
    """
    from torch.nn import functional as F

    from fluvial.methods import method_of
    from fluvial.run.edit import vary
    from fluvial.run.walk import class_id
    from fluvial.sampling.work import latents_of

    images, labels, config = first.samples.images, first.samples.labels, sampler.run.method
    own, recording = None if labels is None else labels.tolist(), Recording(check)
    classes = class_id(sampler.run, label) if label else own
    samples = vary(_followed(sampler, recording), images, keep=keep, classes=classes, seed=seed)
    device, sizes = next(sampler.model.parameters()).device, [config.size]
    latents = latents_of(sampler.autoencoder, images, channels=config.channels, sizes=sizes, device=device)
    kept = [F.interpolate(clean, size=config.size) for _, clean in method_of(config).targets(config, latents)][:keep]
    names = method_of(config).scales(config)
    ends = [Frame(0, names[i], map_.new_ones(len(map_)), map_, None) for i, map_ in enumerate(kept)]
    return Recorded(samples, (*ends, *recording.frames))


def forked(
    sampler: "Sampler",
    first: Recorded,
    *,
    at: float,
    seed: int,
    index: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Recorded:
    """A few images that are one with image `index` until time `at`, as `fluvial.run.edit.fork` draws them."""
    from fluvial.run.edit import fork

    labels, recording = first.samples.labels, Recording(check)
    classes = None if labels is None else int(labels[index])
    samples = fork(_followed(sampler, recording), index, FORKS, at=at, classes=classes, seed=seed)
    return Recorded(samples, tuple(recording.frames))


def fork_time(sampler: "Sampler", frame: Frame) -> float | None:
    """The time at which a step begins, exactly, for a fork there; None where the method or the solver has none."""
    from fluvial.methods import method_of
    from fluvial.methods.method import Editable

    settings, method = sampler.settings(), method_of(sampler.run.method)
    t, solver = float(frame.t.min()), settings.solver_settings
    if method.scales(sampler.run.method) or not isinstance(method, Editable) or solver.is_stochastic:
        return None
    if frame.velocity is None or not 0 < t < 1:
        return None
    times: Any = settings.times()
    return t if solver.is_adaptive else min(times.tolist(), key=lambda point: abs(point - t))


def _followed(sampler: "Sampler", on_step: "Callable[[Step], None]") -> "Sampler":
    """The sampler, whose steps are all told to `on_step`, those of edits too."""
    from fluvial.run.load import Sampler

    class Followed(Sampler):
        def computing(self, settings: Any) -> Any:  # noqa: ANN401
            model, draw = sampler.computing(settings)
            return model, lambda *given, **options: draw(*given, **{**options, "on_step": on_step})

    return Followed(**{field.name: getattr(sampler, field.name) for field in fields(sampler) if field.init})


def pictures_of(sampler: "Sampler", frame: Frame) -> tuple[bytes, bytes, bytes]:
    """PNGs of the noisy point, the estimate of the clean images and the velocity; b"" for that of an end."""
    x, velocity = frame.x, frame.velocity
    point = _picture(sampler, x)
    if velocity is None:
        return point, point, b""
    return point, _picture(sampler, estimate(sampler, frame)), _png(velocity_images(velocity), len(x))


def estimate(sampler: "Sampler", frame: Frame) -> "Tensor":
    """The clean latents that the velocity of a frame leads to along the path."""
    from fluvial.flow.solvers import Seen

    assert frame.velocity is not None
    return Seen(frame.x, frame.t, frame.velocity).data(sampler.path).to(frame.x.dtype)


def strip_of(sampler: "Sampler", recorded: Recorded) -> list[tuple[str, bytes]]:
    """Names and PNGs of the scales, coarse to fine; images stand below one another."""
    return [(frame.scale, _picture(sampler, frame.x, columns=1)) for frame in recorded.ends]


def _picture(sampler: "Sampler", latents: "Tensor", columns: int | None = None) -> bytes:
    from fluvial.sampling.generate import decoded

    device = next(sampler.model.parameters()).device
    images = decoded(sampler.autoencoder.decode, latents.to(device), checked=False)
    return _png(images, columns or len(images))


def _png(images: "Tensor", columns: int) -> bytes:
    """The images as `Samples.save` writes its grid.png."""
    from fluvial.utils import pictures

    return pictures.encoded(pictures.grid(images, columns), "png")


def velocity_images(velocity: "Tensor") -> "Tensor":
    """Velocities (n, c, h, w) as uint8 images around grey; channels that are no colours stand beside one another."""
    import torch
    from torch.nn import functional as F

    levels = (velocity.float() / VELOCITY * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    n, c, h, w = levels.shape
    if c in (1, 3):
        return levels
    columns = math.ceil(math.sqrt(c))
    rows = -(-c // columns)
    levels = F.pad(levels, (0, 0, 0, 0, 0, rows * columns - c), value=128)
    return levels.view(n, rows, columns, h, w).transpose(2, 3).reshape(n, 1, rows * h, columns * w)


def weights_of(sampler: "Sampler", recorded: Recorded) -> list[float | None]:
    """The weight of guidance at every frame, 1 outside its interval and None at an end; [] where nothing is guided."""
    from fluvial.flow.interpolant import log_snr
    from fluvial.methods import method_of

    config, guidance = sampler.run.method, sampler.settings().guidance
    if not config.classes or guidance.is_off:
        return []
    names = method_of(config).scales(config)
    low, high = guidance.log_snr or guidance.interval
    found: list[float | None] = []
    for frame in recorded.frames:
        t = frame.t.min()
        at = float(t if guidance.log_snr is None else log_snr(sampler.path, t))
        there = guidance.at_scale(names.index(frame.scale), len(names)) if names else guidance
        weight = float(there.weight_at(t)) if low <= at <= high else 1.0
        found.append(None if frame.velocity is None else weight)
    return found


@contextmanager
def gates(model: Any) -> Iterator[Callable[[], list[list[float]]]]:  # noqa: ANN401 - a module
    """Looks at gated linear attention while it runs; gives the mean part of the history that an image leaves it."""
    from fluvial.nn.attention import HybridLinearAttention

    found = [part for part in model.modules() if isinstance(part, HybridLinearAttention)]
    seen: list[list[Tensor]] = [[] for _ in found]

    def look(number: int, part: Any, given: Any) -> None:  # noqa: ANN401
        seen[number].append(log_decay(part, *given[:2]).mean((0, 1)))

    hooks = [part.register_forward_pre_hook(partial(look, number)) for number, part in enumerate(found)]
    try:
        yield lambda: [(sum(all_[1:], all_[0]) / len(all_)).exp().tolist() for all_ in seen if all_]
    finally:
        for hook in hooks:
            hook.remove()


def log_decay(attention: Any, x: "Tensor", condition: "Tensor") -> "Tensor":  # noqa: ANN401
    """The logarithm (b, s, heads) of what each image leaves of the history, as `HybridLinearAttention` has it."""
    from torch.nn import functional as F

    from fluvial.nn.attention import GATE_LOGIT_NORMALIZER

    gate = (x + condition.unsqueeze(-2)).float() @ attention.gate.weight.float().T  # b s n heads
    log_gate = F.logsigmoid(gate) / GATE_LOGIT_NORMALIZER
    return log_gate.mean(dim=-2) if attention.image_decay == "mean" else log_gate.sum(dim=-2)


def half_life(decay: float) -> float:
    """The number of steps after which half of what a point adds to the history is left."""
    return math.inf if decay >= 1 else math.log(0.5) / math.log(decay) if decay > 0 else 0.0
