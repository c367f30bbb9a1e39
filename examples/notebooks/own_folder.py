# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own folder in ten minutes
#
# A folder of pictures, with a folder in it for each class, is all that is needed. Here it is made of scikit-learn's
# handwritten digits, so that this runs without a download; put the path of yours in its place.

# %%
from collections import Counter
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import fluvial

folder = Path("my-digits")
numbers, drawn = Counter(), load_digits()
for pixels, label in zip(drawn.images, drawn.target, strict=True):
    place = folder / f"class-{label}"
    place.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray((pixels * 15.9375).astype("uint8")).resize((16, 16), Image.Resampling.BICUBIC)
    picture.save(place / f"{numbers[label]:03}.png")
    numbers[label] += 1
sum(numbers.values()), sorted(path.name for path in folder.iterdir())

# %% [markdown]
# ## The plan
#
# `fluvial.plan` looks at the images, measures a few steps of training on this machine, and chooses the rest: each
# choice has its reason, and the option that changes it. A minute and a half makes this page; give your own images 10
# to 30 minutes.

# %%
plan = fluvial.plan(folder, minutes=1.5, settings={"train.log_every": 250})
for choice in plan.choices:
    print(f"{choice.what:14} {choice.chosen}\n{'':14} {choice.why}")

# %% [markdown]
# ## Training
#
# The same call goes on with a run that was interrupted. In a terminal, `fluvial train my-digits --minutes 1.5` plans
# and trains. The network that comes back has the averaged weights.

# %%
sampler = fluvial.train(plan.run, "runs/own-folder")

# %% [markdown]
# ## Images
#
# Ten for each class, row by row. Image i is decided by the seed, i and the class, whatever else is drawn with it.

# %%
samples = sampler.sample(50, seed=1)
samples.grid()

# %% [markdown]
# One class alone, with more guidance: more typical, and more alike.

# %%
sampler.sample(10, classes="class-3", guidance=3.0, seed=1).grid()

# %% [markdown]
# ## How good are they?
#
# The scores compare 500 samples with images that were held out, here in pixels, which is quick; by default in the
# features of a network. Each has a standard error. No number here is an FID.

# %%
card = fluvial.score(sampler, count=500, features="pixels")
for name in ("frechet_distance", "precision", "recall"):
    found = card["scores"][name]
    real = f", real images {found['real']:.3f}" if "real" in found else ""
    print(f"{name:18} {found['value']:.3f} ± {found['error']:.3f}{real}")

# %% [markdown]
# More minutes bring more: `fluvial train runs/own-folder --minutes 10` goes on from here. Then
# `fluvial report runs/own-folder` writes a page with curves and samples, and `fluvial studio` opens a playground.
