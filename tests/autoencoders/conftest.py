import pytest
import torch


@pytest.fixture(scope="session")
def tiny():
    """Makes small random diffusers autoencoders by kind: AutoencoderKL, AutoencoderTiny, AutoencoderDC."""
    diffusers = pytest.importorskip("diffusers")

    def make(kind, **config):
        torch.manual_seed(0)
        shapes = {
            "AutoencoderKL": {
                "block_out_channels": (8, 8, 16),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
                "norm_num_groups": 4,
            },
            "AutoencoderTiny": {
                "encoder_block_out_channels": (8, 8),
                "decoder_block_out_channels": (8, 8),
                "num_encoder_blocks": (1, 1),
                "num_decoder_blocks": (1, 1),
            },
            "AutoencoderDC": {
                "encoder_block_out_channels": (8, 8, 16, 16),
                "decoder_block_out_channels": (8, 8, 16, 16),
                "encoder_layers_per_block": (0, 1, 1, 1),
                "decoder_layers_per_block": (0, 1, 1, 1),
                "encoder_qkv_multiscales": ((), (), (), ()),
                "decoder_qkv_multiscales": ((), (), (), ()),
                "latent_channels": 8,
                "attention_head_dim": 8,
            },
        }
        return getattr(diffusers, kind)(**{**shapes[kind], **config}).eval()

    return make
