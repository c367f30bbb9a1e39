"""The interface of a method: the functions that its module defines, and the random draws of a training step."""

# ruff: noqa: ANN401 - each method has a Config of its own

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fluvial.flow.interpolant import InterpolantName
from fluvial.flow.timesteps import TimeSampling

D = TypeVar("D", bound="Draws")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random draws of one training step. A method may add its own; all begin with the batch axis."""

    t: Float[Tensor, "b ..."]
    """Times in [0, 1]: 0 is noise, 1 is data."""
    noise: Float[Tensor, "b ..."]
    """Standard normal noise, x0."""
    drop: Bool[Tensor, " b"]
    """The label-drop mask: True for examples whose label is dropped in training."""

    def __getitem__(self: D, rows: slice) -> D:
        """The draws of these examples of the batch."""
        return self._each(lambda value: value[rows])

    def to(self: D, device: torch.device | str) -> D:
        """The draws, moved to a device."""
        return self._each(lambda value: value.to(device))

    def _each(self: D, change: Callable[[Tensor], Tensor]) -> D:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})


class Flow(NamedTuple):
    """An ODE from noise to clean values, which has a density at them: see `fluvial.flow.likelihood`."""

    velocity: Callable[[Tensor, Tensor], Tensor]
    """velocity(x, t) for x like the clean values and t (b,), shaped like x; that of a row depends on this row alone."""
    clean: Float[Tensor, "b ..."]
    """The values at t = 1."""


@runtime_checkable
class MethodConfig(Protocol):
    """The settings that every method's Config has, as fields of a frozen dataclass, properties or ClassVars."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latent."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; 0 trains without labels."""
        ...

    @property
    def width(self) -> int:
        """Width of the hidden layers, which the learning rate is judged by."""
        ...

    @property
    def label_drop(self) -> float:
        """Probability that a label is dropped in training; 0 leaves guidance without a null branch."""
        ...

    @property
    def time_sampling(self) -> TimeSampling:
        """Distribution of t in training."""
        ...

    @property
    def interpolant(self) -> InterpolantName:
        """Path from noise to data."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one image's noise, as `sample` takes it."""
        ...

    @property
    def images_per_sequence(self) -> int | None:
        """Images in a training example, as an axis of their own after the batch's; None if it is one image."""
        ...

    @property
    def guides_channels(self) -> bool:
        """True if guidance can be limited to the first channels."""
        ...

    @property
    def context_noise(self) -> float:
        """Largest noise level mixed into inputs other than x_t in training; 0 for none."""
        ...


@runtime_checkable
class Objective(Protocol):
    """The functions that training needs; the loss is (errors * part_weights).sum(-1).mean(), see `training/step.py`.

    A part is an image of ARFlow's sequence, or a scale of FlowAR; SiT has one.
    """

    def draws(
        self,
        config: Any,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str,
    ) -> Draws:
        """Samples t, noise and the label-drop mask of one training step on latents of this shape."""
        ...

    def errors(self, model: nn.Module, latents: Tensor, labels: Tensor | None, draws: Any) -> Float[Tensor, "b parts"]:
        """The mean squared velocity error of each part of each example; `model.config` is the Config."""
        ...

    def part_weights(self, config: Any) -> Sequence[float]:
        """The weight of each part in the loss."""
        ...


def with_functions(method: Any, **functions: Callable[..., Any]) -> Any:
    """The method with these functions in place of its own."""
    own = {name: getattr(method, name) for name in dir(method) if not name.startswith("__")}
    return SimpleNamespace(**{**own, **functions})


@runtime_checkable
class Method(Objective, Protocol):
    """The interface of a method's module, such as `methods/sit.py`; `config` is an instance of its `Config`."""

    @property
    def Config(self) -> type[Any]:
        """The settings: a frozen dataclass with all that `MethodConfig` lists, and those of the method's own."""
        ...

    @property
    def Model(self) -> Callable[[Any], nn.Module]:
        """The network's class: `Model(config)`, which keeps the settings as `config`."""
        ...

    @property
    def PRESETS(self) -> Collection[str]:
        """Names of the published sizes."""
        ...

    def preset(self, name: str, **overrides: Any) -> Any:
        """The Config of a published size, with some fields replaced."""
        ...

    @property
    def sample(self) -> Callable[..., Tensor]:
        """The sampler: sample(model, labels, *, noise, times, guidance, solver, ...) -> latents (b, c, h, w).

        Further keywords are step_noise, on_step, evaluations, careful and guide: see `methods/sit.py`.
        """
        ...

    def targets(self, config: Any, latents: Tensor) -> Sequence[tuple[float, Tensor]]:
        """Pairs (weight in the loss, clean values that noise flows to) for latents (n, c, h, w) of single images."""
        ...

    def scales(self, config: Any) -> tuple[str, ...]:
        """Names of the scales that an image is drawn in, coarse to fine; () if it is drawn at once."""
        ...

    def tokens(self, config: Any) -> int:
        """The number of tokens of one image in the network's sequence."""
        ...

    def small(self, config: Any) -> Any:
        """The settings with a network small enough that a CPU trains it in a minute."""
        ...

    def framed(self, config: Any, start: Any) -> Any:
        """The settings adapted to start from weights of the settings `start`, which may be of another size."""
        ...

    def resampled(self, weights: Mapping[str, Tensor], before: Any, after: Any) -> tuple[dict[str, Tensor], str]:
        """The weights with learned positions resampled to the size of `after`, and a note of the change, or ""."""
        ...


@runtime_checkable
class Proportioned(Protocol):
    """A method that can choose its network, as `fluvial train IMAGES --method NAME` needs it."""

    def proportioned(
        self, *, depth: int, width: int, size: tuple[int, int], channels: int, classes: int, patch: int
    ) -> Any:
        """The settings of a network of this depth and width, everything else in proportion to them."""
        ...


@runtime_checkable
class Editable(Protocol):
    """A method that can draw parts of a known image, as `fluvial edit` needs it."""

    def ends(self, config: Any, latents: Tensor) -> Sequence[Tensor]:
        """The values that the solver ends with for latents (n, c, h, w): those of each scale, coarse to fine, or one.

        They are in the shape that the solver has, and linear in the latents.
        """
        ...


@runtime_checkable
class Reversible(Protocol):
    """A method that samples along ODEs, which can be followed back to the noise, as `fluvial likelihood` needs it."""

    def flows(self, model: nn.Module, latents: Tensor, labels: Tensor | None) -> Sequence[Flow]:
        """The ODE that ends at these latents (b, c, h, w), or one for each scale, coarse to fine.

        Those of a finer scale are given the coarser maps of the same latents. Labels None are no class. Where sampling
        reads a history of earlier points, as it does if the Config has images_per_sequence, the history is empty.
        """
        ...


@runtime_checkable
class Distillable(Protocol):
    """A method that can learn to sample in few steps, as `fluvial distill` needs it."""

    def velocities_along(
        self, model: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, ends: Tensor
    ) -> Float[Tensor, "b k ..."]:
        """The model's velocities at x (b, k, ...), k points of each trajectory, in the shape of the noise.

        Their times t (b, k) ascend; ends (b, ...) are the points at t = 1.
        """
        ...

    def mean_squares(self, config: Any, difference: Tensor) -> Float[Tensor, "b parts"]:
        """The mean square of each part of the difference (b, k, ...) of velocities at k points."""
        ...

    def follower(self, config: Any, steps: int) -> Any:
        """The settings to train a model with that samples in this many steps."""
        ...

    def followed(self, model: nn.Module) -> nn.Module:
        """The part of the model that is trained to do so."""
        ...
