"""Guidance: combines the velocities of a conditional and a null branch.

    v = v_null + weight (v_cond - v_null)

If v_null is the same model without a label, this is classifier-free guidance (arXiv 2207.12598); if it is a smaller or
less trained model, it is autoguidance (arXiv 2406.02507).
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fluvial.flow.interpolant import expand
from fluvial.flow.solvers import Field, State, check_finite, checks_are_free, is_finite
from fluvial.utils.checks import as_declared, setting


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Settings of guidance: its weight, the times at which and the channels on which it acts."""

    weight: float = 1.0
    """1 is no guidance, 0 is unconditional, above 1 strengthens the condition."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t (0 noise, 1 data) between which guidance acts; elsewhere the weight is 1 (arXiv 2404.07724)."""
    channels: int | None = setting(None, needs="guided_channels")
    """Number of channels that are guided, from the first; the others stay conditional. None is all, SiT's and ARFlow's
    releases use 3."""

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
            raise ValueError(
                f"guidance weight must be at least 0 (1 is no guidance), got {self.weight} {self.scale_weights}"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels must be at least 1, or None for all, got {self.channels}")

    @property
    def is_off(self) -> bool:
        """True if every weight is 1, so that the null branch has no effect."""
        return all(weight == 1 for weight in self.scale_weights or (self.weight,))

    @property
    def told(self) -> str:
        """The option that sets the weight, with its value, for messages."""
        if self.scale_weights:
            return f"sample.guidance.scale_weights {' '.join(map(str, self.scale_weights))}"
        return f"sample.guidance.weight {self.weight:g}"

    def at_scale(self, scale: int, scales: int) -> "Guidance":
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


def guided(
    conditional: Field,
    null: Field,
    guidance: Guidance,
    *,
    evaluations: Counter[str] | None = None,
    place: str = "",
    careful: bool = False,
) -> Field:
    """The guided velocity field; its state is the pair of the states of the conditional and the null branch.

    The null branch is evaluated only where it has an effect: not at weight 1 and not outside the interval. With a
    history (ARFlow) it is evaluated from the start until the interval ends, since the points before the interval
    affect its velocities inside. `evaluations`, if given, counts the calls of "conditional" and "null".

    Raises RuntimeError for a velocity that is not finite, naming the branch, t, and the `place`, such as " of scale
    4x4"; on a GPU only if `careful`, since the check synchronises with the device.
    """
    tally: Counter[str] = Counter() if evaluations is None else evaluations
    low, high = guidance.interval

    def check(v: Tensor, t: Tensor, **branches: Tensor) -> None:
        if (careful or checks_are_free(v)) and not is_finite(v):
            for name, velocity in branches.items():
                check_finite(velocity, t, f"the {name} velocity{place}")
            check_finite(v, t, f"the velocity{place} under guidance of weight {guidance.weight:g}")

    def field(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        state_c, state_n = (None, None) if state is None else state
        tally["conditional"] += 1
        v_c, next_c = conditional(x, t, state_c)
        v_c = v_c.to(x.dtype)  # guidance magnifies the rounding error of a difference of bfloat16 velocities
        if guidance.weight == 1:
            check(v_c, t, conditional=v_c)
            return v_c, (next_c, state_n)
        has_history = next_c is not None
        # for the whole interval t is not compared, which would synchronise with a GPU
        if guidance.interval != (0, 1) and not bool(((t <= high) & (has_history | (t >= low))).any()):
            check(v_c, t, conditional=v_c)
            return v_c, (next_c, state_n)
        tally["null"] += 1
        v_n, next_n = null(x, t, state_n)
        v_n = v_n.to(x.dtype)
        weight = torch.where((low <= t) & (t <= high), guidance.weight, 1.0).to(v_c.dtype)
        v = v_n + expand(weight, v_c) * (v_c - v_n)
        if guidance.channels is not None:
            v = torch.cat([v[:, : guidance.channels], v_c[:, guidance.channels :]], dim=1)
        check(v, t, conditional=v_c, null=v_n)
        return v, (next_c, next_n)

    return field
