"""The settings of the training loop."""

from dataclasses import dataclass
from typing import Literal

from fluvial.training import power_ema
from fluvial.training.distributed import Parallel
from fluvial.training.log import LogTo
from fluvial.utils.checks import as_declared, at_least
from fluvial.utils.precision import Precision


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 400_000
    """Optimizer steps."""
    batch: int = 256
    """Examples a step over all micro-batches: images, or for ARFlow sequences of images."""
    accumulate: int = 1
    """Micro-batches a step is split into, to save memory; the result is the same to rounding."""
    precision: Precision = "fp32"
    """tf32 allows it in matrix products on a GPU (released ARFlow and FlowAR); bf16 runs them under autocast, while
    weights, residual streams, time embeddings and ARFlow's history stay float32, with products in tf32 on a GPU."""
    compile: bool = False
    """Compile each block with torch.compile: a minute at the start, faster steps after."""
    recompute: int = 0
    """Recompute every k-th block in the backward pass, to save memory: 1 for all, 0 for none."""
    parallel: Parallel = "auto"
    """Under torchrun: ddp keeps all on every rank, fsdp shards weights, gradients, optimizer and average inside a node
    and copies them over nodes; auto takes ddp where the training state fits in half of the memory."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, each step."""
    ema_decays: tuple[float, ...] = ()
    """Further averages, kept in the checkpoints beside the first."""
    ema_lengths: tuple[float, ...] = ()
    """Power-function averages whose snapshots go to RUN/ema, so that `fluvial ema` makes one of any length: 0.05 0.1
    are EDM2's. The length is the spread of the average over the steps so far, as a share of them."""
    ema_every: int = 0
    """Steps between such snapshots; a 32nd of all steps by default."""
    ema_device: Literal["", "cpu"] = ""
    """Where the averages live: with the weights, or in host memory, which is slower."""
    patience: int = 10
    """Steps that are not finite in a row, each of them skipped, before training goes back to the last checkpoint."""
    log_every: int = 100
    """Steps between lines of the log."""
    blocks_every: int = 1000
    """Steps between gradient norms and update sizes of every block in the log; 0 for never."""
    log_to: tuple[LogTo, ...] = ()
    """Where the log goes besides log.jsonl: tensorboard, wandb, trackio."""
    save_every: int = 10_000
    """Steps between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_every: int = 0
    """Checkpoints of steps that this divides stay too; 0 for none."""
    eval_every: int = 10_000
    """Steps between held-out losses; 0 for never."""
    score_every: int = 0
    """Steps between scores of samples against held-out images; 0 for never."""
    score_count: int = 500
    """Samples of such a score."""
    score_extractor: str = "pixels"
    """The features of such a score: pixels, inception, efficientnet-lite0, dinov2, clip."""
    sample_every: int = 10_000
    """Steps between sample grids; 0 for never."""

    def __post_init__(self) -> None:
        as_declared(self)
        at_least(1, self, "steps", "batch", "accumulate", "log_every", "save_every", "keep", "patience")
        at_least(0, self, "eval_every", "sample_every", "score_every", "blocks_every", "keep_every", "recompute")
        at_least(2, self, "score_count")
        at_least(0, self, "ema_every")
        power_ema.check_lengths(self.ema_lengths)
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be split evenly into accumulate {self.accumulate}")
        if not all(0 <= decay < 1 for decay in (self.ema_decay, *self.ema_decays)):
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay} {self.ema_decays}")

    @property
    def snapshot_every(self) -> int:
        return self.ema_every or max(1, self.steps // 32)
