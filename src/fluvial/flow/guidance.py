"""Guidance: combines the velocities of a conditional and a null branch.

    v = v_null + weight (v_cond - v_null)

If v_null is the same model without a label, this is classifier-free guidance (arXiv 2207.12598); if it is a smaller or
less trained model, it is autoguidance (arXiv 2406.02507). The weight may be limited to an interval (2404.07724) or grow
in t (2404.13040); the difference may be projected (APG, 2410.02416), and the result rescaled (2305.08891).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fluvial.flow.interpolant import Interpolant, data_from_velocity, expand, linear, log_snr
from fluvial.flow.solvers import Field, State, check_finite, checks_are_free, is_finite
from fluvial.utils.checks import as_declared, setting

G = TypeVar("G", bound="GuidanceWeight")
TOGETHER = 256  # tokens of a batch
DATA_SHARE = 1e-3  # of the velocity in the predicted data, at least: it is 0 at t = 1


@dataclass(frozen=True, kw_only=True)
class GuidanceWeight:
    """The weight of guidance over times and scales."""

    weight: float = 1.0
    """1 is no guidance, 0 is unconditional, above 1 strengthens the condition."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t (0 noise, 1 data) between which guidance acts; elsewhere the weight is 1 (arXiv 2404.07724)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The weight over t: the same, or growing from 1 at noise to 2 weight - 1 at data, linearly or as 1 - cos(pi t)
    (arXiv 2404.13040)."""
    ramp: Literal["constant", "linear"] = setting("constant", needs="scales")
    """The same weight at every scale, or a linear ramp from 1 at the coarsest scale to `weight` at the finest
    (release)."""
    scale_weights: tuple[float, ...] = setting((), needs="scales")
    """One weight per scale, coarse to fine, in place of weight and ramp."""

    def __post_init__(self) -> None:
        as_declared(self)
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval must be two ascending times inside [0, 1], got {self.interval}")
        if min(self.weight, *self.scale_weights, 0.0) < 0:
            got = " ".join(map(str, (self.weight, *self.scale_weights)))
            raise ValueError(f"guidance weight must be at least 0 (1 is no guidance), got {got}")

    @property
    def is_off(self) -> bool:
        """True if every weight is 1, so that the null branch has no effect."""
        return all(weight == 1 for weight in self.scale_weights or (self.weight,))

    def weight_at(self, t: Tensor) -> Tensor:
        """The weight at times t inside the interval, shaped like t."""
        match self.schedule:
            case "constant":
                return torch.full_like(t, self.weight)
            case "linear":
                return 1 + (self.weight - 1) * 2 * t
            case "cosine":
                return 1 + (self.weight - 1) * (1 - torch.cos(math.pi * t))

    @property
    def told(self) -> str:
        """The setting that decides on the weight, with its value, for messages."""
        if self.scale_weights:
            return f"guidance.scale_weights {' '.join(map(str, self.scale_weights))}"
        return f"guidance.weight {self.weight:g}"

    @property
    def by_scale(self) -> bool:
        """True if the scales have weights of their own."""
        return self.ramp != "constant" or bool(self.scale_weights)

    def at_scale(self: G, scale: int, scales: int) -> G:
        """The guidance of scale number `scale` (0 is the coarsest) out of `scales`: its weight, without a ramp.

        Raises ValueError if scale_weights has not one weight per scale.
        """
        weight = self.weight
        if self.scale_weights:
            if len(self.scale_weights) != scales:
                raise ValueError(f"{scales} scales need {scales} guidance weights, got {self.scale_weights}")
            weight = self.scale_weights[scale]
        elif self.ramp == "linear" and scales > 1:
            weight = 1 + (self.weight - 1) * scale / (scales - 1)
        return replace(self, weight=weight, ramp="constant", scale_weights=())


@dataclass(frozen=True, kw_only=True)
class Guidance(GuidanceWeight):
    """Settings of guidance in sampling: its weight, and what becomes of the difference of both branches."""

    log_snr: tuple[float, float] | None = None
    """An interval in the logarithm of the signal-to-noise ratio alpha^2 / sigma^2, in place of times."""
    rescale: float = 0.0
    """Share in which the guided velocity is rescaled to the standard deviation of the conditional one, from 0 (off) to
    1 (arXiv 2305.08891)."""
    parallel: float = 1.0
    """Factor on the part of guidance that is parallel to the predicted data; below 1 images saturate less (APG,
    arXiv 2410.02416)."""
    norm: float = 0.0
    """Largest L2 norm of the difference of both predictions of the data, for each image; 0 is no limit (APG)."""
    momentum: float = 0.0
    """Factor on the running sum of these differences over the steps; APG takes about -0.5."""
    channels: int | None = setting(None, needs="guided_channels")
    """Number of channels that are guided, from the first; the others stay conditional. None is all, SiT's and ARFlow's
    releases use 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_snr is not None:
            if self.interval != (0, 1):
                raise ValueError(f"give the interval in t or in log_snr, got {self.interval} and {self.log_snr}")
            if not self.log_snr[0] <= self.log_snr[1]:
                raise ValueError(f"guidance log_snr must be two ascending numbers, got {self.log_snr}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale must be from 0 (off) to 1, got {self.rescale}")
        if self.parallel < 0 or self.norm < 0 or not -1 < self.momentum < 1:
            raise ValueError(
                f"guidance parallel and norm must be at least 0, momentum between -1 and 1, "
                f"got {self.parallel}, {self.norm} and {self.momentum}"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels must be at least 1, or None for all, got {self.channels}")

    @property
    def projects(self) -> bool:
        """True if the difference of both branches is changed before it is added (APG)."""
        return (self.parallel, self.norm, self.momentum) != (1.0, 0.0, 0.0)


def guided(
    conditional: Field,
    null: Field,
    guidance: Guidance,
    *,
    both: Field | None = None,
    interpolant: Interpolant = linear,
    evaluations: Counter[str] | None = None,
    place: str = "",
    careful: bool = False,
) -> Field:
    """The guided velocity field; its state is the pair of the states of the conditional and the null branch.

    `both`, if given, evaluates the two branches at once, on the rows of one after those of the other; see `together`.
    With momentum the running sum of differences is the third of its state. The null branch is evaluated only where it
    has an effect: not at weight 1 and not outside the interval. With a history (ARFlow) it is evaluated from the start
    until the interval ends, since the points before the interval affect its velocities inside. `evaluations`, if given,
    counts the calls of "conditional" and "null".

    Raises RuntimeError for a velocity that is not finite, naming the branch, t, and the `place`, such as " of scale
    4x4"; on a GPU only if `careful`, since the check synchronises with the device.
    """
    tally: Counter[str] = Counter() if evaluations is None else evaluations
    low, high = guidance.log_snr or guidance.interval
    everywhere = guidance.log_snr is None and guidance.interval == (0, 1)

    def check(v: Tensor, t: Tensor, **branches: Tensor) -> None:
        if (careful or checks_are_free(v)) and not is_finite(v):
            for name, velocity in branches.items():
                check_finite(velocity, t, f"the {name} velocity{place}")
            check_finite(v, t, f"the velocity{place} under guidance of weight {guidance.weight:g}")

    def field(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        state_c, state_n, *rest = (None, None) if state is None else state
        tally["conditional"] += 1
        at = t if guidance.log_snr is None else log_snr(interpolant, t)
        if both is not None and everywhere and guidance.weight != 1:
            (v_c, v_n), (next_c, next_n) = _at_once(both, x, t, state_c, state_n)
            v_c = v_c.to(x.dtype)  # guidance magnifies the rounding error of a difference of bfloat16 velocities
        else:
            v_c, next_c = conditional(x, t, state_c)
            v_c, has_history = v_c.to(x.dtype), next_c is not None
            # for the whole interval t is not compared, which would synchronise with a GPU
            if guidance.weight == 1 or not (everywhere or bool(((at <= high) & (has_history | (at >= low))).any())):
                check(v_c, t, conditional=v_c)
                return v_c, (next_c, state_n, *rest)
            v_n, next_n = null(x, t, state_n)
        tally["null"] += 1
        v_n = v_n.to(x.dtype)
        weight = expand(torch.where((low <= at) & (at <= high), guidance.weight_at(t), 1.0).to(v_c.dtype), v_c)
        if guidance.projects:
            difference, total = projected(guidance, interpolant, v_c, v_n, x, t, rest[0] if rest else None)
            v = v_c + (weight - 1) * difference
            rest = [total] if guidance.momentum else []
        else:
            v = v_n + weight * (v_c - v_n)
        if guidance.rescale:
            v = rescaled(v, v_c, guidance.rescale)
        if guidance.channels is not None:
            v = torch.cat([v[:, : guidance.channels], v_c[:, guidance.channels :]], dim=1)
        check(v, t, conditional=v_c, null=v_n)
        return v, (next_c, next_n, *rest)

    return field


def together(model: object, rows: int, tokens: int) -> bool:
    """True if a network is so little busy with these rows of tokens that twice as many take about as long.

    Not of a model that remembers evaluations (`sampling/remember.py`), which each branch shares with other samples.
    Measured on CPUs with AVX2 and AVX-512, see docs/speed.md.
    """
    return rows * tokens <= TOGETHER and not getattr(model, "remembers", False)


def labels_of_both(model: object, labels: Tensor | None, null: int, tokens: int) -> Tensor | None:
    """The labels of the conditional branch and the null ids of the other, if one evaluation is to make both; else None.

    Images have this many tokens. Without labels the branches are one, and mixed classes are no ids.
    """
    if labels is None or labels.is_floating_point() or not together(model, len(labels), tokens):
        return None
    return torch.cat([labels, torch.full_like(labels, null)])


def _at_once(
    both: Field, x: Tensor, t: Tensor, state_c: State, state_n: State
) -> tuple[tuple[Tensor, ...], tuple[State, State]]:
    """The velocities and the states of two branches, of one evaluation."""
    count = len(x)
    v, state = both(torch.cat([x, x]), torch.cat([t, t]), joined(state_c, state_n))
    return v.split(count), (_each(lambda of: of[0][:count], state), _each(lambda of: of[0][count:], state))


def joined(first: State, second: State) -> State:
    """The rows of one state after those of another: tensors, tuples of such, or None."""
    return _each(lambda of: torch.cat([*of]), first, second)


def _each(change: Callable[[Sequence[Tensor]], Tensor], *states: State) -> State:
    """The states, which are tensors, tuples of such, or None, as one: `change` makes a tensor of those in a place."""
    first = states[0]
    if first is None or isinstance(first, Tensor):
        return None if first is None else change(states)
    parts = [_each(change, *those) for those in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def projected(
    guidance: Guidance,
    interpolant: Interpolant,
    v_cond: Tensor,
    v_null: Tensor,
    x: Tensor,
    t: Tensor,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The difference of both branches as APG adds it to the velocity, and the running sum of differences.

    Both are taken between predictions of the data, where the sum `total` of earlier steps is added with the momentum,
    the norm is limited for each image, and the part parallel to the conditional prediction is scaled.

    Source: arXiv 2410.02416, algorithm 1.
    """
    c = interpolant(expand(t, x))
    share = (c.sigma / (c.d_alpha * c.sigma - c.alpha * c.d_sigma)).clamp(min=DATA_SHARE)  # of v in the data
    total = share * (v_cond - v_null) + (0 if total is None else guidance.momentum * total)
    difference = total
    if guidance.norm:
        length = difference.flatten(1).norm(dim=1)
        difference = difference * expand((guidance.norm / length).clamp(max=1), difference)
    data = data_from_velocity(interpolant, v_cond, x, t).flatten(1)
    direction = data / data.norm(dim=1, keepdim=True).clamp(min=1e-12)
    along = (difference.flatten(1) * direction).sum(1, keepdim=True) * direction
    return (difference - (1 - guidance.parallel) * along.view_as(x)) / share, total


def rescaled(v: Tensor, v_cond: Tensor, share: float) -> Tensor:
    """The guided velocity with the standard deviation of the conditional one, for each image, mixed in by `share`.

    Source: arXiv 2305.08891, equations 15 and 16, of which the model's output here is a velocity.
    """
    std, wanted = (expand(of.flatten(1).std(dim=1), v) for of in (v, v_cond))
    return (share * wanted / std.clamp(min=1e-12) + (1 - share)) * v
