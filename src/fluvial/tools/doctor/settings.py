"""Checks of learning rate, schedule, moving average, and contradictory settings."""

from collections.abc import Sequence
from typing import Any

from fluvial.config import Run
from fluvial.methods import method_of
from fluvial.tools.doctor.check import Check, judge, not_checked, rounded
from fluvial.tools.plan.network import learning_rate
from fluvial.training.ema import decay_of
from fluvial.training.log import Row

RATE, BATCH, WIDTH = 1e-4, 256, 1152  # AdamW's learning rate, batch and width of the published SiT-XL/2
FACTOR, FAR = 4.0, 16.0  # factors from the rule of thumb
FOUND = (
    "data.path",
    "data.test_path",
    "data.cache",
    "data.class_names",
    "data.digest",
    "autoencoder.",
)  # filled in by training
EMA = (0.005, 0.2)  # length of the average relative to the steps taken
WARMUP, SHORTENED = 0.5, 0.1  # of the steps at most; and where a run was made shorter than its recipe


def at_start(run: Run, recipe: Run | None = None) -> list[str]:
    """Lines on settings that would spoil a run, to be told before its first step.

    `recipe` is what it was made from: the warm-up may be as long as there, but not for fewer steps.
    """
    steps, rate = run.train.steps, check_rate(run)
    shortened = recipe is not None and steps < recipe.train.steps
    checks = [check_schedule(run, most=SHORTENED if shortened else WARMUP)]
    checks += [rate] if rate.verdict == "wrong" else []
    checks += [check_average(run, [{"step": steps}])] if _length(run, steps) > EMA[1] * steps else []
    told = [f"{check.name}: {check.found}: {check.advice}" for check in checks if check.advice]
    wrong, odd, _, _ = _contradictions(run)
    return told + wrong + odd


def usual_rates(run: Run) -> tuple[float, float]:
    """The range of learning rates: 1e-4 at 256 images, scaled by batch and width, up to what plans take."""
    ratio, narrow = run.images_per_step / BATCH, max(1.0, WIDTH / run.method.width)
    rules = sorted((RATE * ratio, RATE * ratio**0.5))
    return rules[0], max(rules[1] * narrow, learning_rate(run.method.width))


def slower(run: Run) -> dict[str, Any]:
    """Settings against divergence: a third of the learning rate, within the rule of thumb, and a warm-up."""
    rate = {"optim.lr": rounded(min(run.optim.lr / 3, usual_rates(run)[1]))}
    return rate if run.optim.warmup else {**rate, "optim.warmup": max(1, run.train.steps // 20)}


def check_rate(run: Run) -> Check:
    """Compares the peak learning rate with the rule of thumb."""
    images, lr, (low, high) = run.images_per_step, run.optim.lr, usual_rates(run)
    ratio, narrow = images / BATCH, max(1.0, WIDTH / run.method.width)
    off = max(low / lr, lr / high)
    advice = f"the rule is 1e-4 at 256 images, times the ratio of batches ({ratio:.3g}) or its root, and up "
    advice += f"to {narrow:.2g} times more for a width of {run.method.width}, not {WIDTH}; plans take "
    advice += f"{learning_rate(run.method.width):g}. "
    advice += "This rate learns slowly: raise --optim.lr" if lr < low else "This rate may diverge: lower --optim.lr"
    return Check(
        name="learning rate",
        found=f"{lr:.2g} at {images:,} images a step",
        expected=f"{low / FACTOR:.2g} to {high * FACTOR:.2g}",
        verdict=judge(off > FACTOR, off > FAR),
        advice=advice if off > FACTOR else "",
        settings={"optim.lr": rounded((low * high) ** 0.5)} if off > FACTOR else {},
    )


def check_schedule(run: Run, *, most: float = WARMUP) -> Check:
    """Checks the warm-up against the length of the run, of which it may be a share of `most`, and the final rate."""
    optim, steps = run.optim, run.train.steps
    expected = "warm-up within half of the run, cosine or wsd down to a fifth of the peak or less"
    found = f"warm-up {optim.warmup:,} of {steps:,} steps, then {optim.schedule}"
    advice, settings = "", {}
    wrong = optim.warmup >= steps
    if wrong:
        advice = "the rate never reaches its peak: shorten --optim.warmup, or train longer"
    elif optim.warmup > most * steps:
        advice = "a long part of the run is warm-up: shorten --optim.warmup"
    if advice:
        settings["optim.warmup"] = max(1, steps // 20)
    if optim.schedule != "constant":
        found += f" to {optim.final_lr:.2g}"
        if optim.final_lr > optim.lr:
            wrong, advice = True, advice or "the rate rises at the end: --optim.final-lr must be below --optim.lr"
        elif optim.final_lr > 0.2 * optim.lr:
            advice = advice or "a rate that ends above a fifth of the peak leaves the gradient's noise in: lower it"
        if optim.final_lr > 0.2 * optim.lr:
            settings["optim.final_lr"] = rounded(0.1 * optim.lr)
    return Check(
        name="schedule",
        found=found,
        expected=expected,
        verdict=judge(bool(advice), wrong),
        advice=advice,
        settings=settings,
    )


def check_average(run: Run, rows: Sequence[Row]) -> Check:
    """Compares the length of the moving average with the number of steps taken."""
    name, taken = "moving average", rows[-1]["step"]
    if not taken:
        return not_checked(name, "no steps were taken")
    length = _length(run, taken)
    low, high = EMA[0] * taken, EMA[1] * taken
    shared: dict[str, Any] = {"name": name, "expected": f"{100 * EMA[0]:g} % to {100 * EMA[1]:g} % of the steps"}
    found = f"over {length:,.0f} steps, of {taken:,}"
    if low <= length <= high:
        return Check(**shared, found=found, verdict="ok")
    if high < length <= EMA[1] * run.train.steps:
        advice = f"the averaged weights lag far behind, as {run.train.steps - taken:,} steps are still to come: go on"
        return Check(**shared, found=found, verdict="look", advice=advice, command="fluvial train RUN")
    settings: dict[str, Any] = {"train.ema_warmup": True}
    advice = "the averaged weights lag far behind, and samples are drawn from them: let it begin short"
    if length < low:
        settings = {"train.ema_decay": min(0.99999, round(1 - 1 / max(2.0, 0.05 * taken), 5))}
        advice = "the average is too short to matter: lengthen --train.ema-decay"
    verdict = judge(True, length > taken)
    return Check(**shared, found=found, verdict=verdict, advice=advice, settings=settings)


def _length(run: Run, steps: int) -> float:
    """The number of steps that the moving average is over, at that step."""
    return 1 / (1 - decay_of("ema", run.train.ema_decay, steps, warmup=run.train.ema_warmup))


def check_together(run: Run) -> Check:
    """Lists all settings that contradict each other."""
    wrong, odd, mend, sampling = _contradictions(run)
    if run.train.log_every > run.train.steps // 10 and run.train.steps >= 100:
        odd.append(f"--train.log-every {run.train.log_every}: fewer than ten lines of log")
        mend["train.log_every"] = max(1, run.train.steps // 50)
    return Check(
        name="settings together",
        found="; ".join(wrong + odd) or "no contradiction",
        expected="no contradiction",
        verdict=judge(bool(odd), bool(wrong)),
        advice="change one of the two; settings of the method need training from the start" if wrong else "",
        settings=mend,
        command=" ".join(["fluvial sample RUN", *sampling]) if sampling else "",
    )


def _contradictions(run: Run) -> tuple[list[str], list[str], dict[str, Any], list[str]]:
    """Settings that contradict each other, those that are odd together, and settings and options that mend them."""
    wrong, odd, mend, sampling = list[str](), list[str](), dict[str, Any](), list[str]()
    method, guidance = run.method, run.sample.guidance
    scales = len(method_of(method).scales(method)) or 1
    weights = [guidance.at_scale(i, scales).weight for i in range(scales)]
    guided = any(weight != 1 for weight in weights)
    if guided and method.classes and not method.label_drop:
        wrong.append("guidance with --method.label-drop 0: the null branch was never trained; drop 0.1 of the labels")
        sampling.append("--sample.guidance.weight 1")
    if method.classes and method.label_drop >= 0.5:
        odd.append(f"--method.label-drop {method.label_drop:g}: most of training is without labels; 0.1 is usual")
        mend["method.label_drop"] = 0.1
    if guidance.channels is not None and guidance.channels > method.channels:
        odd.append(f"--sample.guidance.channels {guidance.channels}: the latents have {method.channels}")
        sampling.append("--sample.guidance.channels None")
    if run.optim.clip == "value" and run.optim.clip_at < run.optim.lr:
        odd.append(f"--optim.clip-at {run.optim.clip_at:g} is below --optim.lr: nearly every entry is clipped")
        mend |= {"optim.clip": "norm", "optim.clip_at": 1.0}
    if run.data.flip and (run.data.path or run.data.name) in ("digits", "mnist-5k"):
        odd.append("--data.flip True with digits: mirrored digits are not digits")
        mend["data.flip"] = False
    if run.train.keep_best and not run.train.validate_every:
        odd.append("--train.keep-best with --train.validate-every 0: there is no validation loss to choose by")
        mend["train.keep_best"] = False
    if method.context_noise and not run.sample.context_noise:
        odd.append("--method.context-noise without --sample.context-noise: trained for, but not used in sampling")
        sampling.append(f"--sample.context-noise {method.context_noise:g}")
    return wrong, odd, mend, sampling
