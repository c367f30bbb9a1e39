"""Learning rate, moving average, and settings that cannot work together."""

from collections.abc import Sequence

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.tools.doctor.check import Check, judge, not_checked
from fluvial.training.log import Row

RATE, BATCH, WIDTH = 1e-4, 256, 1152  # of AdamW in the published SiT-XL/2
FACTOR, FAR = 4.0, 16.0  # off the rule
EMA = (0.005, 0.2)  # averaging length over steps taken


def check_rate(run: Run) -> Check:
    """The peak rate against 1e-4 at 256 images, scaled with the batch or its root; narrow models take more."""
    images = run.images_per_step
    ratio, narrow = images / BATCH, max(1.0, WIDTH / run.method.width)
    rules = sorted((RATE * ratio, RATE * ratio**0.5))
    low, high = rules[0], rules[1] * narrow
    lr = run.optim.lr
    off = max(low / lr, lr / high)
    advice = f"the rule is 1e-4 at 256 images, times the ratio of batches ({ratio:.3g}) or its root, and up "
    advice += f"to {narrow:.2g} times more for a width of {run.method.width}, not {WIDTH}. "
    advice += "A rate so low learns slowly: raise optim.lr" if lr < low else "So high it may diverge: lower optim.lr"
    return Check(
        name="learning rate",
        found=f"{lr:.2g} at {images:,} images a step",
        expected=f"{low / FACTOR:.2g} to {high * FACTOR:.2g}",
        verdict=judge(off > FACTOR, off > FAR),
        advice=advice if off > FACTOR else "",
    )


def check_schedule(run: Run) -> Check:
    """The warm-up against the length of the run, and where the cosine ends."""
    optim, steps = run.optim, run.train.steps
    expected = "warm-up within half of the run, cosine down to a fifth of the peak or less"
    found = f"warm-up {optim.warmup:,} of {steps:,} steps, then {optim.schedule}"
    advice = ""
    wrong = optim.warmup >= steps
    if wrong:
        advice = f"the rate never reaches its peak: set optim.warmup to {max(1, steps // 20):,} or so, or train longer"
    elif optim.warmup > steps / 2:
        advice = "most of the run is warm-up: shorten optim.warmup"
    if optim.schedule == "cosine":
        found += f" to {optim.final_lr:.2g}"
        if optim.final_lr > optim.lr:
            wrong, advice = True, advice or "the cosine rises: optim.final_lr must be below optim.lr"
        elif optim.final_lr > 0.2 * optim.lr:
            advice = advice or "a rate that ends above a fifth of the peak leaves the gradient's noise in: lower it"
    return Check(name="schedule", found=found, expected=expected, verdict=judge(bool(advice), wrong), advice=advice)


def check_average(run: Run, rows: Sequence[Row]) -> Check:
    """How many steps the moving average looks back on, against the steps taken."""
    name, taken = "moving average", rows[-1]["step"]
    if not taken:
        return not_checked(name, "no steps were taken")
    length = 1 / (1 - run.train.ema_decay)
    low, high = EMA[0] * taken, EMA[1] * taken
    good = min(0.99999, round(1 - 1 / max(1.0, 0.05 * taken), 5))
    advice = "the samples are of weights of long ago" if length > high else "the average is hardly one"
    return Check(
        name=name,
        found=f"{length:,.0f} steps, {100 * length / taken:.2g} % of {taken:,}",
        expected=f"{100 * EMA[0]:g} % to {100 * EMA[1]:g} %",
        verdict=judge(not low <= length <= high, length > taken),
        advice="" if low <= length <= high else f"{advice}: for this many steps set train.ema_decay {good:g} or so",
    )


def check_together(run: Run) -> Check:
    """Settings that cannot work together, all that there are."""
    wrong, odd = [], []
    method, guidance = run.method, run.sample.guidance
    scales = len(method_of(method).scales(method)) or 1
    weights = [guidance.at_scale(i, scales).weight for i in range(scales)]
    guided = any(weight != 1 for weight in weights)
    if guided and method.classes and not method.label_drop:
        wrong.append(
            "sample.guidance with method.label_drop 0: the null branch was never trained; drop 0.1 of the labels"
        )
    if method.classes and method.label_drop >= 0.5:
        odd.append(f"method.label_drop {method.label_drop:g}: most of training is without labels; 0.1 is usual")
    if guidance.channels is not None and guidance.channels > method.channels:
        odd.append(f"sample.guidance.channels {guidance.channels}: the latents have {method.channels}")
    if run.optim.clip == "value" and run.optim.clip_at < run.optim.lr:
        odd.append(f"optim.clip_at {run.optim.clip_at:g} is below optim.lr: nearly every entry is clipped")
    if run.data.flip and (run.data.path or run.data.name) in ("digits", "mnist-5k"):
        odd.append("data.flip with digits: mirror images of them are none")
    if method.context_noise and not run.sample.context_noise:
        odd.append("method.context_noise without sample.context_noise: what it was trained for is not used")
    if run.train.log_every > run.train.steps // 10 and run.train.steps >= 100:
        odd.append(f"train.log_every {run.train.log_every}: fewer than ten lines of log to judge by")
    return Check(
        name="settings together",
        found="; ".join(wrong + odd) or "no contradiction",
        expected="no contradiction",
        verdict=judge(bool(odd), bool(wrong)),
        advice="set one of the two otherwise, and train anew where it is of the method" if wrong or odd else "",
    )
