"""Recipes for CIFAR-10, 32 x 32 pixels, 256 tokens per image: sized for twenty minutes on one GPU."""

from dataclasses import replace

from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.flow.guidance import Guidance
from fluvial.methods import arflow, flowar, sit
from fluvial.sampling.settings import SampleConfig
from fluvial.training.config import TrainConfig
from fluvial.training.optim import OptimConfig

DATA = DataConfig(name="uoft-cs/cifar10", size=32, flip=True)
SHAPE = {"size": (32, 32), "channels": 3, "classes": 10}
OPTIM = OptimConfig(lr=4e-4, warmup=500, schedule="cosine", clip="norm", clip_at=1.0)
SAMPLE = SampleConfig(solver="ab2", steps=20, guidance=Guidance(weight=1.5, interval=(0.1, 1.0)))  # docs/nfe.md


def cifar10_sit() -> Run:
    """SiT-S/2 on CIFAR-10: 32M parameters, 16,000 steps of 128 images, 41 epochs.

    `fluvial train cifar10-sit` takes the data from the hub; `--data.path train.parquet --data.test-path test.parquet`
    from this machine. 36 GFLOP an image in training make twenty minutes at 60 TFLOP/s; not yet run on a GPU.
    `--smoke` tests everything with a small model, in about a minute on a CPU.
    """
    return Run(method=sit.preset("S/2", **SHAPE), data=DATA, optim=OPTIM, train=_train(batch=128), sample=SAMPLE)


def cifar10_arflow() -> Run:
    """ARFlow-S/2 on CIFAR-10: 34M parameters, 16,000 steps of 25 sequences of 5 images, 40 epochs.

    Data, cost and `--smoke` as for cifar10-sit; not yet run on a GPU.
    """
    return Run(method=arflow.preset("S/2", **SHAPE), data=DATA, optim=OPTIM, train=_train(batch=25), sample=SAMPLE)


def cifar10_flowar() -> Run:
    """FlowAR on CIFAR-10, maps of 1 to 16 x 16 tokens of 2 x 2 pixels: 44M parameters, 8,000 steps of 128 images.

    Data and `--smoke` as for cifar10-sit. Twenty epochs, as an image costs two and a half times SiT's: twenty minutes
    at 77 TFLOP/s; not yet run on a GPU.
    """
    method = flowar.preset(
        "S",
        **SHAPE,
        patch=2,
        scales=(1, 2, 4, 8, 16),
        width=384,
        heads=6,
        head_depth=4,
        head_width=384,
        head_heads=6,
        dropout=0.0,
    )
    sample = replace(SAMPLE, steps=(32, 26, 20, 14, 8))
    return Run(method=method, data=DATA, optim=OPTIM, train=_train(batch=128, steps=8_000), sample=sample)


def _train(batch: int, steps: int = 16_000) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch=batch,
        precision="bf16",
        compile=True,
        ema_decay=0.999,
        ema_warmup=True,
        log_every=100,
        save_every=2000,
        validate_every=1000,
        sample_every=2000,
    )
