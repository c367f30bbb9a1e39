# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # ARFlow's history and FlowAR's scales, taken apart
#
# Both methods join autoregression with flow matching, in two places. ARFlow's sequence is its own trajectory: each
# point of the solver is the next image, and linear attention reads the ones before. FlowAR's sequence is the scales of
# one image, and a flow draws each. Here both are trained for less than a minute on 8 x 8 digits and opened.

# %%
from dataclasses import replace

import torch

import fluvial
from fluvial.sampling.samples import Samples
from fluvial.utils import pictures


def trained(recipe: str, steps: int) -> fluvial.Sampler:
    """The recipe with fewer steps."""
    run = fluvial.recipes.get(recipe)
    return fluvial.train(replace(run, train=replace(run.train, steps=steps, sample_every=0)), f"runs/short-{recipe}")


arflow, flowar = trained("digits-arflow", 300), trained("digits-flowar", 300)

# %% [markdown]
# ## ARFlow: the trajectory
#
# A row for each third step: what the step expects the finished images to be. It is decided early which digit is drawn,
# and late how. The estimate costs no evaluation of the network.

# %%
rows = [step.images for step in arflow.steps(10, seed=3)]
pictures.grid(torch.cat([*rows[::3], rows[-1]]), 10)

# %% [markdown]
# ## ARFlow: without its history
#
# `history` is how many points of the trajectory are read. The same noise, with all of them, with the last alone, and
# with none: the network was trained with a history, and draws worse without.

# %%
settings = arflow.run.sample
by_history = {points: arflow.sample(10, seed=3, settings=replace(settings, history=points)) for points in (None, 1, 0)}
pictures.grid(torch.cat([samples.images for samples in by_history.values()]), 10)


# %%
def distance(one: Samples, other: Samples) -> float:
    """The mean absolute difference of two sets of images, of 255."""
    return float((one.images.float() - other.images.float()).abs().mean())


for points, samples in by_history.items():
    name = "all points" if points is None else f"{points} points"
    print(f"history of {name}: {distance(samples, by_history[None]):.1f} of 255 from that of all")

# %% [markdown]
# ## FlowAR: the scales
#
# The first row is drawn from 1 x 1 tokens, the last from all. Each scale is drawn by a flow of its own, from new noise,
# given those before. A row is the last estimate of its scale.

# %%
last = {step.scale: step.images for step in flowar.steps(10, seed=3)}
print(", ".join(filter(None, last)))
pictures.grid(torch.cat([images for scale, images in last.items() if scale]), 10)

# %% [markdown]
# ## Where the evaluations go
#
# Steps can be given for each scale: coarse ones cost little, as they have few tokens.

# %%
scales = len(flowar.run.method.sizes)
for steps in (4, 12, [12] * (scales - 1) + [4]):
    samples = flowar.sample(100, seed=3, steps=steps)
    evaluations, seconds = sum(samples.nfe.values()), sum(samples.seconds.values())
    print(f"steps {steps}: {evaluations} evaluations, {seconds:.2f} s for 100 images")
