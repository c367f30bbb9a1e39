"""Run: everything that defines a training run, as one frozen value, and its JSON."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import cattrs
from cattrs.strategies import configure_tagged_union
from cattrs.v import format_exception

from fluvial import methods
from fluvial.autoencoders import AutoencoderConfig
from fluvial.data.images import DataConfig
from fluvial.generate import SampleConfig
from fluvial.methods import flowar
from fluvial.train.config import TrainConfig
from fluvial.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    method: methods.Config
    """The model and its objective."""
    data: DataConfig = DataConfig()
    """The images."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """What turns images into latents."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    sample: SampleConfig = SampleConfig()
    """How samples are drawn."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, times, noise, and label drops."""

    def __post_init__(self) -> None:
        self._check_sampling()
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def _check_sampling(self) -> None:
        """Raises ValueError for sampling settings that this method would ignore."""
        sample, guidance = self.sample, self.sample.guidance
        method = self.method if isinstance(self.method, flowar.FlowARConfig) else None
        scales = len(method.maps) if method else 0
        for name, values in (("scale_steps", sample.scale_steps), ("guidance.scale_weights", guidance.scale_weights)):
            if values and len(values) != scales:
                raise ValueError(f"sample.{name} must be one for each of the method's {scales} scales, got {values}")
        if method is None and guidance.ramp != "constant":
            raise ValueError(f"sample.guidance.ramp is over scales, which this method has not, got {guidance.ramp!r}")
        if method is not None and guidance.channels is not None:
            raise ValueError(f"FlowAR guides all channels, got sample.guidance.channels {guidance.channels}")
        if sample.context_noise > 0 and not (method and method.context_noise > 0):
            raise ValueError(
                f"sample.context_noise needs a FlowAR trained with method.context_noise, got {sample.context_noise}"
            )


_converter = cattrs.Converter(forbid_extra_keys=True)
configure_tagged_union(methods.Config, _converter, tag_name="name", tag_generator=methods.name_of)


def to_json(run: Run) -> dict[str, Any]:
    """The run as plain JSON values; `method.name` says which method it is."""
    return _converter.unstructure(run)


def from_json(values: dict[str, Any]) -> Run:
    """The inverse of `to_json`. Raises ValueError that names each wrong, missing or unknown setting."""
    name = values.get("method", {}).get("name")
    if name not in methods.METHODS:
        known = ", ".join(methods.METHODS)
        raise ValueError(f"not a configuration of this version of fluvial: method.name is {name!r}, known are {known}")
    try:
        return _converter.structure(values, Run)
    except Exception as error:
        reasons = "; ".join(cattrs.transform_error(error, format_exception=_reason))
        raise ValueError(f"not a configuration of this version of fluvial: {reasons}") from error


def _reason(error: BaseException, expected: type | None) -> str:
    return str(error) if isinstance(error, ValueError) else format_exception(error, expected)


def differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, as {"train.steps": (value in a, value in b)}."""
    left, right = _flat(a), _flat(b)
    return {key: (left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    if not dataclasses.is_dataclass(value):
        return {prefix: value}
    flat = {prefix or "run": type(value).__module__}
    for field in dataclasses.fields(value):
        flat |= _flat(getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name)
    return flat
