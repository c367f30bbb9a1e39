"""Times of the library's implementations compared with alternatives, measured in turns in one process.

    python benchmarks/twins.py [--only NAME ...] [--device DEVICE] [--repeats 7] [--tiny]

Prints the time of each alternative over the library's: above 1, the library is faster. The shapes are those of
`make bench`: ARFlow-S/2 at 128 pixels, and FlowAR of width 256 on maps of 1 to 16 x 16 tokens.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from ablation import quartiles
from memory import markdown
from torch import Tensor
from torch.nn import functional as F

from fluvial.flow.guidance import together
from fluvial.methods import arflow, flowar
from fluvial.nn.functional import dropout, softmax_attention
from fluvial.nn.scales import attend
from fluvial.tools import bench, timing
from fluvial.training import ema
from fluvial.training.optim import OptimConfig, adamw, clip_gradients

MAPS = (1, 4, 16, 64, 256)  # tokens of FlowAR's scales
Call = Callable[[], Any]


class Pair(NamedTuple):
    """Two functions with the same result: the library's and an alternative."""

    name: str
    library: str
    ours: Call
    other: str
    theirs: Call


def attention(device: str, tiny: bool) -> Iterator[Pair]:
    """Softmax attention in a compiled graph: the library's and PyTorch's SDPA."""
    for name, shape in (("ARFlow, 80 images of 64 tokens", (80, 6, 64, 64)), ("256 tokens", (32, 4, 256, 64))):
        q, k, v = _leaves((2, *shape[1:]) if tiny else shape, device)
        plain = F.scaled_dot_product_attention
        for what, ours, theirs in _both_ways(softmax_attention, plain, (q, k, v)):
            yield Pair(f"attention, {name}, {what}", "softmax_attention", ours, "SDPA", theirs)


def packed(device: str, tiny: bool) -> Iterator[Pair]:
    """FlowAR's attention over packed scales: scale by scale, or at once with a mask (on a GPU also a block mask)."""
    sizes = MAPS[:3] if tiny else MAPS
    tokens = _leaves((2 if tiny else 32, 4, sum(sizes), 64), device)
    for causal in (True, False):
        name = "causal scales" if causal else "each scale to itself"
        ours = partial(attend, sizes=sizes, causal=causal)
        mask = scale_mask(sizes, causal=causal, device=device)
        for what, a, b in _both_ways(ours, partial(F.scaled_dot_product_attention, attn_mask=mask), tokens):
            yield Pair(f"packed scales, {name}, {what}", "scale by scale", a, "SDPA with a boolean mask", b)
        for what, a, b in _both_ways(ours, partial(masked, mask=mask), tokens):
            yield Pair(f"packed scales, {name}, {what}", "scale by scale", a, "masked, written out", b)
        if device == "cuda":  # on a CPU it has no backward
            for what, a, b in _both_ways(ours, flex(sizes, causal=causal, device=device), tokens):
                yield Pair(f"packed scales, {name}, {what}", "scale by scale", a, "FlexAttention", b)


def draws(device: str, tiny: bool) -> Iterator[Pair]:
    """Dropout in a compiled graph: by a hash, or by Inductor."""
    (x,) = _leaves((64, 64) if tiny else (32 * 341, 1024), device, 1)
    for what, ours, theirs in _both_ways(partial(dropout, p=0.1), partial(F.dropout, p=0.1), (x,)):
        yield Pair(f"dropout, {what}", "dropout", ours, "F.dropout", theirs)


def updates(device: str, tiny: bool) -> Iterator[Pair]:
    """AdamW, EMA and clipping of ARFlow-S/2's parameters: fused or foreach, and tensor by tensor."""
    model = arflow.ARFlow(arflow.preset("S/2", size=(16, 16), **({"depth": 1} if tiny else {}))).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    loop = torch.optim.AdamW(model.parameters(), foreach=False)
    yield Pair("AdamW", "fused", adamw(model, OptimConfig()).step, "tensor by tensor", loop.step)
    average = ema.start(model, ["ema"])["ema"]

    @torch.no_grad()
    def lerp() -> None:
        for a, p in zip(average, model.parameters(), strict=True):
            a.lerp_(p, 0.001)

    yield Pair("moving average", "foreach", partial(ema.update, average, model, 0.999), "tensor by tensor", lerp)
    parameters, config = list(model.parameters()), OptimConfig(clip="norm", clip_at=1.0)
    plain = partial(torch.nn.utils.clip_grad_norm_, parameters, 1.0, foreach=False)
    yield Pair("clipping", "foreach", partial(clip_gradients, parameters, config), "tensor by tensor", plain)


def projections(device: str, tiny: bool) -> Iterator[Pair]:
    """The four projections of ARFlow's attention: one matrix product, or four."""
    tokens, weight = _leaves((64 if tiny else 80 * 64, 384), device, 1)[0], _leaves((4 * 384, 384), device, 1)[0]

    def one(x: Tensor, weight: Tensor) -> Tensor:
        q, k, v, g = F.linear(x, weight).chunk(4, dim=-1)
        return q * k + v * g

    def four(x: Tensor, weight: Tensor) -> Tensor:
        q, k, v, g = (F.linear(x, part) for part in weight.chunk(4))
        return q * k + v * g

    for what, ours, theirs in _both_ways(one, four, (tokens, weight)):
        yield Pair(f"q, k, v and g, {what}", "one product", ours, "four", theirs)


def cache(device: str, tiny: bool) -> Iterator[Pair]:
    """FlowAR's key-value cache: concatenated at every scale, or written into preallocated memory."""
    parts = [torch.randn(2 if tiny else 16, 4, n, 64, device=device, dtype=torch.bfloat16) for n in MAPS]
    room = torch.empty(*parts[0].shape[:2], sum(MAPS), 64, device=device, dtype=torch.bfloat16)

    def joined() -> Tensor:
        held = parts[0]
        for part in parts[1:]:
            held = torch.cat([held, part], dim=-2)
        return held

    def written() -> Tensor:
        for part, end in zip(parts, accumulate(MAPS), strict=True):
            room[..., end - part.shape[-2] : end, :] = part
        return room

    yield Pair("cache of one block, all scales", "torch.cat", joined, "written in place", written)


def null(device: str, tiny: bool) -> Iterator[Pair]:
    """The null branch of guidance: an evaluation of its own, or the second half of a larger batch."""
    common: dict[str, Any] = {"classes": 10, "depth": 2 if tiny else 6, "width": 256, "heads": 4}
    head: dict[str, Any] = {"head_width": 256, "head_heads": 4, "dropout": 0.0}
    side, maps = (8, (1, 2)) if tiny else (16, (1, 2, 4, 8, 16))
    model = arflow.ARFlow(arflow.Config(size=(side, side), **common)).to(device).eval()
    scaled = flowar.FlowAR(flowar.Config(size=(maps[-1], maps[-1]), scales=maps, **common, **head)).to(device).eval()

    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return model(x, t, labels)[0]

    for batch in (1, 16):
        x, t = torch.randn(batch, 1, 4, side, side, device=device), torch.zeros(batch, 1, device=device)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        one, other = partial(velocity, x, t, labels), partial(velocity, x, t, labels + 10)
        both = partial(velocity, _twice(x), _twice(t), torch.cat([labels, labels + 10]))
        yield _branches(
            f"ARFlow, {batch} images", together(model, batch, model.embed.positions.shape[-2]), one, other, both
        )
        for i, rows in enumerate(maps):
            z, x = torch.randn(batch, rows**2, 256, device=device), torch.randn(batch, rows**2, 16, device=device)
            scales = range(i, i + 1)
            one = other = partial(scaled.head, x, t, scaled.head.condition(z, scales), scales)
            both = partial(scaled.head, _twice(x), _twice(t), scaled.head.condition(_twice(z), scales), scales)
            name = f"FlowAR's head, {rows} x {rows} tokens, {batch} images"
            yield _branches(name, together(scaled, batch, rows**2), one, other, both)


def _branches(name: str, at_once: bool, one: Call, other: Call, both: Call) -> Pair:
    apart = "apart", torch.no_grad()(lambda: torch.cat([one(), other()]))
    joined = "with the conditional", torch.no_grad()(both)
    ours, theirs = (joined, apart) if at_once else (apart, joined)
    return Pair(f"null branch, {name}", *ours, *theirs)


PAIRS = {
    "attention": attention,
    "packed": packed,
    "dropout": draws,
    "projections": projections,
    "updates": updates,
    "cache": cache,
    "null": null,
}


def scale_mask(sizes: Sequence[int], *, causal: bool, device: str = "cpu") -> Tensor:
    """The attention mask of packed scales that corresponds to `attend`; True where a token attends."""
    scale = torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))
    return scale[:, None] >= scale[None] if causal else scale[:, None] == scale[None]


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v


def flex(sizes: Sequence[int], *, causal: bool, device: str) -> Callable[..., Tensor]:
    """FlexAttention with a block mask of the scales."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask, n = scale_mask(sizes, causal=causal, device=device), sum(sizes)
    blocks = create_block_mask(lambda b, h, i, j: mask[i, j], None, None, n, n, device=device)
    return partial(flex_attention, block_mask=blocks)


def _leaves(shape: Sequence[int], device: str, count: int = 3) -> list[Tensor]:
    return [torch.randn(*shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(count)]


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def _both_ways(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], given: Sequence[Tensor]
) -> Iterator[tuple[str, Call, Call]]:
    """Both functions compiled: the forward pass alone, and with the backward pass."""
    with torch.no_grad():
        by = torch.randn_like(ours(*given))

    def forward(f: Callable[..., Tensor]) -> Call:
        return torch.no_grad()(partial(torch.compile(f), *given))

    def backward(f: Callable[..., Tensor]) -> Call:
        compiled = torch.compile(f)
        return lambda: torch.autograd.grad(compiled(*given), given, by)

    yield "forward", forward(ours), forward(theirs)
    yield "forward and backward", backward(ours), backward(theirs)


class Found(NamedTuple):
    """Seconds of the library's call, and the ratio of the alternative's time to it, with quartiles."""

    ours: float
    ratio: dict[str, float]


def compare(pair: Pair, device: torch.device, repeats: int) -> Found:
    """Times both functions in turns."""
    torch.compiler.reset()  # otherwise pairs count as recompilations of one function, which stop after eight
    calls = pair.ours, pair.theirs
    for call in calls:
        call()  # compiles
    counts = [math.ceil(bench.STRETCH / timing.seconds_of(call, device)) for call in calls]
    turns = list(zip(calls, counts, strict=True))
    times = [[timing.seconds_of(call, device, count) for call, count in turns] for _ in range(repeats)]
    return Found(bench.spread([a for a, _ in times])["median"], bench.spread([b / a for a, b in times]))


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS), help="pairs to time")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--repeats", type=int, default=7, help="turns")
    options.add_argument("--tiny", action="store_true", help="small shapes, to try the code")
    given = options.parse_args(argv)
    lines = []
    for name in given.only:
        for pair in PAIRS[name](given.device, given.tiny):
            found = compare(pair, torch.device(given.device), given.repeats)
            ratio = quartiles(found.ratio, "{:.2f}".format)
            lines.append([pair.name, pair.library, pair.other, f"{found.ours * 1e3:.3g} ms", ratio])
            print(*lines[-1], sep=", ", file=sys.stderr, flush=True)
    machine = {key: value for key, value in bench.machine(given.device).items() if value is not None}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(markdown(["", "library", "other", "library's time", "other's over library's"], lines))


if __name__ == "__main__":
    main()
