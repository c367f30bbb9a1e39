"""What the processes of the tests of many ranks run: a small FlowAR or ARFlow on digits. Not a test itself."""

import os
import signal
import sys
import time
from dataclasses import replace

import torch

import fluvial
from fluvial import recipes


def main(out, settings):
    torch.set_num_threads(1)
    options = dict(setting.split("=") for setting in settings)
    recipe, hang, kills = options.pop("recipe", "digits-arflow"), options.pop("hang", None), options.pop("kills", "")
    if nodes := options.pop("nodes", None):  # as if the ranks were on several machines
        os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) // int(nodes))
    if hang is not None and os.environ["RANK"] == hang:
        time.sleep(600)
    run = recipes.smoke(recipes.get(recipe))
    train = {name: type(getattr(run.train, name))(value) for name, value in options.items()}
    run = replace(
        run,
        optim=replace(run.optim, schedule="constant", warmup=0),
        train=replace(run.train, **{"sample_every": 0, "log_every": 1, **train}),
    )
    if hasattr(run.method, "dropout"):
        run = replace(run, method=replace(run.method, dropout=0.0))
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    steps = [int(step) for step in kills.split(",") if step]
    if restart < len(steps) and int(os.environ["RANK"]) == restart % int(os.environ["WORLD_SIZE"]):
        _die_at(steps[restart])
    fluvial.train(run, out, device="cpu")


def _die_at(step):
    """This rank is gone, as by the kernel, in the middle of a step."""
    from fluvial.training import step as training

    backward = training._backward

    def dying(*arguments):
        dying.calls += 1
        if dying.calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(*arguments)

    dying.calls = 0
    training._backward = dying


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
