import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluvial import autoencoders
from fluvial.autoencoders import AutoencoderConfig, Pixels
from fluvial.autoencoders.vae import KINDS, Vae, from_pretrained
from fluvial.utils.randomness import generator

STRIDES = {"AutoencoderKL": 4, "AutoencoderTiny": 2, "AutoencoderDC": 8}
CHANNELS = {"AutoencoderKL": 4, "AutoencoderTiny": 4, "AutoencoderDC": 8}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_encodes_and_decodes_as_diffusers_does(tiny, tmp_path, kind):
    model = tiny(kind, scaling_factor=0.5)
    model.save_pretrained(tmp_path)
    vae = autoencoders.load(str(tmp_path))
    x = torch.rand(3, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        encoded = model.encode(x)
        if kind == "AutoencoderKL":
            moments, z = encoded.latent_dist.parameters, encoded.latent_dist.mode()
        else:
            moments = z = encoded.latents if kind == "AutoencoderTiny" else encoded.latent
        decoded = model.decode(z).sample.clamp(-1, 1)
    assert (vae.stride, vae.channels) == (STRIDES[kind], CHANNELS[kind])
    assert z.shape == (3, vae.channels, 16 // vae.stride, 24 // vae.stride)
    torch.testing.assert_close(vae.moments(x), moments, atol=1e-5, rtol=1e-4)
    latents = vae.latents(vae.moments(x))
    torch.testing.assert_close(latents, z * 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.decode(latents), decoded, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in vae.parameters()) and not vae.training


def test_latents_are_drawn_from_the_posterior(tiny):
    vae = Vae(tiny("AutoencoderKL"), "it", shift=(1.0,), scale=(2.0,))
    mean, std = torch.tensor([-1.0, 0.0, 2.0, 5.0]), torch.tensor([0.1, 1.0, 3.0, 0.5])
    moments = torch.cat([mean, 2 * std.log()])[None, :, None, None].expand(4, 8, 50, 50)
    drawn = vae.latents(moments, generator(0, "test"))
    assert torch.equal(drawn, vae.latents(moments, generator(0, "test")))
    torch.testing.assert_close(drawn.mean((0, 2, 3)), (mean - 1) * 2, atol=0.2, rtol=0.01)
    torch.testing.assert_close(drawn.std((0, 2, 3)), std * 2, atol=0.0, rtol=0.03)
    torch.testing.assert_close(vae.latents(moments)[:, :, 0, 0], ((mean - 1) * 2).expand(4, -1))
    low = torch.full((1, 8, 50, 50), -80.0)  # log variances are clamped to -30
    low[:, :4] = 1.0
    assert vae.latents(low, generator(0, "test")).std() == pytest.approx(2 * torch.tensor(-15.0).exp().item(), rel=0.05)


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 0.18215}, (0.0,), (0.18215,)),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, (0.0609,), (1.5305,)),
        (
            {"scaling_factor": 0.5, "latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 4.0, 0.5]},
            (0.0, 1.0, 2.0, 3.0),
            (0.5, 0.25, 0.125, 1.0),
        ),
    ],
)
def test_shift_and_scale_are_the_published_ones(tiny, tmp_path, config, shift, scale):
    tiny("AutoencoderKL", **config).save_pretrained(tmp_path)
    vae = from_pretrained(str(tmp_path))
    assert (vae.shift, vae.scale) == (shift, scale)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    z = vae.moments(x)[:, :4]
    by_channel = [(z[:, c] - shift[c % len(shift)]) * scale[c % len(scale)] for c in range(4)]
    torch.testing.assert_close(vae.latents(vae.moments(x)), torch.stack(by_channel, 1))
    torch.testing.assert_close(vae.decode(vae.latents(vae.moments(x))), vae.model.decode(z).sample.clamp(-1, 1))


def test_the_hash_is_of_the_weights(tiny):
    model = tiny("AutoencoderKL")
    before = Vae(model, "it").hash
    assert Vae(tiny("AutoencoderKL"), "elsewhere").hash == before and len(before) == 16
    with torch.no_grad():
        model.decoder.conv_out.bias[0] += 1e-6
    assert Vae(model, "it").hash != before


def test_a_pipelines_autoencoder_is_found(tiny, tmp_path):
    tiny("AutoencoderKL").save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    by_pipeline, by_folder = from_pretrained(str(tmp_path)), from_pretrained(str(tmp_path / "vae"))
    assert by_pipeline.hash == by_folder.hash


def test_what_is_no_image_autoencoder_is_refused(tiny, tmp_path):
    tiny("AutoencoderKL").save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="is UNet2DModel; image autoencoders are AutoencoderKL"):
        from_pretrained(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="'nobody/nothing' is no folder here, and cannot be loaded from the hub"):
        from_pretrained("nobody/nothing")
    with pytest.raises(ValueError, match="is not there; if it was moved, name its folder with --autoencoder"):
        from_pretrained(str(tmp_path / "gone"))
    tiny("AutoencoderKL").save_pretrained(tmp_path / "b")
    weights = tmp_path / "b" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="b' is damaged"):
        from_pretrained(str(tmp_path / "b"))
    shutil.rmtree(tmp_path / "b")


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs diffusers: pip install 'fluvial\[vae\]'"):
        from_pretrained("stabilityai/sd-vae-ft-ema")


def test_statistics_of_the_wrong_length_are_refused(tiny):
    with pytest.raises(ValueError, match="scale must be one number or one for each of 4 channels"):
        Vae(tiny("AutoencoderKL"), "it").standardised((0.0,), (1.0, 2.0))
    with pytest.raises(ValueError, match="pixels are not shifted or scaled"):
        Pixels().standardised((0.5,), (1.0,))
    with pytest.raises(ValueError, match="both shift and scale or neither"):
        AutoencoderConfig(shift=(1.0,))
    for wrong in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scale must be (above 0, shift and scale )?finite|scale must be above 0"):
            AutoencoderConfig(shift=(1.0,), scale=(wrong,))


def test_an_autoencoder_with_missing_or_damaged_weights_is_refused(tiny, tmp_path):
    tiny("AutoencoderKL").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "decoder.conv_in.weight"
    without = {key: value for key, value in weights.items() if key != name}
    for wrong, says in (
        (without, f"{name} is missing"),
        ({**weights, name: weights[name] * torch.nan}, f"{name} holds numbers that are not finite"),
    ):
        save_file(wrong, file, {"format": "pt"})
        with pytest.raises(ValueError, match=f"is damaged .*{says}"):
            from_pretrained(str(tmp_path))


def test_no_pickle_is_read(tiny, tmp_path):
    tiny("AutoencoderKL").save_pretrained(tmp_path, safe_serialization=False)
    assert [path.name for path in tmp_path.glob("*.bin")] == ["diffusion_pytorch_model.bin"]
    with pytest.raises(ValueError, match="has its weights in a .bin alone, a pickle") as refused:
        from_pretrained(str(tmp_path))
    assert "weights_only" not in str(refused.value)


def test_a_folder_that_is_no_autoencoder_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(ValueError, match=r"is no autoencoder: it has no config\.json; expected a folder of one of"):
        from_pretrained(str(tmp_path))
