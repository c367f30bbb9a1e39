"""The trajectories that a model is distilled from: drawn by its teacher, stored in the folder of the run, and read.

RUN/trajectories is a set of samples in parts, as `sampling/sets.py` describes it, whose latents have all points of a
trajectory, one after another along the first axis. Its last trajectories are for validation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fluvial.data.batches import shuffled
from fluvial.flow.timesteps import grid
from fluvial.sampling import WEIGHTS, forms, sets
from fluvial.sampling.labels import labels_for
from fluvial.sampling.plan import Plan
from fluvial.sampling.settings import SampleConfig
from fluvial.sampling.trajectories import trajectories
from fluvial.training.distributed import World
from fluvial.training.step import Batches
from fluvial.utils.files import check_room
from fluvial.utils.progress import Bar
from fluvial.utils.randomness import address
from fluvial.utils.tensors import check_tensors

HELD_OUT = 256  # trajectories for validation, at most a tenth of those for training
SHARD, PARTS = 500, 16  # trajectories in a part at most, and parts at least
Points = tuple[Float[Tensor, "b k ..."], Int[Tensor, "b"] | None]
"""The points of trajectories, from noise to data, and their labels."""


@dataclass(frozen=True)
class Trajectories:
    """A teacher's trajectories in `steps` steps: `count` to train on, and some for validation."""

    model: nn.Module
    sample: Callable[..., Tensor]
    """The sampler of the teacher's method."""
    settings: SampleConfig
    about: Mapping[str, Any]
    """The provenance of the teacher's samples, with the checksum of its weights."""
    steps: int
    count: int
    """0 for new ones whenever some are asked for."""
    folder: Path
    run_seed: int
    """Seed of the run that learns from them: of their noise, and of the order in training."""

    @property
    def held_out(self) -> int:
        """The number of trajectories for validation."""
        return min(HELD_OUT, max(1, self.count // 10)) if self.count else HELD_OUT

    @property
    def _config(self) -> Any:  # noqa: ANN401 - each method has a Config of its own
        return self.model.config

    @cached_property
    def seed(self) -> int:
        """The seed of the noise that they start from, apart from those of samples."""
        return address(self.run_seed, "trajectories")

    @cached_property
    def plan(self) -> Plan:
        """The plan of the stored set."""
        sampling = {**self.about["sampling"], "seed": self.seed, "points": self.steps + 1}
        *lead, height, width = self._config.noise_shape
        total = self.count + self.held_out
        return Plan(
            form="latents",
            count=total,
            shard=min(SHARD, -(-total // PARTS)),
            shape=((self.steps + 1) * prod(lead), height, width),
            classes=tuple(range(self._config.classes)),
            weights_sha256=self.about[WEIGHTS],
            about={**self.about, "sampling": sampling},
        )

    def check_room(self) -> None:
        """Raises ValueError if the disk has no room for them."""
        check_room(self.folder, self.plan.bytes, what=f"{self.count:,} trajectories", advice="or take fewer")

    def make(self, world: World) -> None:
        """Draws those that are not stored yet; ranks share the work. Raises ValueError for a folder of others."""
        if not self.count:
            return
        with self._naming_the_remedy():
            plan = sets.begin(self.folder, self.plan)
            world.barrier()
            self._make_parts(plan, world)
            world.barrier()
            if world.first:
                sets.finish(self.folder, plan)
        world.barrier()

    @contextmanager
    def _naming_the_remedy(self) -> Iterator[None]:
        """Errors of a damaged folder, with what helps."""
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"{error}. Or remove {self.folder}: the same command draws the trajectories again"
            ) from error

    def _make_parts(self, plan: Plan, world: World) -> None:
        """Draws the parts of this rank that are not there."""
        mine = range(world.rank, plan.parts, world.size)
        lacking = sorted(set(mine) & set(sets.missing(self.folder, plan)))
        total = sum(len(plan.part(number)) for number in mine)
        there = total - sum(len(plan.part(number)) for number in lacking)
        with Bar(total, there, what="trajectories", quiet=not world.first) as bar:
            for number in lacking:
                points, nfe = self._drawn(plan.part(number), bar, there)
                there += len(points)
                sets.write_part(self.folder, plan, number, points.flatten(1, -3), nfe)

    def drawn(self, indices: Sequence[int], *, seed: int | None = None) -> Points:
        """The trajectories of these indices, drawn now, on the CPU."""
        points, _ = self._drawn(indices, seed=seed)
        return points, labels_for(indices, self.plan.classes)

    def _drawn(
        self, indices: Sequence[int], bar: Bar | None = None, before: int = 0, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "b k ..."], dict[str, int]]:
        """Points, and evaluations of the network for each trajectory."""
        labels, found, nfe = labels_for(indices, self.plan.classes), list[Tensor](), {}
        drawn = trajectories(
            self.model,
            self.sample,
            self.settings,
            grid(self.steps).tolist(),
            parts=[indices],
            labels=[] if labels is None else [labels],
            seed=self.seed if seed is None else seed,
        )
        for batch, points in drawn:
            found.append(points.float().cpu())
            nfe = dict(batch.nfe)  # the same for every one, as the solver has given steps
            if bar is not None:
                bar.show(before + sum(map(len, found)))
        return torch.cat(found), nfe

    def batches(self, batch: int, share: Callable[[int], slice], order: int) -> Batches:
        """This rank's part of the batch of each step: stored trajectories in shuffled order, or new ones."""
        seed = address(self.run_seed, "trajectories", "order", order)

        def at(step: int) -> Points:
            if not self.count:
                return self.drawn(range(step * batch, (step + 1) * batch)[share(batch)])
            return self._stored(shuffled(self.count, seed, step, batch)[share(batch)].tolist())

        return at

    def validation(self) -> Points:
        """Those for validation."""
        if not self.count:
            return self.drawn(range(self.held_out), seed=address(self.seed, "validation"))
        return self._stored(range(self.count, self.count + self.held_out))

    def _stored(self, indices: Sequence[int]) -> Points:
        shape = (self.steps + 1, *self._config.noise_shape)
        shard = self.plan.shard
        points = torch.stack([self._parts[i // shard][i % shard] for i in indices])
        return points.unflatten(1, shape[:-2]), labels_for(indices, self.plan.classes)

    @cached_property
    def _parts(self) -> list[Tensor]:
        """The stored parts, mapped into memory. Raises ValueError, naming the file, if one was altered."""
        found = list[Tensor]()
        with self._naming_the_remedy():
            parts = sets.parts_of(sets.complete_record(self.folder))
        for part in parts:
            file = self.folder / forms.names("latents", part.number, ())[0]
            try:
                if faults := sets.faults(self.folder, self.plan, part):
                    check_tensors(file)  # tells a damaged file from one of another set
                    raise ValueError("; ".join(faults))
                found.append(load_file(file)["latents"])
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                raise ValueError(
                    f"{error}; remove {file}, and the same command draws these trajectories again"
                ) from error
        return found
