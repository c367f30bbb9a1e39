import pytest
import torch
from safetensors.torch import save_file

from conftest import read_golden, shared
from fluvial.autoencoders import AutoencoderConfig, kl16
from fluvial.run.inputs import open_autoencoder


@pytest.fixture(scope="module")
def golden():
    pytest.importorskip("diffusers")
    return read_golden("kl16_tiny", shared("golden/kl16_tiny.safetensors").parent)


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_the_release_is_reproduced(golden):
    vae, expected = kl16.from_state_dict(golden.state_dict), golden.tensors
    assert (vae.channels, vae.stride, vae.scale) == (16, 16, (0.2325,))
    assert relative_error(vae.moments(expected["image"]), expected["moments"]) < 1e-4
    latents = vae.latents(expected["moments"])
    assert relative_error(latents, 0.2325 * expected["latent"]) < 1e-6
    decoded = vae.model.decode(latents / 0.2325).sample  # as the release does: not clamped
    assert relative_error(decoded, expected["decoded"]) < 1e-4
    assert relative_error(vae.decode(latents), expected["decoded"].clamp(-1, 1)) < 1e-4


def test_it_is_read_from_the_released_kind_of_file(golden, tmp_path):
    torch.save({"model": golden.state_dict}, tmp_path / "kl16.ckpt")
    save_file(golden.state_dict, tmp_path / "kl16.safetensors")
    vae = open_autoencoder(AutoencoderConfig(name=str(tmp_path / "kl16.ckpt")))
    assert vae.hash == kl16.load(tmp_path / "kl16.safetensors").hash == kl16.from_state_dict(golden.state_dict).hash


def test_the_scale_is_the_releases_or_given(golden):
    vae = kl16.from_state_dict(golden.state_dict, scale=0.5)
    torch.testing.assert_close(vae.latents(golden.tensors["moments"]), 0.5 * golden.tensors["latent"])


def test_what_it_was_trained_with_is_left_out(golden):
    with_loss = {**golden.state_dict, "loss.discriminator.weight": torch.zeros(1)}
    assert kl16.from_state_dict(with_loss).hash == kl16.from_state_dict(golden.state_dict).hash


def test_other_weights_are_refused(golden, tmp_path):
    weights = golden.state_dict
    with pytest.raises(ValueError, match="not the weights of KL-16: encoder.surprise is unknown"):
        kl16.from_state_dict({**weights, "encoder.surprise": torch.zeros(1)})
    without = {k: v for k, v in weights.items() if k != "decoder.conv_in.bias"}
    with pytest.raises(ValueError, match="decoder.conv_in.bias is missing"):
        kl16.from_state_dict(without)
    with pytest.raises(ValueError, match=r"quant_conv.weight \(2, 2\) does not give the model's \(32, 32, 1, 1\)"):
        kl16.from_state_dict({**weights, "quant_conv.weight": torch.zeros(2, 2)})
    halves = {k: v[: len(v) // 2].clone() for k, v in weights.items() if k.startswith("post_quant_conv")}
    with pytest.raises(ValueError, match="16 channels and 5 levels are expected, got 8 and 5"):
        kl16.from_state_dict({**weights, **halves})
    with pytest.raises(ValueError, match="give the folder that they are in"):
        kl16.from_state_dict({"encoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)})
    for part in ("encoder.", "decoder.", "decoder.up", "encoder.down.2", "post_quant_conv"):
        with pytest.raises(ValueError, match="not the weights of KL-16: (.* is missing|16 channels and 5 levels)"):
            kl16.from_state_dict({k: v for k, v in weights.items() if not k.startswith(part)})
    save_file({"linear.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors: not the weights of KL-16"):
        kl16.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="gone.ckpt does not exist"):
        kl16.load(tmp_path / "gone.ckpt")
