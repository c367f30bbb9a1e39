import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from conftest import loss, randomise, read_golden
from fluvial.flow import solvers as it
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import linear
from fluvial.flow.timesteps import grid, two_piece_grid
from fluvial.methods import flowar
from fluvial.training.distributed import checkpoint_activations
from fluvial.weights import released as upstream


@pytest.fixture(scope="module", params=["spatial_adaln", "cross_attention"])
def released(request):
    golden = read_golden(f"flowar_tiny_{request.param}")
    model, run = upstream.from_state_dict(golden.state_dict)
    assert (run.method.head, run.method.heads) == (request.param, golden.meta["encoder_num_heads"])
    return SimpleNamespace(model=model, g=golden.tensors, meta=golden.meta, state_dict=golden.state_dict)


def close(got, expected, tolerance=2e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def inputs_of(latents, config):
    maps = flowar.pyramid(latents, config)
    return flowar.packed([flowar.upsampled(m, config, i + 1) for i, m in enumerate(maps[:-1])], config.patch)


@torch.no_grad()
def test_targets_inputs_and_condition(released):
    model, g = released.model, released.g
    latents, labels = g["train.latent"], g["train.labels"]
    close(flowar.packed(flowar.pyramid(latents, model.config), 1), g["train.scale_targets"])
    inputs = inputs_of(latents, model.config)
    start = model.embed_label(labels, 2)[:, None]
    close(torch.cat([start, model.embed(inputs)], 1), g["train.transformer_input"])
    close(model.transformer(inputs, labels, range(5))[0], g["train.condition"])


@torch.no_grad()
def test_the_head_alone(released):
    head, g = released.model.head, released.g
    scales = range(3, 4)
    got = head(g["head.x"], 1 - g["head.noise_level"][:, None], head.condition(g["head.condition"], scales), scales)
    close(-got, g["head.out"])  # the released velocity runs from data to noise


def test_loss_and_gradients(released):
    model, g = released.model, released.g
    model.zero_grad()
    value = loss(
        model,
        g["train.latent"],
        g["train.labels"],
        t=1 - g["train.noise_level"].T,
        noise=g["train.noise"],
        drop=torch.zeros(2, dtype=torch.bool),
    )
    close(value, g["train.loss"][0])
    value.backward()
    for p, name in (
        (model.blocks[0].attention.qkv.weight, "encoder_blocks.0.attn.qkv.weight"),
        (model.head.embed.weight, "flownet.input_proj.weight"),
    ):
        expected = g[f"train.grad.{name}"]
        assert (p.grad - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_whole_sample(released):
    model, g, meta = released.model, released.g, released.meta
    evaluations = Counter()
    got = flowar.sample(
        model,
        g["sample.labels"],
        noise=torch.cat([g[f"sample.noise.{k}"][:3] for k in range(5)], 1),
        times=two_piece_grid(meta["num_steps"]),
        guidance=Guidance(weight=meta["cfg_scale"], ramp="linear", interval=(1 - meta["guidance_high"], 1.0)),
        evaluations=evaluations,
    )
    close(got, g["sample.result"], 2e-4)
    assert evaluations["conditional 8x8"] == 10 and evaluations["null 8x8"] == 9  # one step lies outside the interval
    assert "null 1x1" not in evaluations and evaluations["transformer 1x1"] == 2  # weight 1: only the cache is needed


TINY = {
    "size": (8, 8),
    "channels": 2,
    "classes": 3,
    "patch": 2,
    "scales": (1, 2, 4),
    "depth": 4,
    "width": 16,
    "heads": 2,
    "head_depth": 2,
    "head_width": 16,
    "head_heads": 2,
}
OBLONG = {"size": (4, 12), "patch": 1, "scales": (1, 3, 4), "scale_columns": (2, 5, 12)}


def tiny(seed=0, **change):
    model = flowar.FlowAR(flowar.FlowARConfig(**{**TINY, **change})).eval()
    randomise(model, seed)
    return model


FORMS = [{}, {"head": "cross_attention"}]
SHAPES = [
    {},
    OBLONG,
    {"classes": 0},
    {"scales": (4,)},
    {"scales": (3, 4)},
    {"upsample": "direct"},
    {"context_noise": 0.5},
    {"loss_weight": "scale"},
]


SOLVERS = ["euler", "heun", "midpoint", "ab2", "euler-maruyama"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "solver"), [*((s, "euler-maruyama") for s in SHAPES), *(({}, s) for s in SOLVERS)])
def test_any_pyramid_trains_and_samples(form, shape, solver):
    model = tiny(**shape, **form).train()
    config = model.config
    labels = None if config.classes == 0 else torch.tensor([0, 2])
    latents = torch.randn(2, config.channels, *config.size)
    loss(model, latents, labels).backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for n, p in model.named_parameters()
        if "table" not in n and not (len(config.maps) == 1 and n.startswith(("embed.", "embed_level")))
    )
    settings = {"interpolant": linear} if solver == "euler-maruyama" else {}
    extra = {"step_noise": lambda i: torch.randn(2, *config.noise_shape)} if settings else {}
    if config.context_noise:
        extra |= {"context_noise": 0.2, "level_noise": torch.randn(2, *config.noise_shape)}
    out = flowar.sample(
        model.eval(),
        labels,
        noise=torch.randn(2, *config.noise_shape),
        times=grid(3),
        guidance=Guidance(weight=2.0),
        solver=it.solver(solver, **settings),
        **extra,
    )
    assert out.shape == latents.shape and torch.isfinite(out).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [{}, OBLONG, {"context_noise": 0.5}])
@torch.no_grad()
def test_all_scales_at_once_equal_scale_by_scale(form, shape):
    """The packed pass of training against the cached transformer and the head of sampling, one scale at a time."""
    model = tiny(**shape, **form)
    config = model.config
    latents, labels = torch.randn(2, config.channels, *config.size), torch.tensor([1, 3])
    x, t = torch.randn(2, *config.noise_shape), torch.rand(2, 3)
    inputs, level = inputs_of(latents, config), torch.rand(2, 3) if config.context_noise else None
    whole = model(x, t, labels, inputs, level)
    cache, first = None, config.sizes[0]
    for i in range(3):
        scales = range(i, i + 1)
        span = config.span(scales)
        part = None if i == 0 else inputs[:, span.start - first : span.stop - first]
        z, cache = model.transformer(part, labels, scales, cache, None if level is None else level[:, i : i + 1])
        v = model.head(x[:, span], t[:, i : i + 1], model.head.condition(z, scales), scales)
        torch.testing.assert_close(v, whole[:, span], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_later_scale_never_changes_an_earlier_one(form):
    model = tiny(**form)
    config = model.config
    x, t, labels = torch.randn(2, *config.noise_shape), torch.rand(2, 3), torch.tensor([1, 3])
    inputs = inputs_of(torch.randn(2, 2, 8, 8), config)
    before = model(x, t, labels, inputs)
    for i in range(3):
        span = config.span(range(i, i + 1))
        x_changed, t_changed, inputs_changed = x.clone(), t.clone(), inputs.clone()
        x_changed[:, span] += 1
        t_changed[:, i] *= 0.5
        if i:
            inputs_changed[:, span.start - 1 : span.stop - 1] += 1
        after = model(x_changed, t_changed, labels, inputs_changed)
        assert torch.equal(after[:, : span.start], before[:, : span.start])
        assert (after[:, span] != before[:, span]).any()
        if i in (1,):  # a scale passes on what it was given, not what it is drawing
            assert (after[:, span.stop :] != before[:, span.stop :]).any()


def test_the_loss_counts_tokens_or_scales_alike():
    model, config = tiny(), flowar.FlowARConfig(**TINY)
    latents, labels = torch.randn(2, 2, 8, 8), torch.tensor([0, 1])
    chance = flowar.draws(config, latents.shape, device="cpu")
    x1 = flowar.packed(flowar.pyramid(latents, config), 2)
    per_token = [torch.cat([chance.t[:, i : i + 1].expand(-1, n) for i, n in enumerate(config.sizes)], 1)]
    t = per_token[0][:, :, None]
    x_t = t * x1 + (1 - t) * chance.noise
    v = model(x_t, chance.t, labels, inputs_of(latents, config))
    errors = [e.square().mean() for e in (v - (x1 - chance.noise)).split(config.sizes, 1)]
    by_token = sum(n / 16 * e for n, e in zip(config.sizes, errors, strict=True))
    torch.testing.assert_close(loss(model, latents, labels, **vars(chance)), by_token)
    by_scale = flowar.FlowARConfig(**TINY, loss_weight="scale")
    model.config = by_scale
    torch.testing.assert_close(loss(model, latents, labels, **vars(chance)), sum(errors) / 3)


def test_at_512_pixels_the_whole_latent_is_trained_on():
    """The release drops all but the first 256 tokens of the finest map: here each of its 1,024 has a gradient."""
    model = tiny(size=(32, 32), patch=1, scales=(1, 2, 4, 8, 16, 32), depth=2, head_depth=1)
    latents = torch.randn(1, 2, 32, 32, requires_grad=True)
    config = model.config
    assert sum(config.sizes) == 1 + 4 + 16 + 64 + 256 + 1024
    chance = flowar.draws(config, latents.shape, device="cpu")
    noise = chance.noise.requires_grad_()
    loss(model, latents, torch.tensor([0]), **vars(chance)).backward()
    assert (noise.grad.abs().sum(-1) > 0).all()  # every token of every scale is in the loss
    finest = flowar.packed(flowar.pyramid(latents.detach(), config), 1)[:, -1024:]
    assert torch.equal(finest, latents.detach().flatten(2).transpose(1, 2))


def test_recomputed_blocks_change_no_gradient():
    latents, labels = torch.randn(2, 2, 8, 8), torch.tensor([0, 2])
    gradients = []
    for every in (0, 1):
        model = tiny(head="cross_attention", dropout=0.0).train()
        checkpoint_activations(model, every)
        torch.manual_seed(0)
        loss(model, latents, labels).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_and_label_drop_are_of_training_only():
    model = tiny(dropout=0.5)
    latents, labels = torch.randn(2, 2, 8, 8), torch.tensor([0, 1])
    drawn = flowar.draws(model.config, latents.shape, device="cpu")
    chance = {**vars(drawn), "drop": torch.ones(2, dtype=torch.bool)}
    held_out = [loss(model, latents, labels, **chance).item() for _ in range(2)]
    training = [loss(model.train(), latents, labels, **chance).item() for _ in range(2)]
    assert held_out[0] == held_out[1] and training[0] != training[1]
    undropped = tiny(dropout=0.0)
    unlabelled = loss(undropped.eval(), latents, None, **chance)
    torch.testing.assert_close(loss(undropped.train(), latents, labels, **chance), unlabelled)
    assert abs(loss(undropped.eval(), latents, labels, **chance) - unlabelled) > 1e-5


@torch.no_grad()
def test_training_mixes_noise_into_the_inputs_and_tells_the_level():
    seen = {}

    class Recorder(torch.nn.Module):
        config = flowar.FlowARConfig(**TINY, context_noise=0.5)

        def forward(self, x_t, t, labels, inputs, level):
            seen.update(inputs=inputs, level=level)
            return x_t

    config = Recorder.config
    latents = torch.randn(2, 2, 8, 8)
    chance = flowar.draws(config, latents.shape, device="cpu")
    loss(Recorder(), latents, None, **vars(chance))
    clean = inputs_of(latents, config).split(config.sizes[1:], 1)
    noise = chance.level_noise.split(config.sizes, 1)[1:]
    for i, part in enumerate(seen["inputs"].split(config.sizes[1:], 1)):
        share = chance.level[:, i + 1, None, None]
        torch.testing.assert_close(part, (1 - share) * clean[i] + share * noise[i])
    assert torch.equal(seen["level"], chance.level)


@torch.no_grad()
def test_context_noise_is_mixed_in_and_told():
    model = tiny(context_noise=0.5)
    config = model.config
    drawn = flowar.draws(config, (4000, 2, 8, 8), device="cpu")
    assert (drawn.level[:, 0] == 0).all()
    assert drawn.level.max() <= 0.5 and abs(drawn.level[:, 1:].mean() - 0.25) < 0.01
    noise, labels, level_noise = (
        torch.randn(2, *config.noise_shape),
        torch.tensor([0, 1]),
        torch.randn(2, *config.noise_shape),
    )

    def draw(**extra):
        return flowar.sample(model, labels, noise=noise, times=grid(2), **extra)

    clean, noisy = draw(), draw(context_noise=0.3, level_noise=level_noise)
    assert (clean - noisy).abs().max() > 1e-3
    assert (draw(context_noise=0.0, level_noise=level_noise) - clean).abs().max() == 0
    levels = []
    model.embed_level.register_forward_pre_hook(lambda _, arguments: levels.append(float(arguments[0].max())))
    draw(context_noise=0.3, level_noise=level_noise)
    assert levels == pytest.approx([0, 300, 300])
    for wrong in ({"context_noise": 0.3}, {"context_noise": 0.3, "level_noise": level_noise, "of": tiny()}):
        with pytest.raises(ValueError, match="needs a model trained with context_noise"):
            flowar.sample(wrong.pop("of", model), labels, noise=noise, times=grid(2), **wrong)


@torch.no_grad()
def test_guidance_by_scale_and_the_calls_it_costs():
    model, labels, noise = tiny(), torch.tensor([0, 1]), torch.randn(2, 21, 8)

    def calls(times, **guidance):
        evaluations = Counter()
        flowar.sample(model, labels, noise=noise, times=times, guidance=Guidance(**guidance), evaluations=evaluations)
        return evaluations

    none = calls(grid(4), weight=1.0)
    assert {k for k in none if k.startswith("null")} == set() and none["transformer 4x4"] == 1
    ramp = calls(grid(4), weight=3.0, ramp="linear")
    assert [ramp[f"null {s}"] for s in ("1x1", "2x2", "4x4")] == [0, 4, 4]
    early = calls(grid(4), scale_weights=(2.0, 1.0, 1.0))
    assert [early[f"null {s}"] for s in ("1x1", "2x2", "4x4")] == [4, 0, 0] and early["transformer 2x2"] == 1
    late = calls([grid(4), grid(3), grid(2)], weight=2.0, interval=(0.5, 1.0))
    assert [late[f"conditional {s}"] for s in ("1x1", "2x2", "4x4")] == [4, 3, 2]
    assert [late[f"null {s}"] for s in ("1x1", "2x2", "4x4")] == [2, 1, 1]


def test_the_ramp_of_the_release():
    weights = [Guidance(weight=4.3, ramp="linear").at_scale(k, 5).weight for k in range(5)]
    assert weights == pytest.approx([1, 1.825, 2.65, 3.475, 4.3])
    assert [Guidance(weight=2.0).at_scale(k, 3).weight for k in range(3)] == [2, 2, 2]
    with pytest.raises(ValueError, match="3 scales need 3 guidance weights"):
        Guidance(scale_weights=(1.0, 2.0)).at_scale(0, 3)


def test_the_callback_sees_full_latents_and_counts_over_the_scales():
    model, steps = tiny(), []
    out = flowar.sample(
        model, None, noise=torch.randn(2, 21, 8), times=[grid(2), grid(1), grid(3)], on_step=steps.append
    )
    assert [s.number for s in steps] == [1, 2, 3, 4, 5, 6]
    assert all(s.x.shape == (2, 2, 8, 8) for s in steps) and torch.equal(steps[-1].x, out)
    first = steps[1].x  # one token of 2 x 2 pixels, enlarged to 8 x 8
    assert torch.equal(first[:, :, :4, :4], first[:, :, :1, :1].expand(-1, -1, 4, 4))
    assert [s.scale for s in steps] == ["1x1", "1x1", "2x2", "4x4", "4x4", "4x4"]
    assert [s.nfe for s in steps] == [1, 2, 3, 4, 5, 6]


def test_the_estimate_of_a_scale_is_that_of_its_tokens_upsampled():
    model, tokens, steps = tiny(), [], []

    def watched(field, x, times, *, on_step, **options):
        def told(step):
            tokens.append(step.seen.data(linear))
            on_step(step)

        return it.heun(field, x, times, on_step=told, **options)

    flowar.sample(model, None, noise=torch.randn(2, 21, 8), times=grid(2), solver=watched, on_step=steps.append)
    assert len(steps) == 6
    for of_scale, step in zip(tokens, steps, strict=True):
        side = math.isqrt(of_scale.shape[1])
        small = flowar.unpatchify(of_scale, 2, (side, side))
        larger = small.repeat_interleave(4 // side, dim=2).repeat_interleave(4 // side, dim=3)
        torch.testing.assert_close(step.seen.data(linear), larger)


@torch.no_grad()
def test_initialisation():
    zero = flowar.FlowAR(flowar.FlowARConfig(**TINY, head="cross_attention"))
    x, t, labels = torch.randn(2, 21, 8), torch.rand(2, 3), torch.tensor([0, 3])
    inputs = torch.randn(2, 20, 8)
    assert (zero(x, t, labels, inputs) == 0).all()
    for name, p in zero.named_parameters():
        if "modulation" in name or name.startswith("head.out"):
            assert (p == 0).all(), name
    released = flowar.FlowAR(flowar.FlowARConfig(**TINY, init="release"))
    for name, p in released.named_parameters():
        if name.endswith("weight") and p.ndim == 2 and "table" not in name:
            bound = (6 / sum(p.shape)) ** 0.5
            assert 0.8 * bound < p.abs().max() <= bound, name


# FlowAR's published sizes, in millions (specification, section 5)
COUNTS = {"S": 171.72, "B": 289.78, "L": 586.86, "H": 1913.3}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = flowar.FlowAR(flowar.preset(name))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(count, 2 if name != "H" else 1) == COUNTS[name]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scales": ()}, "growing maps of tokens that end with 4 x 4"),
        ({"scales": (1, 2)}, "end with 4 x 4 .*got 1x1 2x2"),
        ({"scales": (1, 4, 2, 4)}, "growing maps"),
        ({"scales": (1, 4, 4)}, "growing maps"),
        ({"scales": (0, 4)}, "growing maps"),
        ({"scale_columns": (1, 4)}, "as many as scales"),
        ({"size": (9, 8)}, "multiple of patch"),
        ({"depth": 3}, "depth must be even"),
        ({"head_width": 18}, "head_width must be divisible"),
        ({"context_noise": 1.5}, "in \\[0, 1\\]"),
        ({"channels": 0}, "at least 1"),
    ],
)
def test_impossible_configurations_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        flowar.FlowARConfig(**{**TINY, **wrong})


def test_a_list_of_times_has_to_fit_the_scales():
    with pytest.raises(ValueError, match="3 scales need one grid of times, or a list of 3, got 2"):
        flowar.sample(tiny(), None, noise=torch.randn(1, 21, 8), times=[grid(2), grid(2)])


def test_unknown_sizes_are_named():
    with pytest.raises(ValueError, match="unknown size 'XL': expected one of S, B, L, H"):
        flowar.preset("XL")


def test_a_stochastic_solver_gets_new_draws_at_every_scale():
    model, asked = tiny(), []

    def draw(step):
        asked.append(step)
        return torch.randn(2, 21, 8)

    solver = it.solver("euler-maruyama", interpolant=linear, last_step="none")
    times = [grid(2), grid(1), grid(3)]
    flowar.sample(model, None, noise=torch.randn(2, 21, 8), times=times, solver=solver, step_noise=draw)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_maps_of_patches_are_means_of_the_pixels_they_cover():
    """Patch 2, and a map of 3 x 3 tokens out of 4 x 4: 6 x 6 pixels out of 8 x 8, each the mean of those it touches."""
    config = flowar.FlowARConfig(**{**TINY, "scales": (2, 3, 4)})
    latents = torch.randn(1, 2, 8, 8)
    first, second, last = flowar.pyramid(latents, config)
    torch.testing.assert_close(first, latents.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5)))
    for row in range(6):
        for column in range(6):
            rows, columns = (slice(i * 8 // 6, -(-(i + 1) * 8 // 6)) for i in (row, column))
            torch.testing.assert_close(second[0, :, row, column], latents[0, :, rows, columns].mean(dim=(1, 2)))
    assert torch.equal(last, latents)
    grown = flowar.upsampled(first, flowar.FlowARConfig(**{**TINY, "scales": (2, 3, 4), "upsample": "direct"}), 1)
    torch.testing.assert_close(grown, torch.nn.functional.interpolate(first, (6, 6), mode="bicubic"))
    assert (flowar.upsampled(first, config, 1) - grown).abs().max() > 1e-2  # by way of the full size is another thing


def test_a_latent_that_does_not_fit_is_refused():
    for shape in ((1, 2, 16, 16), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"latents of \(2, 8, 8\).*got"):
            loss(tiny(), torch.randn(shape), torch.tensor([0]))


@pytest.mark.parametrize(("most", "evaluations"), [(0, 3 * 2 * 5), (256, 3 * 5)])  # branches apart, and at once
def test_what_does_not_depend_on_time_is_computed_once_a_scale(most, evaluations, monkeypatch):
    monkeypatch.setattr("fluvial.flow.guidance.TOGETHER", most)
    model, calls = tiny(head="cross_attention"), Counter()
    for name, module in (
        ("project", model.head.project),
        ("kv", model.head.blocks[0].cross.kv),
        ("out", model.head.out),
    ):
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    flowar.sample(model, torch.tensor([0]), noise=torch.randn(1, 21, 8), times=grid(5), guidance=Guidance(weight=2.0))
    assert calls == {"project": 3 * 2, "kv": 3 * 2, "out": evaluations}


def test_the_level_is_told_and_the_residual_stream_stays_float32():
    model = tiny(context_noise=0.5)
    latents, labels = torch.randn(2, 2, 8, 8), torch.tensor([0, 1])
    chance = flowar.draws(model.config, latents.shape, device="cpu")
    told, seen = [], []
    model.embed_level.register_forward_pre_hook(lambda _, arguments: told.append(arguments[0].max()))
    loss(model, latents, labels, **vars(chance))
    assert told[0] > 0
    model.head.blocks[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss(model, latents, labels, **vars(chance))
    assert seen == [torch.float32]


def test_guided_channels_are_refused():
    with pytest.raises(ValueError, match="guides all channels"):
        flowar.sample(
            tiny(),
            torch.tensor([0]),
            noise=torch.randn(1, 21, 8),
            times=grid(2),
            guidance=Guidance(weight=2.0, channels=1),
        )


def test_adaptive_steps_are_counted_on_over_the_scales():
    steps = []
    solver = it.solver("dopri5", atol=1e-3, rtol=1e-3)
    flowar.sample(tiny(), None, noise=torch.randn(2, 21, 8), times=grid(1), solver=solver, on_step=steps.append)
    assert [s.number for s in steps] == list(range(1, len(steps) + 1)) and len(steps) > 6
    assert sum(s.t == 1 for s in steps) == 3


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("ab2", 2)])
def test_every_solver_integrates_the_head(monkeypatch, solver, order):
    """With dx/dt = cos(3t) x in place of the head, the last scale ends at its noise times exp(sin(3) / 3)."""
    model, noise = tiny(), torch.randn(2, 21, 8)
    monkeypatch.setattr(model.head, "forward", lambda x, t, condition, scales: torch.cos(3 * t)[:, :, None] * x)
    exact = flowar.unpatchify(noise[:, 5:] * math.exp(math.sin(3) / 3), 2, (4, 4))
    errors = []
    for steps in (8, 16):
        out = flowar.sample(model, None, noise=noise, times=grid(steps), solver=it.solver(solver))
        errors.append(float((out - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.6  # on this field midpoint is even better than its order


@pytest.mark.parametrize("what", ["transformer", "head"])
def test_the_scale_that_is_not_finite_is_named(what):
    """Of scales 1, 2 and 4 the second breaks: in the transformer's position table, or in the head's output there."""
    model, noise = tiny(), torch.randn(2, 21, 8)
    if what == "transformer":
        with torch.no_grad():
            model.positions[0, 1:5] = math.nan
    else:
        forward = model.head.forward
        model.head.forward = lambda x, t, z, scales: forward(x, t, z, scales) / (0.0 if scales.start == 1 else 1.0)
    says = "the conditional velocity of scale 2x2 is not finite near t = 0:"
    with pytest.raises(RuntimeError, match=says):
        flowar.sample(model, torch.tensor([0, 1]), noise=noise, times=grid(3), guidance=Guidance(weight=2.0))
