"""Guidance: two velocity fields in, one out.

    v = v_null + weight (v_cond - v_null)

With a null (unlabelled) field of the same model this is classifier-free guidance (arXiv 2207.12598); with a smaller or
less trained model in its place it is autoguidance (arXiv 2406.02507).
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fluvial.flow.interpolant import expand
from fluvial.flow.solvers import Field, State, can_look, check_finite, is_finite
from fluvial.utils.checks import as_declared, setting


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly, when and on what the null branch is pushed away from."""

    weight: float = 1.0
    """1 is no guidance, 0 is unconditional, above 1 sharpens."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t (0 noise, 1 data) between which guidance acts, elsewhere the weight is 1 (arXiv 2404.07724)."""
    channels: int | None = setting(None, needs="guided_channels")
    """Guide only the first so many channels, the rest stay conditional; None guides all. SiT and ARFlow released 3."""

    ramp: Literal["constant", "linear"] = setting("constant", needs="scales")
    """The weight at every scale, or a linear ramp from 1 at the coarsest to it at the finest (release)."""
    scale_weights: tuple[float, ...] = setting((), needs="scales")
    """The weight of each scale, coarse to fine, in place of weight and ramp."""

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
        """Whether the null branch has no effect anywhere."""
        return all(weight == 1 for weight in self.scale_weights or (self.weight,))

    @property
    def told(self) -> str:
        """The option that says how strong it is."""
        if self.scale_weights:
            return f"sample.guidance.scale_weights {' '.join(map(str, self.scale_weights))}"
        return f"sample.guidance.weight {self.weight:g}"

    def at_scale(self, scale: int, scales: int) -> "Guidance":
        """The guidance of one scale of several, the coarsest being 0."""
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
    """The guided field; its state is the pair (conditional, null) of the branches' own states.

    The null branch is evaluated only where it has an effect: never at weight 1 or outside the interval. A branch with
    a history is an exception: what it sees before the interval opens acts on what it says inside, so it runs from the
    start until the interval closes. `evaluations`, if given, counts the calls of "conditional" and "null".

    Raises RuntimeError for a velocity that is not finite, naming the branch, t, and the `place`, such as " of scale
    4x4"; on a GPU only if `careful`, as looking waits for the device.
    """
    tally: Counter[str] = Counter() if evaluations is None else evaluations
    low, high = guidance.interval

    def look(v: Tensor, t: Tensor, **branches: Tensor) -> None:
        if (careful or can_look(v)) and not is_finite(v):
            for name, velocity in branches.items():
                check_finite(velocity, t, f"the {name} velocity{place}")
            check_finite(v, t, f"the velocity{place} under guidance of weight {guidance.weight:g}")

    def field(x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        state_c, state_n = (None, None) if state is None else state
        tally["conditional"] += 1
        v_c, next_c = conditional(x, t, state_c)
        v_c = v_c.to(x.dtype)  # the difference of two bfloat16 velocities would lose what guidance magnifies
        if guidance.weight == 1:
            look(v_c, t, conditional=v_c)
            return v_c, (next_c, state_n)
        has_history = next_c is not None
        # the whole interval needs no look at t, which on a GPU would wait for the device
        if guidance.interval != (0, 1) and not bool(((t <= high) & (has_history | (t >= low))).any()):
            look(v_c, t, conditional=v_c)
            return v_c, (next_c, state_n)
        tally["null"] += 1
        v_n, next_n = null(x, t, state_n)
        v_n = v_n.to(x.dtype)
        weight = torch.where((low <= t) & (t <= high), guidance.weight, 1.0).to(v_c.dtype)
        v = v_n + expand(weight, v_c) * (v_c - v_n)
        if guidance.channels is not None:
            v = torch.cat([v[:, : guidance.channels], v_c[:, guidance.channels :]], dim=1)
        look(v, t, conditional=v_c, null=v_n)
        return v, (next_c, next_n)

    return field
