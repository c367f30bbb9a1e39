"""Recipe for a folder of photos at 256 pixels, on the latents of a tiny autoencoder."""

from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.methods import flowar
from fluvial.sampling.settings import SampleConfig
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig


def photos_256() -> Run:
    """FlowAR-S at half its width on a folder of photos, 256 x 256 pixels, without labels.

    `fluvial train photos-256 --data.path PHOTOS` encodes the photos with TAESD (4 channels, stride 8), once, into
    latents/ in the run's folder, and trains on the latents: maps of 1 to 16 x 16 tokens of 2 x 2 latent pixels. With
    photos in class folders set --method.classes to their number. Not yet run on a GPU.
    """
    return Run(
        method=flowar.preset(
            "S", size=(32, 32), channels=4, classes=0, patch=2, width=384, heads=6, head_width=512, head_heads=8
        ),
        data=DataConfig(path="photos", size=256, flip=True, cache=True),
        autoencoder=AutoencoderConfig(name="madebyollin/taesd"),
        optim=OptimConfig(lr=4e-4, warmup=500, schedule="cosine", clip="norm", clip_at=1.0),
        train=TrainConfig(
            steps=20_000,
            batch=64,
            precision="bf16",
            ema_decay=0.999,
            ema_warmup=True,
            save_every=2000,
            validate_every=2000,
            sample_every=2000,
        ),
        sample=SampleConfig(solver="ab2", steps=25, batch=50),
    )
