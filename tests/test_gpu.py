"""What only a GPU can show. `pytest -m gpu` runs these; without a device they skip."""

import dataclasses
import functools

import pytest
import torch
import twins

import fluvial
from conftest import loss
from fluvial import recipes
from fluvial.autoencoders.vae import Vae
from fluvial.data.batches import batches
from fluvial.data.images import digits
from fluvial.data.pixels import to_signed
from fluvial.flow.guidance import Guidance
from fluvial.methods import METHODS, method_of
from fluvial.nn.scales import attend
from fluvial.run.train import build
from fluvial.sampling.generate import generate
from fluvial.sampling.labels import labels_for
from fluvial.sampling.settings import SampleConfig
from fluvial.tools import bench
from fluvial.training.health import Health
from fluvial.training.step import begin, step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", ["digits-sit", "digits-arflow", "digits-flowar"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_run_trains_resumes_and_samples(tmp_path, name, precision):
    run = recipes.get(name)
    short = dataclasses.replace(
        run.train, batch=8, precision=precision, log_every=2, save_every=2, validate_every=2, sample_every=4
    )
    constant = dataclasses.replace(run, optim=dataclasses.replace(run.optim, schedule="constant"))
    for steps in (2, 4):
        run = dataclasses.replace(constant, train=dataclasses.replace(short, steps=steps))
        trained = fluvial.train(run, tmp_path / "run", device="cuda")
    assert trained.step == 4 and next(trained.model.parameters()).is_cuda
    assert trained.sample(5).images.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_on_the_gpu_is_the_loss_on_the_cpu(name):
    run = recipes.get(f"digits-{name}")
    method, model = method_of(run.method), build(run)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    sequence = (run.method.images_per_sequence,) if run.method.images_per_sequence else ()
    latents, labels = torch.randn(4, *sequence, 1, 8, 8), torch.tensor([0, 1, 2, 9])
    draws = method.draws(run.method, latents.shape, device="cpu")
    expected = loss(model.eval(), latents, labels, **vars(draws))
    got = loss(model.cuda(), latents.cuda(), labels.cuda(), **vars(draws.to("cuda")))
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("clip", ["value", "norm"])
def test_a_training_step_never_waits_for_the_device(name, clip):
    run = recipes.get(f"digits-{name}")
    method, model = method_of(run.method), build(run).cuda()
    config = dataclasses.replace(run.train, batch=4, precision="bf16", ema_decays=(0.5,))
    learner = begin(
        model,
        method=method,
        config=config,
        optim=dataclasses.replace(run.optim, clip=clip),
        seed=0,
    )
    batch = batches(
        digits("train"),
        lambda pixels, *draw: to_signed(pixels),
        batch=4,
        seed=0,
        images_per_sequence=run.method.images_per_sequence,
        device="cuda",
    )
    health = Health(torch.device("cuda"))
    step(learner, batch, health, 0)  # libraries start up, the optimizer makes its state
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(learner, batch, health, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", METHODS)
def test_sampling_waits_for_the_device_only_at_the_end(name):
    """Draws of a stochastic solver come from the host at every step."""
    run = recipes.get(f"digits-{name}")
    method, model = method_of(run.method), build(run).cuda().eval()

    def sample(mode, *arguments, **settings):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            return method.sample(*arguments, **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for mode in ("default", "error"):  # the first time libraries start up
        generate(
            model,
            functools.partial(sample, mode),
            lambda latents: latents,
            SampleConfig(solver="euler-maruyama", steps=3, guidance=Guidance(weight=1.5)),
            indices=range(4),
            labels=labels_for(range(4), (0, 1)),
        )


@pytest.mark.parametrize("name", METHODS)
def test_sampling_that_is_not_finite_says_where_though_nothing_waited(name):
    run = recipes.get(f"digits-{name}")
    method, model = method_of(run.method), build(run).cuda().eval()
    for p in model.parameters():
        torch.nn.init.constant_(p, 1e30)
    with pytest.raises(RuntimeError, match="the conditional velocity.* is not finite near t = "):
        generate(
            model,
            method.sample,
            lambda latents: latents,
            SampleConfig(steps=3, guidance=Guidance(weight=1.5)),
            indices=range(4),
            labels=labels_for(range(4), (0, 1)),
        )


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("what", ["train", "sample"])
@pytest.mark.parametrize("name", METHODS)
def test_the_benchmark_measures_every_method(name, what, compile):
    run = recipes.get(f"digits-{name}")
    run = bench.settings(what, run, batch=4, dtype="bf16", compile=compile)
    run = dataclasses.replace(run, sample=dataclasses.replace(run.sample, steps=2))
    found = bench.measure(what, run, device="cuda", warmup=1, repeats=2, profiled=True, side=256)
    assert found["machine"]["gpu"] and found["memory"]["peak"] > found["memory"]["before"] >= 0
    assert 0 < found["utilisation"]["median"] < 1
    shares = [row["share"] for row in found["profile"]]
    assert all(share > 0 for share in shares) and sum(shares) <= 1 + 1e-9


@pytest.mark.parametrize("causal", [True, False])
def test_flex_attention_is_attention_scale_by_scale(causal):
    q, k, v = torch.randn(3, 2, 4, 341, 64, device="cuda", requires_grad=True).unbind()
    sizes = (1, 4, 16, 64, 256)
    packed = torch.compile(twins.flex(sizes, causal=causal, device="cuda"))
    plain, fast = attend(q, k, v, sizes, causal=causal), packed(q, k, v)
    torch.testing.assert_close(fast, plain, atol=1e-2, rtol=1e-2)  # TF32
    by = torch.randn_like(plain)
    gradients = [torch.autograd.grad(out, (q, k, v), by) for out in (fast, plain)]
    torch.testing.assert_close(*gradients, atol=2e-2, rtol=2e-2)


def test_an_autoencoder_on_the_gpu_is_that_on_the_cpu():
    diffusers = pytest.importorskip("diffusers")
    vae = Vae(diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), "it", scale=(0.5,))
    x = torch.rand(20, 3, 16, 16) * 2 - 1  # more than one chunk
    moments = vae.moments(x)
    decoded = vae.decode(vae.latents(moments))
    vae.cuda()
    torch.testing.assert_close(vae.moments(x.cuda()).cpu(), moments, atol=1e-2, rtol=1e-2)  # convolutions run in TF32
    torch.testing.assert_close(vae.decode(vae.latents(moments.cuda())).cpu(), decoded, atol=1e-2, rtol=1e-2)
