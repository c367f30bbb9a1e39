"""Run: everything that defines a training run, as one frozen value, and its JSON."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast, get_args

import cattrs
from cattrs.v import format_exception

from fluvial import methods
from fluvial.autoencoders import AutoencoderConfig
from fluvial.data.images import DataConfig
from fluvial.flow.solvers import SolverName
from fluvial.methods.method import Distillable
from fluvial.sampling.settings import SOLVERS, AnySolver, SampleConfig, SolverConfig
from fluvial.training.config import TrainConfig
from fluvial.training.distillation import following
from fluvial.training.guidance import with_guidance
from fluvial.training.optim import OptimConfig
from fluvial.utils.checks import MANY, as_declared, at_most, misfit, setting
from fluvial.utils.run_format import upgraded

NEEDS = {
    "scales": "a method with scales",
    "guided_channels": "a method that can guide some of the channels",
    "history": "a method with a history (arflow)",
    "context_noise": "a method trained with method.context_noise",
    "steps": "a solver that does not choose its own steps",
}
"""What settings of sampling need to do something (`needs` in their metadata), in words."""


@dataclass(frozen=True, kw_only=True)
class Run:
    method: methods.Config
    """The model and its objective."""
    data: DataConfig = DataConfig()
    """The images."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The autoencoder between images and latents."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    sample: SampleConfig = setting(SampleConfig(), changeable=True)
    """The settings of sampling."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, times, noise, and label drops."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_most(MANY, self.method, "classes")
        self._check_parts()
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    def images_per_step(self) -> int:
        """Images in the batch of one training step."""
        return self.train.batch * (self.method.images_per_sequence or 1)

    @property
    def objective(self) -> Any:  # noqa: ANN401 - a method's module, or one like it
        """The run's method with what it learns besides: guidance in its errors, or trajectories in place of images."""
        method, known = methods.method_of(self.method), self.train.distillation
        if known.images:
            raise ValueError(f"the model was distilled {known.told}: a training step of it needs its teacher")
        if known.steps:
            return following(cast(Distillable, method), known.steps)
        return with_guidance(method, self.train.guidance)

    @property
    def unmet(self) -> set[str]:
        """The names in NEEDS of what this run has not, so that the settings that need it do nothing."""
        method = self.method
        has = {
            "scales": len(methods.method_of(method).scales(method)) > 0,
            "guided_channels": method.guides_channels,
            "history": method.images_per_sequence is not None,
            "context_noise": method.context_noise > 0,
            "steps": not self.sample.solver_settings.is_adaptive,
        }
        return {name for name in NEEDS if not has[name]}

    def _check_parts(self) -> None:
        """Raises ValueError for settings of sampling and guidance that this method would ignore."""
        sample, method = self.sample, self.method
        unmet = self.unmet - {"steps"}  # which stay as they are when another solver is tried
        guidances = {"sample.guidance": sample.guidance, "train.guidance": self.train.guidance}
        for prefix, part in {"sample": sample, **guidances}.items():
            for field in dataclasses.fields(part):
                value, need = getattr(part, field.name), field.metadata.get("needs")
                if need in unmet and value != field.default:
                    raise ValueError(f"{prefix}.{field.name} needs {NEEDS[need]}, got {value!r}")
        scales = len(methods.method_of(method).scales(method))
        weights = {f"{name}.scale_weights": guidance.scale_weights or 0 for name, guidance in guidances.items()}
        for name, values in {"sample.steps": sample.steps, **weights}.items():
            if isinstance(values, tuple) and len(values) != scales:
                expected = f"one for each of the method's {scales} scales" if scales else "one number, without scales"
                raise ValueError(f"{name} must be {expected}, got {values}")
        learned = self.train.guidance
        if not learned.is_off and not (method.classes and method.label_drop):
            raise ValueError(
                f"guidance is learned from labels, some of which are dropped: got train.{learned.told}, "
                f"method.classes {method.classes} and method.label_drop {method.label_drop:g}"
            )

    def check_guidance(self) -> None:
        """Raises ValueError for guidance that the model has no null branch or not enough channels for.

        This is for who is about to sample: a run may say so, as long as nothing is drawn from it. Without classes
        there is one branch only, and guidance changes nothing.
        """
        guidance, method = self.sample.guidance, self.method
        self.check_learned()
        if guidance.is_off or not method.classes:
            return
        if not method.label_drop:
            raise ValueError(
                f"guidance needs a model that was trained without labels too: got method.label_drop 0 and "
                f"sample.{guidance.told}; set sample.guidance.weight 1, or train with method.label_drop 0.1"
            )
        if guidance.channels is not None and guidance.channels > method.channels:
            raise ValueError(
                f"sample.guidance.channels must be at most the model's {method.channels} channels, "
                f"got {guidance.channels}; None guides all"
            )

    def check_learned(self) -> None:
        """Raises ValueError for sampling that leaves what the model has learned: its guidance, or its steps.

        Guidance by whatever branch, over guidance that is in the weights, is one; so are other steps than those of a
        model that was distilled.
        """
        sample, learned, steps = self.sample, self.train.guidance, self.train.distillation.steps
        if steps and not sample.guidance.is_off:
            raise ValueError(
                f"the model has its teacher's guidance, as it was distilled, and is sampled without: "
                f"got sample.{sample.guidance.told}; set sample.guidance.weight 1, or distill with other guidance"
            )
        if not sample.guidance.is_off and not learned.is_off:
            raise ValueError(
                f"the model has learned guidance (train.{learned.told}) and is sampled without: "
                f"got sample.{sample.guidance.told}; set sample.guidance.weight 1"
            )
        if not steps:
            return
        asked = {"solver": sample.solver_settings.name}
        asked |= {name: getattr(sample, name) for name in ("grid", "shift", "history", "context_noise")}
        own = {"solver": "euler", "grid": "uniform", "shift": 1, "history": None, "context_noise": 0}
        if others := [f"sample.{name} {got}" for name, got in asked.items() if got != own[name]]:
            raise ValueError(
                f"the model was distilled to equal steps of euler, with all of its history and no context noise: got "
                f"{' and '.join(others)}"
            )
        if set(sample.each_steps) != {steps}:
            raise ValueError(
                f"the model was distilled to {steps} step{'s' if steps > 1 else ''} and is sampled in as many: got "
                f"sample.steps {' '.join(map(str, sample.each_steps))}; distill its teacher again for another number"
            )

    def check_trained_on_images(self) -> None:
        """Raises ValueError for a model that was distilled, which `fluvial distill` trains."""
        known = self.train.distillation
        if known.steps and not known.teacher:
            raise ValueError(
                "train.distillation is set by `fluvial distill`, which takes a run to distill; leave it out"
            )
        if known.steps:
            raise ValueError(
                f"the model was distilled ({known.told}): `fluvial distill` trains it, and goes on where it stopped; "
                f"to train on, take its teacher"
            )

    def check_ode(self) -> None:
        """Raises ValueError if samples follow no ODE: a model that was distilled has the slopes of its jumps."""
        if self.train.distillation.steps:
            raise ValueError(
                f"the model was distilled ({self.train.distillation.told}): its velocities are the slopes of its steps "
                f"and make no ODE that could be followed otherwise; take its teacher"
            )

    def sampled_with(self, sample: SampleConfig) -> "Run":
        """This run with other sampling settings. Raises ValueError for those that it cannot follow, naming them."""
        run = replace(self, sample=sample)
        run.check_guidance()
        asked = sample.guidance
        if not self.method.classes and not asked.is_off and asked != self.sample.guidance:
            raise ValueError(
                f"guidance needs a model with classes: got method.classes 0 and sample.{asked.told}; "
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
_converter.register_structure_hook_func(
    lambda kind: not is_dataclass(kind) and kind is not methods.Config and kind != AnySolver, _plain
)


def _method(value: Any, kind: Any) -> methods.Config:  # noqa: ANN401
    """The settings of a method from their JSON, of the Config of the method that `name` says."""
    settings = {key: setting for key, setting in value.items() if key != "name"}
    return _converter.structure(settings, methods.METHODS[value["name"]].Config)


def _method_to_json(config: methods.Config) -> dict[str, Any]:
    return {**_converter.unstructure(config), "name": methods.name_of(type(config))}


# looked up at every call: methods may be registered later
_converter.register_structure_hook_func(lambda kind: kind is methods.Config, _method)
_converter.register_unstructure_hook_func(lambda kind: kind is methods.Config, _method_to_json)


@dataclass(frozen=True)
class _Named:
    name: SolverName


def _solver(value: Any, kind: Any) -> SolverConfig:  # noqa: ANN401
    """A solver from its JSON: its name, or an object with its name and its settings."""
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise ValueError(f"must be one of {', '.join(SOLVERS)}, or an object with the name and settings of one")
    name = _converter.structure({"name": value.get("name")}, _Named).name
    return _converter.structure({key: value for key, value in value.items() if key != "name"}, SOLVERS[name])


_converter.register_structure_hook(AnySolver, _solver)
_converter.register_unstructure_hook(AnySolver, lambda solver: {"name": solver.name, **dataclasses.asdict(solver)})


class WrongSettings(ValueError):
    """Settings that make no run."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(f"not a configuration of this version of fluvial: {'; '.join(reasons)}")
        self.reasons = tuple(reasons)
        """One for each wrong setting, most of them as "train.steps: must be a whole number, got 1.5"."""


def to_json(run: Run) -> dict[str, Any]:
    """The run as plain JSON values; `method.name` says which method it is."""
    return _converter.unstructure(run)


def from_json(values: Any) -> Run:  # noqa: ANN401 - whatever a file holds
    """The inverse of `to_json`. Raises WrongSettings that names each wrong, missing or unknown setting.

    What version 0.1.0 wrote is read as well. Nothing is converted: text is no number, a truth value neither, and
    numbers are finite.
    """
    method = values.get("method") if isinstance(values, dict) else None
    name = method.get("name") if isinstance(method, dict) else None
    try:
        methods.check_known(name)
    except ValueError as error:
        raise WrongSettings([str(error)]) from error
    try:
        return _converter.structure(upgraded(values), Run)
    except Exception as error:
        reasons = map(_by_name, cattrs.transform_error(error, format_exception=_reason))
        raise WrongSettings(list(reasons)) from error


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
    return _unlike(_flat(a), _flat(b))


def fixed_differences(there: Run, here: Run) -> dict[str, tuple[Any, Any]]:
    """The differences that make another run of it: those of settings that may not change when a run goes on."""
    return _unlike(_flat(there, fixed=True), _flat(here, fixed=True))


def _unlike(left: dict[str, Any], right: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)}


def _flat(value: Any, prefix: str = "", *, fixed: bool = False) -> dict[str, Any]:  # noqa: ANN401
    """The settings by their path; `fixed` leaves out those that may change when a run goes on."""
    if not is_dataclass(value):
        return {prefix: value}
    flat = {prefix or "run": f"{type(value).__module__}.{type(value).__qualname__}"}
    for field in dataclasses.fields(value):
        if not (fixed and field.metadata.get("changeable")):
            name = f"{prefix}.{field.name}" if prefix else field.name
            flat |= _flat(getattr(value, field.name), name, fixed=fixed)
    return flat
