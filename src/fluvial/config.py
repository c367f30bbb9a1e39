"""Run: everything that defines a training run, as one frozen value, and its JSON."""

import dataclasses
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, get_args

import cattrs
from cattrs.v import format_exception

from fluvial import methods
from fluvial.autoencoders import AutoencoderConfig
from fluvial.data.images import DataConfig
from fluvial.sampling.settings import SampleConfig
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig
from fluvial.utils.checks import MANY, as_declared, at_most, misfit


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
        as_declared(self)
        at_most(MANY, self.method, "classes")
        self._check_sampling()
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def _check_sampling(self) -> None:
        """Raises ValueError for sampling settings that this method would ignore."""
        sample, guidance, method = self.sample, self.sample.guidance, self.method
        scales = len(methods.method_of(method).scales(method))
        for name, values in (("scale_steps", sample.scale_steps), ("guidance.scale_weights", guidance.scale_weights)):
            if values and len(values) != scales:
                raise ValueError(f"sample.{name} must be one for each of the method's {scales} scales, got {values}")
        if not scales and guidance.ramp != "constant":
            raise ValueError(f"sample.guidance.ramp is over scales, which this method has not, got {guidance.ramp!r}")
        if guidance.channels is not None and not method.guides_channels:
            raise ValueError(f"this method guides all channels, got sample.guidance.channels {guidance.channels}")
        if sample.context_noise > 0 and not method.context_noise:
            raise ValueError(
                f"sample.context_noise needs a method trained with method.context_noise, got {sample.context_noise}"
            )

    def check_guidance(self) -> None:
        """Raises ValueError for guidance that the model has no null branch or not enough channels for.

        This is for who is about to sample: a run may say so, as long as nothing is drawn from it. Without classes
        there is one branch only, and guidance changes nothing.
        """
        guidance, method = self.sample.guidance, self.method
        if guidance.is_off or not method.classes:
            return
        if not method.label_drop:
            raise ValueError(
                f"guidance needs a model that was trained without labels too: got method.label_drop 0 and "
                f"{guidance.told}; set sample.guidance.weight 1, or train with method.label_drop 0.1"
            )
        if guidance.channels is not None and guidance.channels > method.channels:
            raise ValueError(
                f"sample.guidance.channels must be at most the model's {method.channels} channels, "
                f"got {guidance.channels}; None guides all"
            )

    def sampled_with(self, sample: SampleConfig) -> "Run":
        """This run with other sampling settings. Raises ValueError for those that it cannot follow, naming them."""
        run = replace(self, sample=sample)
        run.check_guidance()
        asked = sample.guidance
        if not self.method.classes and not asked.is_off and asked != self.sample.guidance:
            raise ValueError(
                f"guidance needs a model with classes: got method.classes 0 and {asked.told}; "
                f"set sample.guidance.weight 1"
            )
        return run


def _plain(value: Any, kind: Any) -> Any:  # noqa: ANN401
    """A setting that is no configuration itself, from its JSON value. Raises ValueError for one of another type."""
    if wrong := misfit(value, kind):
        raise ValueError(wrong)
    if isinstance(value, list):
        return tuple(float(v) if float in get_args(kind) else v for v in value)
    return float(value) if kind is float else value


_converter = cattrs.Converter(forbid_extra_keys=True)
for _kind in (int, float, bool, str):  # cattrs alone would take "3" for 3, and "no" for True
    _converter.register_structure_hook(_kind, _plain)
_converter.register_structure_hook_func(lambda kind: not is_dataclass(kind) and kind is not methods.Config, _plain)


def _method(value: Any, kind: Any) -> methods.Config:  # noqa: ANN401
    """The settings of a method from their JSON, of the Config of the method that `name` says."""
    settings = {key: setting for key, setting in value.items() if key != "name"}
    return _converter.structure(settings, methods.METHODS[value["name"]].Config)


def _method_to_json(config: methods.Config) -> dict[str, Any]:
    return {**_converter.unstructure(config), "name": methods.name_of(type(config))}


# looked up at every call: methods may be registered later
_converter.register_structure_hook_func(lambda kind: kind is methods.Config, _method)
_converter.register_unstructure_hook_func(lambda kind: kind is methods.Config, _method_to_json)


def to_json(run: Run) -> dict[str, Any]:
    """The run as plain JSON values; `method.name` says which method it is."""
    return _converter.unstructure(run)


def from_json(values: Any) -> Run:  # noqa: ANN401 - whatever a file holds
    """The inverse of `to_json`. Raises ValueError that names each wrong, missing or unknown setting.

    Nothing is converted: text is no number, a truth value neither, and numbers are finite.
    """
    method = values.get("method") if isinstance(values, dict) else None
    name = method.get("name") if isinstance(method, dict) else None
    try:
        methods.check_known(name)
    except ValueError as error:
        raise ValueError(f"not a configuration of this version of fluvial: {error}") from error
    try:
        return _converter.structure(values, Run)
    except Exception as error:
        reasons = "; ".join(map(_by_name, cattrs.transform_error(error, format_exception=_reason)))
        raise ValueError(f"not a configuration of this version of fluvial: {reasons}") from error


def _reason(error: BaseException, expected: Any) -> str:  # noqa: ANN401
    if isinstance(error, ValueError):
        return str(error)
    if is_dataclass(expected) or expected is methods.Config:
        return "must be an object with the settings of this part"
    return format_exception(error, expected)


def _by_name(reason: str) -> str:
    """cattrs' "must be finite @ $.optim.lr" as "optim.lr: must be finite"."""
    text, _, path = reason.rpartition(" @ $")
    return f"{path.removeprefix('.')}: {text}" if path else text


def differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, as {"train.steps": (value in a, value in b)}."""
    left, right = _flat(a), _flat(b)
    return {key: (left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    if not dataclasses.is_dataclass(value):
        return {prefix: value}
    flat = {prefix or "run": f"{type(value).__module__}.{type(value).__qualname__}"}
    for field in dataclasses.fields(value):
        flat |= _flat(getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name)
    return flat
