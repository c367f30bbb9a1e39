"""The handwritten digits of scikit-learn, 8 x 8 pixels: minutes on two CPU cores."""

from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.generate import SampleConfig
from fluvial.guidance import Guidance
from fluvial.methods import arflow, sit
from fluvial.train.loop import TrainConfig
from fluvial.train.optim import OptimConfig

SHAPE = {"size": (8, 8), "channels": 1, "classes": 10, "patch": 4, "depth": 3, "width": 128, "heads": 4}
OPTIM = OptimConfig(lr=2e-3, warmup=100, schedule="cosine", clip="norm", clip_at=1.0)
SAMPLE = SampleConfig(solver="ab2", steps=20, guidance=Guidance(weight=1.5))


def digits_arflow() -> Run:
    """ARFlow on the digits."""
    return Run(
        method=arflow.Config(**SHAPE),
        data=DataConfig(name="digits"),
        optim=OPTIM,
        train=TrainConfig(
            steps=1200, batch=32, ema_decay=0.99, log_every=50, save_every=200, eval_every=200, sample_every=200
        ),
        sample=SAMPLE,
    )


def digits_sit() -> Run:
    """SiT on the digits."""
    return Run(
        method=sit.Config(**SHAPE),
        data=DataConfig(name="digits"),
        optim=OPTIM,
        train=TrainConfig(
            steps=1200, batch=160, ema_decay=0.99, log_every=50, save_every=200, eval_every=200, sample_every=200
        ),
        sample=SAMPLE,
    )
