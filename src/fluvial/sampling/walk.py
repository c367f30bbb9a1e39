"""Ways between noises and between classes: on the sphere, where all points are as likely noise as the ends."""

import torch
from jaxtyping import Float
from torch import Tensor


def slerp(start: Float[Tensor, "..."], end: Float[Tensor, "..."], shares: Float[Tensor, "k"]) -> Float[Tensor, "k ..."]:
    """Points between two noises, each taken as one vector: along the arc between them, with lengths in between.

    Share 0 is exactly the start, and 1 the end. Points in opposite directions have no arc: those are taken straight.
    """
    return arcs(start[None], end[None], shares)[0]


def arcs(
    starts: Float[Tensor, "n ..."], ends: Float[Tensor, "n ..."], shares: Float[Tensor, "k"]
) -> Float[Tensor, "n k ..."]:
    """The points of `slerp` for n pairs of noises."""
    a, b, s = starts.flatten(1).double(), ends.flatten(1).double(), shares.double()
    lengths = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    cosine = (a * b).sum(1, keepdim=True) / (lengths[0] * lengths[1])
    angle = torch.arccos(cosine.clamp(-1, 1))
    no_arc = angle.sin() <= 1e-6
    sine = torch.where(no_arc, 1.0, angle.sin())
    weights = [torch.where(no_arc, way, (way * angle).sin() / sine) for way in (1 - s, s)]
    length = torch.lerp(*lengths, s)
    ways = [(weight * length / own)[..., None] for weight, own in zip(weights, lengths, strict=True)]
    found = ways[0] * a[:, None] + ways[1] * b[:, None]
    return found.to(starts.dtype).unflatten(2, starts.shape[1:])


def plane(corners: Float[Tensor, "4 ..."], side: int) -> Float[Tensor, "n ..."]:
    """side x side points between four noises, row by row from the first two corners down to the last two."""
    shares = torch.linspace(0, 1, side)
    left, right = slerp(corners[0], corners[2], shares), slerp(corners[1], corners[3], shares)
    return torch.cat([slerp(a, b, shares) for a, b in zip(left, right, strict=True)])


def lerp(start: Float[Tensor, "d"], end: Float[Tensor, "d"], shares: Float[Tensor, "k"]) -> Float[Tensor, "k d"]:
    """Weights of classes between two."""
    return torch.lerp(start, end, shares[:, None])


def plane_of_classes(corners: Float[Tensor, "4 d"], side: int) -> Float[Tensor, "n d"]:
    """Weights of classes for the points of `plane`."""
    shares = torch.linspace(0, 1, side)
    left, right = lerp(corners[0], corners[2], shares), lerp(corners[1], corners[3], shares)
    return torch.cat([lerp(a, b, shares) for a, b in zip(left, right, strict=True)])
