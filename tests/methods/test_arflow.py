import itertools

import pytest
import torch

from conftest import loss, randomise
from fluvial.flow import solvers as it
from fluvial.flow.guidance import Guidance
from fluvial.flow.interpolant import linear
from fluvial.flow.timesteps import grid, grid_with_last_step
from fluvial.methods import arflow
from fluvial.weights import released as upstream


@pytest.fixture(scope="module")
def released(arflow_golden):
    return upstream.from_state_dict(arflow_golden.state_dict)[0]


def test_velocity_of_a_sequence(released, arflow_golden):
    g = arflow_golden.tensors
    got, _ = released(g["train.x_t"], g["train.t"], g["train.labels"])
    torch.testing.assert_close(got, g["train.velocity"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_velocity_image_by_image(released, arflow_golden):
    g, state = arflow_golden.tensors, None
    for i in range(g["train.x_t"].shape[1]):
        got, state = released(g["train.x_t"][:, i : i + 1], g["train.t"][:, i : i + 1], g["train.labels"], state)
        torch.testing.assert_close(got[:, 0], g["infer.velocity_stepwise"][:, i], atol=2e-5, rtol=0)


def test_loss_and_gradients(released, arflow_golden):
    g = arflow_golden.tensors
    x1, labels, t, noise = (g[f"train.{k}"] for k in ("data", "labels", "t", "noise"))
    each = [
        loss(released, *(a[i : i + 1] for a in (x1, labels)), t=t[i : i + 1], noise=noise[i : i + 1]) for i in range(2)
    ]
    torch.testing.assert_close(torch.stack(each), g["train.loss_per_sequence"], atol=2e-5, rtol=0)
    released.zero_grad()
    loss(released, x1, labels, t=t, noise=noise).backward()
    attention = released.blocks[0].attention
    got = {"q_proj": attention.qkvg.weight.grad.chunk(4)[0], "gt_proj": attention.gate.weight.grad}
    for name, gradient in got.items():
        expected = g[f"train.grad.blocks.0.attn.{name}.weight"]
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("guided", [True, False])
def test_sde_trajectory(released, arflow_golden, guided):
    g, meta = arflow_golden.tensors, arflow_golden.meta
    # the release overwrites the null half's point with the conditional one, so only the first half's noise matters
    noise = g["sample.noise_steps"][:, :3] if guided else g["sample.noise_steps_nocfg"]
    got = arflow.sample(
        released,
        g["sample.labels"],
        noise=g["sample.noise_init"],
        times=grid_with_last_step(meta["num_steps"], meta["last_step_size"]),
        guidance=Guidance(weight=meta["cfg_scale"], channels=3) if guided else Guidance(),
        solver=it.solver("euler-maruyama", interpolant=linear, noise=noise),
    )
    torch.testing.assert_close(got, g["sample.result_cfg" if guided else "sample.result_nocfg"], atol=2e-4, rtol=0)


TINY = {
    "size": (4, 6),
    "channels": 3,
    "classes": 5,
    "patch": 2,
    "depth": 2,
    "width": 16,
    "heads": 2,
    "images_per_sequence": 4,
}


def tiny(**change):
    model = arflow.ARFlow(arflow.ARFlowConfig(**{**TINY, **change})).eval()
    randomise(model)
    return model


OPTIONS = [{}, {"history_decay": "shared"}, {"history_decay": "none"}, {"image_decay": "sum"}, {"qkv_norm": "head"}]


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_a_sequence_at_once_equals_any_split_of_it(options):
    model, x, t, labels = tiny(**options), torch.randn(2, 4, 3, 4, 6), torch.rand(2, 4), torch.tensor([1, 5])
    whole, end = model(x, t, labels)
    for sizes in ([1, 1, 1, 1], [2, 2], [3, 1], [1, 3]):
        parts, state = [], None
        for xs, ts in zip(x.split(sizes, 1), t.split(sizes, 1), strict=True):
            v, state = model(xs, ts, labels, state)
            parts.append(v)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
        for got, expected in zip(state, end, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_state_is_a_state_of_zeros():
    model, x, t = tiny(), torch.randn(2, 1, 3, 4, 6), torch.rand(2, 1)
    v, state = model(x, t)
    zeros = tuple(torch.zeros_like(s) for s in state)
    torch.testing.assert_close(model(x, t, None, zeros)[0], v)


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_an_image_never_changes_an_earlier_one(options):
    model, x, t = tiny(**options), torch.randn(2, 4, 3, 4, 6), torch.rand(2, 4)
    before, _ = model(x, t)
    for j in range(4):
        changed_x, changed_t = x.clone(), t.clone()
        changed_x[:, j] += 1
        changed_t[:, j] *= 0.5
        after, _ = model(changed_x, changed_t)
        assert torch.equal(after[:, :j], before[:, :j])
        assert all((after[:, i] != before[:, i]).any() for i in range(j, 4)), "the history carries nothing"


def test_the_velocity_is_zero_at_initialisation_and_every_gate_is():
    model = arflow.ARFlow(arflow.ARFlowConfig(**TINY))
    assert (model(torch.randn(2, 4, 3, 4, 6), torch.rand(2, 4), torch.tensor([0, 4]))[0] == 0).all()
    for name, p in model.named_parameters():
        if "modulation" in name or name.startswith("head."):
            assert (p == 0).all(), name
        elif p.ndim > 1:
            assert p.std() > 0, name  # out_proj too: only the gates are zero


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 0},
        {"size": (6, 2)},
        {"channels": 1},
        {"heads": 4},
        {"images_per_sequence": 1},
        {"images_per_sequence": 7},
    ],
)
@pytest.mark.parametrize("solver", ["heun", "dopri5"])
def test_any_shape_trains_and_samples(change, solver):
    model = tiny(**change)
    config = model.config
    labels = None if config.classes == 0 else torch.tensor([0, 4])
    x = torch.randn(2, config.images_per_sequence, config.channels, *config.size)
    loss(model, x, labels).backward()
    assert model.embed.project.weight.grad.abs().max() > 0
    out = arflow.sample(
        model, labels, noise=x[:, 0], times=grid(3), guidance=Guidance(weight=2.0), solver=it.solver(solver)
    )
    assert out.shape == x[:, 0].shape and torch.isfinite(out).all()


@torch.no_grad()
def test_heun_reads_the_history_of_accepted_points_only():
    """Heun by hand, with the look-ahead's state thrown away."""
    model, labels = tiny(), torch.tensor([1, 2])
    x = noise = torch.randn(2, 3, 4, 6)
    state, times = None, grid(3).tolist()
    for a, b in itertools.pairwise(times):
        at = [torch.full((2, 1), time) for time in (a, b)]
        v, state = model(x[:, None], at[0], labels, state)
        ahead, _ = model((x + (b - a) * v[:, 0])[:, None], at[1], labels, state)
        x = x + (b - a) / 2 * (v + ahead)[:, 0]
    torch.testing.assert_close(arflow.sample(model, labels, noise=noise, times=times, solver=it.heun), x)


@torch.no_grad()
def test_sampling_without_history_would_differ():
    model, labels, noise = tiny(), torch.tensor([1, 2]), torch.randn(2, 3, 4, 6)
    x = noise
    for time in (0.0, 0.5):
        x = x + 0.5 * model(x[:, None], torch.full((2, 1), time), labels)[0][:, 0]
    assert (arflow.sample(model, labels, noise=noise, times=grid(2)) - x).abs().max() > 1e-3


@torch.no_grad()
def test_sampling_with_part_of_the_history():
    """None is all of it, 0 the field of single images, and one point the history of the last one alone."""
    model, labels, noise = tiny(), torch.tensor([1, 2]), torch.randn(2, 3, 4, 6)

    def drawn(history, solver=it.euler, weight=2.0):
        how = {"guidance": Guidance(weight=weight), "solver": solver, "history": history}
        return arflow.sample(model, labels, noise=noise, times=grid(4), **how)

    for solver in (it.euler, it.dopri5):
        torch.testing.assert_close(drawn(100, solver), drawn(None, solver))
    x = noise
    for time in (0.0, 0.25, 0.5, 0.75):
        x = x + 0.25 * model(x[:, None], torch.full((2, 1), time), labels)[0][:, 0]
    torch.testing.assert_close(drawn(0, weight=1.0), x)
    one = arflow.recent(model.config, 2, 1, "cpu")
    x, state = noise, one
    for time in (0.0, 0.25, 0.5, 0.75):
        v, state = model(x[:, None], torch.full((2, 1), time), labels, state)
        x = x + 0.25 * v[:, 0]
    torch.testing.assert_close(drawn(1, weight=1.0), x)
    assert len({drawn(history).numpy().tobytes() for history in (None, 0, 1, 2)}) == 4


def test_labels_are_dropped_by_sequence_and_in_training_only():
    model = tiny()
    x, labels = torch.randn(3, 4, 3, 4, 6), torch.tensor([0, 1, 2])
    chance = {"t": torch.rand(3, 4), "noise": torch.randn_like(x)}
    second = {**chance, "drop": torch.tensor([False, True, False])}
    expected = loss(model, x, torch.tensor([0, 5, 2]), **chance)
    torch.testing.assert_close(loss(model.train(), x, labels, **second), expected)
    assert abs(loss(model.eval(), x, labels, **second) - expected) > 1e-5


def test_times_of_a_sequence():
    config = arflow.ARFlowConfig(**TINY)
    drawn = arflow.draws(config, (500, 4, 3, 4, 6), device="cpu")
    assert (drawn.t.diff(dim=1) >= 0).all() and drawn.drop.shape == (500,)
    unsorted = arflow.draws(arflow.ARFlowConfig(**TINY, sorted_times=False), (500, 4, 3, 4, 6), device="cpu")
    assert (unsorted.t.diff(dim=1) < 0).any()
    assert not torch.equal(drawn.noise[:, 0], drawn.noise[:, 1])  # every image has its own


def test_a_sequence_may_be_the_path_of_one_image():
    """Its points lie on a line from one noise to one image, and the target is the velocity of this line."""
    model, x, t = tiny().train(), torch.randn(3, 4, 3, 4, 6), torch.rand(3, 4)
    labels, noise = torch.tensor([0, 1, 2]), torch.randn_like(x)
    chance = {"t": t, "noise": noise, "drop": torch.zeros(3, dtype=torch.bool)}
    own = torch.tensor([True, False, True])
    expected = arflow.errors(model, x, labels, arflow.Draws(**chance))
    found = arflow.errors(model, x, labels, arflow.SequenceDraws(**chance, own=own))
    torch.testing.assert_close(found[1], expected[1])
    for row in (0, 2):
        along = t[row][:, None, None, None]
        points = (1 - along) * noise[row, 0] + along * x[row, 0]
        v, _ = model(points[None], t[row][None], labels[row][None])
        error = (v[0] - (x[row, 0] - noise[row, 0])).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(found[row], error)
    torch.testing.assert_close(
        arflow.errors(model.eval(), x, labels, arflow.SequenceDraws(**chance, own=own)),
        arflow.errors(model.eval(), x, labels, arflow.Draws(**chance)),
    )  # validation is of different images, whatever training is of


def test_the_share_of_such_sequences_and_no_draw_without_them():
    shape, of = (4000, 2, 1, 2, 2), {**TINY, "size": (2, 2), "channels": 1, "patch": 1}
    plain, some = (arflow.ARFlowConfig(**of, own_path=share) for share in (0.0, 0.3))
    first, second = (
        arflow.draws(config, shape, generator=torch.Generator().manual_seed(3), device="cpu")
        for config in (plain, some)
    )
    assert first.own is None and second.own.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(first.t, second.t) and torch.equal(first.noise, second.noise)
    assert torch.equal(first.drop, second.drop) and torch.equal(second[1:3].own, second.own[1:3])
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]: {'own_path': 1.5}"):
        arflow.ARFlowConfig(**TINY, own_path=1.5)


@torch.no_grad()
def test_bf16_autocast_stays_close_and_keeps_the_history_in_float32():
    model, x, t = tiny(), torch.randn(2, 4, 3, 4, 6), torch.rand(2, 4)
    exact, _ = model(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        rough, state = model(x, t)
    assert all(s.dtype == torch.float32 for s in state)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
