"""Recipes for the handwritten digits of scikit-learn, 8 x 8 pixels: minutes on two CPU cores."""

from dataclasses import replace

from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import SampleConfig
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig

SHAPE = {"size": (8, 8), "channels": 1, "classes": 10, "patch": 4, "depth": 3, "width": 128, "heads": 4}
OPTIM = OptimConfig(lr=2e-3, warmup=100, schedule="cosine", clip="norm", clip_at=1.0)
SAMPLE = SampleConfig(solver="ab2", steps=12, guidance=Guidance(weight=1.5))  # more steps do not help: docs/nfe.md


def digits_arflow() -> Run:
    """ARFlow on the handwritten digits: two minutes on one CPU core, class accuracy 0.999.

    `fluvial train digits-arflow`, then `fluvial score runs/digits-arflow`: class accuracy 0.999 and a Frechet distance
    of 0.73 over 1,000 samples (real digits: 0.993 and 0.30), with torch 2.13.0 on one core with AVX-512.
    """
    return Run(
        method=arflow.Config(**SHAPE),
        data=DataConfig(name="digits"),
        optim=OPTIM,
        train=TrainConfig(
            steps=1200, batch=32, ema_decay=0.99, log_every=50, save_every=200, validate_every=200, sample_every=200
        ),
        sample=SAMPLE,
    )


def digits_sit() -> Run:
    """SiT on the handwritten digits, with as many images per step as ARFlow: a minute and a half on one CPU core.

    `fluvial train digits-sit`, then `fluvial score runs/digits-sit`: class accuracy 1.0 and a Frechet distance of
    0.74 over 1,000 samples (real digits: 0.993 and 0.30), with torch 2.13.0 on one core with AVX-512.
    """
    return Run(
        method=sit.Config(**SHAPE),
        data=DataConfig(name="digits"),
        optim=OPTIM,
        train=TrainConfig(
            steps=1200, batch=160, ema_decay=0.99, log_every=50, save_every=200, validate_every=200, sample_every=200
        ),
        sample=SAMPLE,
    )


def digits_flowar() -> Run:
    """FlowAR on the handwritten digits, maps of 1, 2 x 2 and 4 x 4 tokens: two minutes on one CPU core.

    `fluvial train digits-flowar`, then `fluvial score runs/digits-flowar`: class accuracy 0.996 and Frechet distance
    0.81 over 1,000 samples (real digits: 0.993 and 0.30), with torch 2.13.0 on one core without AVX-512.
    """
    return Run(
        method=flowar.FlowARConfig(
            size=(8, 8),
            channels=1,
            classes=10,
            patch=2,
            scales=(1, 2, 4),
            depth=4,
            width=64,
            heads=2,
            head_depth=2,
            head_width=64,
            head_heads=2,
            dropout=0.0,
        ),
        data=DataConfig(name="digits"),
        optim=replace(OPTIM, lr=4e-3),
        train=TrainConfig(
            steps=1000, batch=64, ema_decay=0.99, log_every=50, save_every=200, validate_every=200, sample_every=200
        ),
        sample=replace(SAMPLE, steps=(32, 20, 8), guidance=Guidance(weight=1.4)),
    )
