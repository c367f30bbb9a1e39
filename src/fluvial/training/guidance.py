"""Guidance in the loss: a model learns its own guided velocity, and then samples without a null branch.

    target = u_t + (1 - 1 / weight) sg(v - v_null)

u_t is the velocity of the path, v and v_null are the model's with the label and without, sg is no gradient. Where the
error is least, v = v_null + weight (u_t - v_null) in the mean: the velocity of guidance with this weight. For examples
whose label is dropped v is v_null, so that the null branch is learned as ever.

Source: arXiv 2502.12154, with 1 - 1 / weight for its w.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluvial.flow.guidance import GuidanceWeight
from fluvial.flow.interpolant import expand
from fluvial.methods.method import with_functions
from fluvial.training.distributed import unwrapped


def with_guidance(method: Any, guidance: GuidanceWeight) -> Any:  # noqa: ANN401 - a method's module, or one like it
    """The method with guidance in its errors, and all else its own; the method itself if guidance is off."""
    if guidance.is_off:
        return method

    def errors(model: nn.Module, latents: Tensor, labels: Tensor | None, draws: Any) -> Float[Tensor, "b parts"]:  # noqa: ANN401
        return method.errors(_TowardsGuidance(model, guidance), latents, labels, draws)

    return with_functions(method, errors=errors)


class _TowardsGuidance(nn.Module):
    """The model's velocity less the part of guidance in the target, which moves the target without a look at it.

    |v - share sg(v - v_null) - u_t|^2 is the error against the target u_t + share sg(v - v_null), with its gradient.
    """

    def __init__(self, model: nn.Module, guidance: GuidanceWeight) -> None:
        super().__init__()
        self.model, self.guidance = model, guidance
        self.config: Any = model.config
        self.training = model.training

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None, *rest: Any) -> Any:  # noqa: ANN401
        inner: Any = unwrapped(self.model)
        with torch.no_grad():  # first, so that the pass with a gradient is the last before it is taken
            null = _velocity(inner(x_t, t, None, *rest))
        out = self.model(x_t, t, labels, *rest)
        v = _velocity(out)
        spread = getattr(inner, "of_parts", None)
        share = share_of(self.guidance, t)
        share = expand(share, v) if spread is None else spread(share)
        v = v - share * (v.detach() - null).to(share.dtype)
        return (v, *out[1:]) if isinstance(out, tuple) else v


def share_of(guidance: GuidanceWeight, t: Float[Tensor, "b *parts"]) -> Float[Tensor, "b *parts"]:
    """1 - 1 / weight at times t of an image, or of each image or scale; 0 outside the interval.

    With a ramp, or a weight for each scale, the second axis are the scales, coarse to fine.
    """
    low, high = guidance.interval
    if guidance.by_scale:
        count = t.shape[1]
        each = [guidance.at_scale(i, count).weight_at(t[:, i]) for i in range(count)]
        weight = torch.stack(each, dim=1)
    else:
        weight = guidance.weight_at(t)
    return torch.where((low <= t) & (t <= high), 1 - 1 / weight, 0.0)


def _velocity(out: Any) -> Tensor:  # noqa: ANN401
    """The velocity of a model that may return a history beside it."""
    return out[0] if isinstance(out, tuple) else out
