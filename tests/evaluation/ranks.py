"""What the processes of the test of many ranks run: statistics of the digits. Not a test itself."""

import sys
from pathlib import Path

import torch

from fluvial.evaluation.opening import open_images
from fluvial.evaluation.statistics import save, statistics
from fluvial.metrics.features import Extractor, Features
from fluvial.training import distributed


def features(images):
    x = images.flatten(1).float() / 127.5 - 1
    return Features(x, x[:, 20:40], x[:, 30:40])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.world(torch.device("cpu"), timeout=60) as (world, _):
        seen = []
        look = Extractor(name="mine", hash="", resize="", extract=lambda images: seen.append(1) or features(images))
        found = statistics(open_images("digits:test").some(int(sys.argv[2])), look, batch=50, kept=100, world=world)
        assert found.classes is not None
        if world.first:
            score = " ".join(str(float(part.sum())) for part in found.classes)
            save(found, Path(sys.argv[1]), {"classes": score, "seen": str(len(seen))})
