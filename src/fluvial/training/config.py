"""The settings of the training loop."""

from dataclasses import dataclass
from typing import Literal

from fluvial.flow.guidance import GuidanceWeight
from fluvial.training import power_ema
from fluvial.training.distributed import Parallel
from fluvial.training.log import LogTo
from fluvial.utils.checks import as_declared, at_least, setting
from fluvial.utils.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The number of steps that a model was distilled to, and its teacher, as `fluvial distill` sets them."""

    steps: int = 0
    """Steps that it samples in; 0 for a model that is trained on images."""
    trajectories: int = 0
    """Number of trajectories it learns from; 0 for new ones in every step."""
    images: bool = False
    """It learns from images, and from no trajectories."""
    teacher: str = ""
    """Folder, step and weights of the model that drew them."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(0, self, "steps", "trajectories")

    @property
    def told(self) -> str:
        """The number of steps and the teacher, in words."""
        on = " on images" if self.images else ""
        return f"to {self.steps} step{'s' if self.steps > 1 else ''}{on}, from {self.teacher}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = setting(400_000, changeable=True)  # more than were taken: RunFolder.check
    """Optimizer steps in all. A run that is given more goes on, on the learning rate's schedule of the new number."""
    batch: int = 256
    """Examples a step over all micro-batches: images, or for ARFlow sequences of images."""
    accumulate: int = 1
    """Micro-batches a step is split into, to save memory; the result is the same to rounding."""
    precision: Precision = "fp32"
    """tf32 allows it in matrix products on a GPU (released ARFlow and FlowAR); bf16 runs them under autocast, while
    weights, residual streams, time embeddings and ARFlow's history stay float32, with products in tf32 on a GPU."""
    guidance: GuidanceWeight = GuidanceWeight()
    """Guidance that the model learns to have by itself, so that sampling needs no null branch (arXiv 2502.12154); every
    weight is at least 1, which is none."""
    distillation: Distillation = Distillation()
    """What the model is distilled to and from; set by `fluvial distill`."""
    compile: bool = False
    """Compile each block with torch.compile: a minute at the start, faster steps after."""
    activation_checkpointing: int = setting(0, changeable=True)
    """Recompute the activations of every k-th block in the backward pass, to save memory: 1 for all, 0 for none."""
    parallel: Parallel = setting("auto", changeable=True)  # a step is the same on any number of ranks
    """Under torchrun: ddp keeps all on every rank, fsdp shards weights, gradients, optimizer and average inside a node
    and copies them over nodes; auto takes ddp where the training state fits in half of the memory."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, each step."""
    ema_warmup: bool = False
    """Decay of step n at most (1 + n) / (10 + n), so that a short run is not averaged with its first weights; of
    ema_decays too. The releases keep the decay constant."""
    ema_decays: tuple[float, ...] = ()
    """Further averages, kept in the checkpoints beside the first."""
    ema_lengths: tuple[float, ...] = ()
    """Power-function averages (EDM2) by their relative length: the standard deviation of the average over the steps so
    far, as a share of them; EDM2 keeps 0.05 0.1. Snapshots go to RUN/ema, so that `fluvial ema` makes any other."""
    ema_every: int = 0
    """Steps between such snapshots; a 32nd of all steps by default."""
    ema_device: Literal["", "cpu"] = setting("", changeable=True)
    """Where the averages live: with the weights, or in host memory, which is slower."""
    patience: int = setting(10, changeable=True)
    """Steps that are not finite in a row, each of them skipped, before training goes back to the last checkpoint."""
    log_every: int = setting(100, changeable=True)
    """Steps between lines of the log."""
    blocks_every: int = setting(1000, changeable=True)
    """Steps between gradient norms and update sizes of every block in the log; 0 for never."""
    log_to: tuple[LogTo, ...] = setting((), changeable=True)
    """Where the log goes besides log.jsonl: tensorboard, wandb, trackio."""
    save_every: int = setting(10_000, changeable=True)
    """Steps between checkpoints."""
    keep: int = setting(2, changeable=True)
    """Number of the newest checkpoints that stay on disk."""
    keep_every: int = setting(0, changeable=True)
    """Checkpoints of steps that this divides stay too; 0 for none."""
    keep_best: bool = setting(False, changeable=True)
    """Also keep the checkpoint with the lowest validation loss, of those whose step has one."""
    validate_every: int = setting(10_000, changeable=True)
    """Steps between validation losses; 0 for never."""
    score_every: int = setting(0, changeable=True)
    """Steps between scores of samples against validation images; 0 for never."""
    score_count: int = setting(500, changeable=True)
    """Samples of such a score."""
    score_extractor: str = setting("pixels", changeable=True)
    """The features of such a score: pixels, inception, efficientnet-lite0, dinov2, clip."""
    sample_every: int = setting(10_000, changeable=True)
    """Steps between sample grids; 0 for never."""
    first_sample: int = setting(0, changeable=True)
    """Step of the first sample grid, and then at twice, four times, ... of it, until sample_every is reached; 0 leaves
    those out."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(1, self, "steps", "batch", "accumulate", "log_every", "save_every", "keep", "patience")
        at_least(0, self, "validate_every", "sample_every", "score_every", "blocks_every", "keep_every", "first_sample")
        at_least(2, self, "score_count")
        at_least(0, self, "ema_every", "activation_checkpointing")
        power_ema.check_lengths(self.ema_lengths)
        if min(self.guidance.weight, *self.guidance.scale_weights, 1.0) < 1:
            raise ValueError(f"guidance is learned with weights of at least 1 (none), got {self.guidance.told}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be split evenly into accumulate {self.accumulate}")
        if not all(0 <= decay < 1 for decay in (self.ema_decay, *self.ema_decays)):
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay} {self.ema_decays}")

    def is_first_sample(self, step: int) -> bool:
        """True at first_sample, and at twice, four times, ... of it below sample_every."""
        if not self.first_sample or step >= self.sample_every:
            return False
        times, rest = divmod(step, self.first_sample)
        return rest == 0 and times.bit_count() == 1

    @property
    def snapshot_every(self) -> int:
        return self.ema_every or max(1, self.steps // 32)
