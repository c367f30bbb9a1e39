"""The published ImageNet runs, on the latents of the Stable Diffusion autoencoder (4 channels, stride 8)."""

from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.generate import SampleConfig
from fluvial.guidance import Guidance
from fluvial.methods import arflow, sit
from fluvial.train.loop import TrainConfig
from fluvial.train.optim import OptimConfig

IMAGENET = DataConfig(name="ILSVRC/imagenet-1k", flip=True)
AUTOENCODER = "stabilityai/sd-vae-ft-ema"
# The SDE sampler of both releases: 249 Euler-Maruyama steps and one of 0.04 along the mean; three guided channels.
SAMPLE = SampleConfig(
    solver="euler-maruyama",
    steps=250,
    diffusion="sigma",
    last_step="mean",
    last_step_size=0.04,
    guidance=Guidance(weight=1.5, channels=3),
    batch=32,
)


def imagenet128_arflow_xl2() -> Run:
    """ARFlow-XL/2 on ImageNet at 128 pixels (arXiv 2501.16085 v1): 712M parameters, 400k steps.

    The paper reports an FID of 14.08 without and 4.34 with guidance 1.5; neither has been reproduced with this library.
    Its batch is not known, and the default of the released script (8 sequences) cannot be it: 400k steps of that would
    be 12 epochs. Ours is SiT's 256, in sequences of 5. Needs a GPU, and a data set and an autoencoder that this
    version cannot load yet.
    """
    return _arflow(size=(16, 16), steps=400_000)


def imagenet256_arflow_xl2() -> Run:
    """ARFlow-XL/2 on ImageNet at 256 pixels (arXiv 2501.16085 v2): 712M parameters, 2.6M steps.

    The paper reports an FID of 6.63 without and 1.96 with guidance 1.5; neither has been reproduced with this library.
    The batch is SiT's 256, in sequences of 5, as the paper's is not known. Needs a GPU, and a data set and an
    autoencoder that this version cannot load yet.
    """
    return _arflow(size=(32, 32), steps=2_600_000)


def imagenet256_sit_xl2() -> Run:
    """SiT-XL/2 on ImageNet at 256 pixels (arXiv 2401.08740): 675M parameters, 7M steps of 256 images.

    The paper reports an FID of 8.3 without and 2.06 with guidance 1.5 (SDE sampler); neither has been reproduced with
    this library. Needs a GPU, and a data set and an autoencoder that this version cannot load yet.
    """
    return Run(
        method=sit.preset("XL/2", size=(32, 32), channels=4, classes=1000),
        data=IMAGENET,
        autoencoder=AUTOENCODER,
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, clip="none"),
        train=TrainConfig(steps=7_000_000, batch=256, ema_decay=0.9999, save_every=50_000),
        sample=SAMPLE,
    )


def _arflow(*, size: tuple[int, int], steps: int) -> Run:
    return Run(
        method=arflow.preset("XL/2", size=size, channels=4, classes=1000, images_per_sequence=5),
        data=IMAGENET,
        autoencoder=AUTOENCODER,
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.02, clip="value", clip_at=3.0),
        train=TrainConfig(steps=steps, batch=256, ema_decay=0.9999, save_every=10_000),
        sample=SAMPLE,
    )
