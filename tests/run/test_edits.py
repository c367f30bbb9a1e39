"""Edits of images by a run: what stays exactly as it was, what is refused, and how the batch does not matter."""

from dataclasses import replace

import pytest
import torch

from conftest import randomise
from fluvial import recipes
from fluvial.autoencoders import Pixels, Vae
from fluvial.data.pixels import to_signed
from fluvial.flow.solvers import euler
from fluvial.methods import method_of
from fluvial.run import edit
from fluvial.run.load import Sampler
from fluvial.sampling.edit import kept, pooled
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.randomness import normal


def sampler_of(kind, **settings):
    """A sampler of a small model with random weights, on grey images of 8 x 8."""
    recipe = recipes.get(f"digits-{kind}")
    shape = {"head_width": 16, "head_heads": 2} if kind == "flowar" else {}
    config = replace(recipe.method, **{"width": 16, "heads": 2, "depth": 2, "classes": 4, **shape, **settings})
    model = method_of(config).Model(config).eval()
    randomise(model)
    run = replace(recipe, method=config, sample=SampleConfig(solver="ab2", steps=4))
    return Sampler(model=model, run=run, autoencoder=Pixels())


@pytest.fixture(params=["sit", "arflow", "flowar"])
def sampler(request):
    return sampler_of(request.param)


IMAGES = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
HOLE = torch.zeros(8, 8, dtype=torch.bool)
HOLE[3:6, 2:7] = True


def test_inpainting_leaves_every_known_pixel_as_it_is(sampler):
    drawn = edit.inpaint(sampler, IMAGES, HOLE, classes=[0, 1, 2], copies=2)
    before = IMAGES.repeat_interleave(2, dim=0)
    assert torch.equal(drawn.images[..., ~HOLE], before[..., ~HOLE])
    assert not torch.equal(drawn.images[0], drawn.images[1])  # copies have noise of their own
    assert drawn.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn.about["edit"]["edit"] == "inpaint" and drawn.about["edit"]["repeats"] == 4


def test_an_edit_does_not_depend_on_the_batch(sampler):
    def drawn(batch):
        settings = replace(sampler.run.sample, batch=batch)
        return edit.inpaint(sampler, IMAGES, HOLE, repeats=2, settings=settings).images

    assert torch.equal(drawn(1), drawn(250))


def test_variations_keep_the_scales_they_are_told_to():
    sampler = sampler_of("flowar")
    config = sampler.run.method
    ends = method_of(config).ends

    def maps(images):
        return ends(config, to_signed(images))

    drawn = [edit.vary(sampler, IMAGES, keep=keep, classes=1, copies=2) for keep in range(3)]
    assert drawn[2].labels.tolist() == [1] * 6 and len(drawn[2]) == 6
    assert len({samples.images.numpy().tobytes() for samples in drawn}) == 3
    near = edit.redraw(sampler, IMAGES, at=0.999)  # hardly any noise, at every scale
    assert torch.allclose(maps(near.images)[-1], maps(IMAGES)[-1], atol=0.05)


def test_a_kept_scale_is_what_the_finer_ones_are_drawn_from():
    sampler = sampler_of("flowar")
    config = sampler.run.method
    method, times = method_of(config), torch.linspace(0, 1, 5)
    noise = normal(0, [0, 1], config.noise_shape)
    seen = {}

    def remembered(i):
        def solve(*args, **options):
            seen[i] = euler(*args, **options)
            return seen[i]

        return solve

    labels = torch.tensor([0, 1])
    whole = method.sample(sampler.model, labels, noise=noise, times=times, solver=[remembered(i) for i in range(3)])
    again = method.sample(
        sampler.model, labels, noise=noise, times=times, solver=[kept(seen[0].x), kept(seen[1].x), euler]
    )
    assert torch.equal(whole, again)
    with pytest.raises(ValueError, match="3 scales need one solver, or a list of 3, got 2"):
        method.sample(sampler.model, labels, noise=noise, times=times, solver=[euler, euler])


def test_grown_images_agree_with_the_small_ones_if_told_to():
    sampler = sampler_of("flowar")
    small = IMAGES[..., :4, :4].contiguous()
    free, agreed = (edit.grow(sampler, small, agree=agree) for agree in (False, True))
    assert free.images.shape == (3, 1, 8, 8)

    def off(samples):
        return float((pooled(samples.images.float(), (4, 4)) - small).abs().max())

    assert off(agreed) <= 0.5 < off(free)  # of 256 levels: half of one by rounding


def test_inversion_leads_to_noise_and_back():
    for kind in ("sit", "arflow"):
        sampler = sampler_of(kind)
        few, many = (edit.invert(sampler, IMAGES, classes=0, solver="heun", steps=steps) for steps in (4, 64))
        assert many.error.max() < 1e-3 and many.error.mean() < few.error.mean()
        assert torch.equal(many.back.images, IMAGES)
        assert many.noise.shape == (3, 1, 8, 8)
        assert many.back.about["sampling"]["guidance"] == 1.0


def test_examples_change_what_arflow_draws():
    sampler = sampler_of("arflow")
    some, others = (edit.in_context(sampler, images, 4).images for images in (IMAGES, IMAGES.flip(1, 2)))
    assert some.shape == (4, 1, 8, 8) and not torch.equal(some, others)
    assert not torch.equal(some, edit.in_context(sampler, IMAGES, 4, alone=False).images)
    again = edit.in_context(sampler, IMAGES, 4, settings=replace(sampler.run.sample, batch=3)).images
    assert torch.equal(some, again)


def test_a_fork_at_the_end_of_the_grid_is_the_image_it_forks_from():
    for kind in ("sit", "arflow"):
        sampler = sampler_of(kind)
        forked = edit.fork(sampler, 5, 3, at=0.999999, classes=2, steps=8).images
        alone = sampler.sample(indices=[5], classes=2, steps=8).images
        assert (forked.int() - alone.int()).abs().max() <= 1
        early = edit.fork(sampler, 5, 3, at=0.2, classes=2, steps=8).images
        assert not torch.equal(early[0], early[1])


def refused(call, *parts):
    with pytest.raises(ValueError) as error:
        call()
    for part in parts:
        assert part in str(error.value), error.value


def test_what_does_not_fit_is_refused_with_what_was_got_and_expected():
    sit, flowar = sampler_of("sit"), sampler_of("flowar")
    refused(lambda: edit.inpaint(sit, IMAGES, HOLE[:7]), "size of the images, 8 x 8, got 7 x 8")
    refused(lambda: edit.inpaint(sit, IMAGES, torch.zeros(8, 8, dtype=torch.bool)), "all black")
    refused(lambda: edit.inpaint(sit, IMAGES, ~HOLE | HOLE), "leaves no part")
    refused(lambda: edit.inpaint(sit, IMAGES, HOLE.float()), "a mask must be a bool tensor")
    refused(lambda: edit.inpaint(sit, IMAGES.expand(-1, 3, -1, -1), HOLE), "images must be 1 x 8 x 8", "got 3 x 8 x 8")
    refused(lambda: edit.inpaint(sit, IMAGES.float(), HOLE), "uint8", "got torch.float32 (3, 1, 8, 8)")
    refused(lambda: edit.inpaint(sit, IMAGES, HOLE, repeats=-1), "repeats", "at least 0, got -1")
    refused(lambda: edit.inpaint(sit, IMAGES, HOLE, classes=[0, 1]), "one for each of 3 images, got 2")
    refused(lambda: edit.inpaint(sit, IMAGES, HOLE, classes=9), "got 9")
    refused(lambda: edit.inpaint(sit, IMAGES, HOLE, solver="euler-maruyama"), "ODE", "euler-maruyama")
    refused(lambda: edit.vary(sit, IMAGES, keep=1), "draws by scales", "sit")
    refused(lambda: edit.vary(flowar, IMAGES, keep=3), "from 0 to 2", "1x1 2x2 4x4", "got 3")
    refused(lambda: edit.grow(flowar, IMAGES[..., :5, :5]), "images must be 1 x 2 x 2 or 1 x 4 x 4", "got 1 x 5 x 5")
    refused(lambda: edit.redraw(sit, IMAGES, at=0.0), "between 0 (noise) and 1 (image), got 0.0")
    refused(lambda: edit.invert(flowar, IMAGES), "no one ODE")
    refused(lambda: edit.in_context(sit, IMAGES), "history", "not sit")
    refused(lambda: edit.fork(flowar, at=0.5), "draws by scales")
    never = sampler_of("sit", label_drop=0.0)
    refused(lambda: edit.redraw(never, IMAGES, at=0.5), "without label drop", "give classes")


def test_in_latents_those_stay_whose_pixels_are_all_known(tiny):
    vae = Vae(tiny("AutoencoderTiny"), "tiny", shift=(0.1,), scale=(2.0,))
    side = 4 * vae.stride
    sampler = sampler_of("sit", size=(4, 4), channels=vae.channels, patch=2)
    sampler = replace(sampler, autoencoder=vae)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[0, 0] = mask[-1, -1] = True  # a pixel of the first and of the last latent
    seen = {}
    real = vae.decode

    def decode(latents):
        seen["latents"] = latents
        return real(latents)

    vae.decode = decode
    drawn = edit.inpaint(sampler, images, mask, repeats=1)
    before = vae.latents(vae.moments(to_signed(images)))
    known = torch.ones(4, 4, dtype=torch.bool)
    known[0, 0] = known[-1, -1] = False
    assert torch.equal(seen["latents"][..., known], before[..., known])
    assert not (seen["latents"] == before)[..., ~known].any()
    assert drawn.images.shape == images.shape


def test_the_record_says_what_was_edited():
    sampler, other = sampler_of("sit"), IMAGES.flip(0)
    first, again, mask = (
        edit.inpaint(sampler, *x).about["edit"] for x in ((IMAGES, HOLE), (other, HOLE), (IMAGES, ~HOLE))
    )
    assert first["images_sha256"] == mask["images_sha256"] != again["images_sha256"]
    assert first["mask_sha256"] == again["mask_sha256"] != mask["mask_sha256"]


def test_what_are_no_images_is_named():
    with pytest.raises(ValueError, match="images must be a uint8 tensor .* got torch.float32 .3, 1, 8, 8."):
        edit.redraw(sampler_of("sit"), IMAGES.float(), at=0.5)
    with pytest.raises(ValueError, match="images must be a uint8 tensor .* got NoneType"):
        edit._begin(sampler_of("sit"), None, {})
    with pytest.raises(ValueError, match="a mask must be a bool tensor .* got torch.float32 .8, 8."):
        edit.inpaint(sampler_of("sit"), IMAGES, HOLE.float())
