"""Recipes of the published ImageNet runs: SiT and ARFlow on Stable Diffusion's latents, FlowAR on MAR's.

Images and the first autoencoder come from the Hugging Face hub, or from --data.path and --autoencoder.name; KL-16 is
MAR's file kl16.ckpt. SiT and ARFlow train on centre crops, which `fluvial encode` can cache:

    fluvial encode IMAGENET --autoencoder stabilityai/sd-vae-ft-ema --image-size 256 --out latents/imagenet-256
    fluvial train imagenet256-arflow-xl2 --data.path latents/imagenet-256

FlowAR trains on random crops, encoded at every step as in its release.
"""

from dataclasses import replace
from typing import Any

from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import EulerMaruyama, SampleConfig
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig

IMAGENET = DataConfig(name="ILSVRC/imagenet-1k", size=256, flip=True)
AUTOENCODER = AutoencoderConfig(name="stabilityai/sd-vae-ft-ema")  # 4 channels, stride 8
KL16 = AutoencoderConfig(name="kl16.ckpt")  # MAR's: 16 channels, stride 16
# The SDE sampler of the releases: 249 Euler-Maruyama steps and a last step of 0.04 by the mean; 3 guided channels.
# SiT's release evaluates its network twice a step.
SAMPLE = SampleConfig(
    solver=EulerMaruyama(diffusion="sigma", last_step="mean", last_step_size=0.04),
    steps=250,
    guidance=Guidance(weight=1.5, channels=3),
    batch=32,
)


def imagenet128_arflow_xl2() -> Run:
    """ARFlow-XL/2 on ImageNet at 128 pixels (arXiv 2501.16085 v1): 712M parameters, 400k steps.

    The paper reports an FID of 14.08 without and 4.34 with guidance 1.5; neither has been reproduced with this library.
    Its batch is unknown, and cannot be the default of the released script (8 sequences): 400k steps would be 12 epochs.
    This recipe uses SiT's 256, as sequences of 5. Needs a GPU.
    """
    return _arflow(128, steps=400_000)


def imagenet256_arflow_xl2() -> Run:
    """ARFlow-XL/2 on ImageNet at 256 pixels (arXiv 2501.16085 v2): 712M parameters, 2.6M steps.

    The paper reports an FID of 6.63 without and 1.96 with guidance 1.5; neither has been reproduced with this library.
    The paper's batch is unknown; this recipe uses SiT's 256, as sequences of 5. Needs a GPU.
    """
    return _arflow(256, steps=2_600_000)


def imagenet256_sit_xl2() -> Run:
    """SiT-XL/2 on ImageNet at 256 pixels (arXiv 2401.08740): 675M parameters, 7M steps of 256 images.

    The paper reports an FID of 8.3 without and 2.06 with guidance 1.5 (SDE sampler); neither has been reproduced with
    this library. Needs a GPU.
    """
    return Run(
        method=sit.preset("XL/2", size=(32, 32), channels=4, classes=1000),
        data=IMAGENET,
        autoencoder=AUTOENCODER,
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, clip="none"),
        train=TrainConfig(steps=7_000_000, batch=256, ema_decay=0.9999, save_every=50_000, precision="tf32"),
        sample=SAMPLE,
    )


def _arflow(side: int, *, steps: int) -> Run:
    """ARFlow-XL/2 at `side` pixels with the released training settings."""
    return Run(
        method=arflow.preset("XL/2", size=(side // 8,) * 2, channels=4, classes=1000, images_per_sequence=5),
        data=replace(IMAGENET, size=side),
        autoencoder=AUTOENCODER,
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.02, clip="value", clip_at=3.0),
        train=TrainConfig(steps=steps, batch=256, ema_decay=0.9999, save_every=10_000, precision="tf32"),
        sample=SAMPLE,
    )


EPOCH = 1251  # steps of 1,024 over 1,281,167 images


def imagenet256_flowar_s() -> Run:
    """FlowAR-S on ImageNet at 256 pixels (arXiv 2412.15205): 172M parameters, 400 epochs of 1,024 images a step.

    The paper reports an FID of 3.61, not reproduced with this library. Guidance 4.3 on a ramp over the scales and 24
    steps a scale (its "25") are the release's. Needs a GPU.
    """
    return _flowar("S", weight=4.3)


def imagenet256_flowar_b() -> Run:
    """FlowAR-B on ImageNet at 256 pixels (arXiv 2412.15205): 290M parameters, 400 epochs of 1,024 images a step.

    The paper reports an FID of 2.90, not reproduced with this library. B was never released: its heads and its
    sampling settings (those of L) are our choice. Needs a GPU.
    """
    return _flowar("B", weight=2.4)


def imagenet256_flowar_l() -> Run:
    """FlowAR-L on ImageNet at 256 pixels (arXiv 2412.15205): 587M parameters, 400 epochs of 1,024 images a step.

    The paper reports an FID of 1.90, not reproduced with this library. Needs a GPU.
    """
    return _flowar("L", weight=2.4, activation_checkpointing=1)


def imagenet256_flowar_h() -> Run:
    """FlowAR-H on ImageNet at 256 pixels (arXiv 2412.15205): 1.9B parameters, 400 epochs of 1,024 images a step.

    The paper reports an FID of 1.65, not reproduced with this library. The head has the release's 12 blocks; the paper
    says 18. Needs GPUs.
    """
    sample = replace(_flowar_sampling(2.4, up_to=0.7), grid="uniform", steps=50)
    return replace(_flowar("H", weight=2.4, activation_checkpointing=1), sample=sample)


def imagenet512_flowar_l() -> Run:
    """FlowAR-L on ImageNet at 512 pixels, with settings of our choice, as the paper gives only a result.

    Scales 1 to 32 over the 32 x 32 latent, all else as at 256 pixels. The paper reports an FID of 2.43, not reproduced
    with this library. Needs GPUs.
    """
    run = _flowar("L", weight=2.4, activation_checkpointing=1, size=(32, 32), scales=(1, 2, 4, 8, 16, 32))
    return replace(run, data=replace(run.data, size=512))


def _flowar(name: str, *, weight: float, activation_checkpointing: int = 0, **method: Any) -> Run:  # noqa: ANN401
    """The settings of the paper's Table 6, shared by all sizes, and otherwise (decay, EMA, dropout) the release's."""
    return Run(
        method=flowar.preset(name, **method),
        data=replace(IMAGENET, crop="random"),
        autoencoder=KL16,
        optim=OptimConfig(
            lr=2e-4,
            betas=(0.9, 0.95),
            weight_decay=0.02,
            warmup=100 * EPOCH,
            schedule="cosine",
            final_lr=1e-5,
            clip="norm",
            clip_at=1.0,
        ),
        train=TrainConfig(
            steps=400 * EPOCH,
            batch=1024,
            save_every=10_000,
            precision="tf32",
            activation_checkpointing=activation_checkpointing,
        ),
        sample=_flowar_sampling(weight, up_to=0.9),
    )


def _flowar_sampling(weight: float, *, up_to: float) -> SampleConfig:
    """The release's sampler: Euler on the two-piece grid, guided where the noise level is at most `up_to`."""
    guidance = Guidance(weight=weight, ramp="linear", interval=(round(1 - up_to, 6), 1.0))
    return SampleConfig(solver="euler", steps=24, grid="two-piece", guidance=guidance, batch=64)
