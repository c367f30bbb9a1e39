# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Evaluate and compare
#
# Is one model better than another? Three things decide whether the answer holds: the same noise for both, a standard
# error, and what real images would score. No number here is an FID, which is a distance in the features of one network.

# %%
from dataclasses import replace

import torch

import fluvial
from fluvial.utils import pictures


def trained(recipe: str, steps: int) -> fluvial.Sampler:
    """The recipe with fewer steps."""
    run = fluvial.recipes.get(recipe)
    return fluvial.train(replace(run, train=replace(run.train, steps=steps, sample_every=0)), f"runs/compared-{recipe}")


sit, flowar = trained("digits-sit", 300), trained("digits-flowar", 300)
samplers = {"SiT": sit, "FlowAR": flowar}

# %%
pictures.grid(torch.cat([sampler.sample(10, seed=3).images for sampler in samplers.values()]), 10)

# %% [markdown]
# ## Scores
#
# Beside each stands what other real images score, as many or as many as there are: no model is expected to do better.

# %%
cards = {name: fluvial.score(sampler, count=500) for name, sampler in samplers.items()}
for name, card in cards.items():
    print(name)
    for score in ("frechet_distance", "class_accuracy", "recall"):
        found = card["scores"][score]
        real = f", real images {found['real']:.3f}" if "real" in found else ""
        print(f"    {score:18} {found['value']:.3f} ± {found['error']:.3f}{real}")

# %% [markdown]
# A difference counts if it is more than twice its error. The errors of two independent scores add as squares.

# %%
one, two = (card["scores"]["frechet_distance"] for card in cards.values())
difference, error = two["value"] - one["value"], (one["error"] ** 2 + two["error"] ** 2) ** 0.5
verdict = "no difference seen" if abs(difference) < 2 * error else "better" if difference < 0 else "worse"
print(f"{difference:+.3f} ± {error:.3f}: {verdict}")

# %% [markdown]
# ## How many samples?
#
# The Fréchet distance of few samples is too high, as their covariance is: compare at equal counts alone.

# %%
for count in (100, 300, 1000):
    found = fluvial.score(flowar, count=count)["scores"]["frechet_distance"]
    print(f"{count:5} samples: {found['value']:.3f} ± {found['error']:.3f}")

# %% [markdown]
# ## Guidance trades one for the other
#
# More of it makes images more typical (class accuracy) and less varied (recall): a single score does not show that.

# %%
for weight in (1.0, 2.0, 4.0):
    scores = fluvial.score(flowar, count=500, guidance=weight)["scores"]
    accuracy, recall = scores["class_accuracy"]["value"], scores["recall"]["value"]
    print(f"guidance {weight}: class accuracy {accuracy:.3f}, recall {recall:.3f}")

# %% [markdown]
# For more than two runs, with seeds: `fluvial study` trains them for equal seconds and writes a page
# (docs/studies.md).
