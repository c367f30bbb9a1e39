"""Checks of the training loss and the validation loss."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fluvial.config import Run
from fluvial.tools.doctor.check import Check, judge, not_checked, rounded
from fluvial.tools.doctor.level import Level
from fluvial.tools.doctor.settings import slower, usual_rates
from fluvial.training.optim import learning_rate
from fluvial.training.rows import Row, series

START = 1.15  # the first row may have this multiple of the loss of a zero output, as batches differ
HALFWAY, BELOW = (
    500,
    5000,
)  # steps at the full learning rate until the loss is halfway to the best multiple of x_t, and below it
NEAR_ZERO = 0.02  # of the loss of a zero output: only trivial data gets so low
RISE, FAR = 1.05, 1.15  # ratio to the smoothed minimum
WINDOW = 5  # rows that the loss is averaged over


def check_finite(run: Run, rows: Sequence[Row]) -> Check:
    """Checks that all logged losses and gradient norms are finite."""
    name, expected = "finite numbers", "no NaN, no infinity"
    for row in rows:
        for key in ("loss", "grad_norm", "held_out_loss"):
            value = row.get(key)
            if isinstance(value, int | float) and not np.isfinite(value):
                advice = "the training has diverged: lower --optim.lr, clip the norm of the gradient, lengthen "
                advice += "--optim.warmup, or train in fp32"
                found = f"{key} {value} at step {row['step']:,}"
                mend = {**slower(run), "optim.clip": "norm", "optim.clip_at": 1.0}
                shared = {"name": name, "found": found, "expected": expected}
                return Check(**shared, verdict="wrong", advice=advice, settings=mend)
    return Check(name=name, found="all finite", expected=expected, verdict="ok")


def check_start(run: Run, rows: Sequence[Row], level: Level, *, continued: bool) -> Check:
    """Compares the first row of the log with the loss of a zero output."""
    name = "loss at the start"
    steps, loss = _finite(rows)
    if continued:
        return not_checked(name, "the run did not start from zero output, but from the weights of another")
    if getattr(run.method, "init", "zero") != "zero":
        return not_checked(name, "with method.init release the output is not zero at the start")
    if not len(steps):
        return not_checked(name, "no line of the log has a loss")
    high = START * level.zero
    advice = "a zero output has the loss E|u_t|^2, and no loss should be above it: the learning rate is too high, or "
    advice += "the latents do not have unit variance; lower --optim.lr or lengthen --optim.warmup"
    first = float(loss[0])
    verdict = judge(first > 1.05 * level.zero, first > high)
    return Check(
        name=name,
        found=f"{first:.3g}, mean of steps 1 to {steps[0]:,.0f}",
        expected=f"at most {high:.3g} (zero output: {level.zero:.3g})",
        verdict=verdict,
        advice="" if verdict == "ok" else advice,
        settings={} if verdict == "ok" else slower(run),
    )


def check_fall(run: Run, rows: Sequence[Row], level: Level) -> Check:
    """Compares the fall of the loss with what the number of steps at full learning rate should give."""
    name = "fall of the loss"
    steps, loss = _finite(rows)
    if run.train.distillation.steps:
        return not_checked(name, "the loss is of slopes of trajectories, which a model can learn to any error")
    taken = full_rate_steps(run, int(steps[-1])) if len(steps) else 0.0
    if taken < HALFWAY and not (len(loss) and _smooth(loss)[-1] > START * level.zero):
        return not_checked(name, f"{taken:.0f} steps at the full rate are too few; it needs {HALFWAY}")
    now, halfway = float(_smooth(loss)[-1]), (level.zero + level.multiple) / 2
    high, what = (1.02 * level.multiple, "all") if taken >= BELOW else (halfway, "half")
    if taken < HALFWAY:  # a loss above that of a zero output is always wrong
        high, what = START * level.zero, "nothing"
    low = NEAR_ZERO * level.zero
    advice = ""
    if now > high:
        advice = "the model is worse than a multiple of x_t: the learning rate is too low or far too high, the "
        advice += "labels or latents are not those of the images, or weights are frozen. Try to overfit ten images"
    elif now < low:
        advice = "too good: the latents are nearly constant, or the data is a few repeated images"
    return Check(
        name=name,
        found=f"{now:.3g} after {taken:,.0f} steps at the full rate",
        expected=f"{low:.2g} to {high:.3g} ({what} of the way from {level.zero:.3g} to {level.multiple:.3g})",
        verdict=judge(now > high, now < low or now > max(high, halfway)),
        advice=advice,
        **_mend_of_fall(run, now > high) if advice else {},
    )


def _mend_of_fall(run: Run, too_high: bool) -> dict[str, Any]:
    """Settings or command for a loss that does not fall: the usual learning rate; else a look at the data."""
    low, high = usual_rates(run)
    if too_high and not low <= run.optim.lr <= high:
        return {"settings": {"optim.lr": rounded((low * high) ** 0.5)}}
    return {"command": f"fluvial data inspect {shlex.quote(run.data.path)}"} if run.data.path else {}


def check_rise(run: Run, rows: Sequence[Row]) -> Check:
    """Compares the smoothed loss at the end with its minimum."""
    name = "rise of the loss"
    steps, loss = _finite(rows)
    if len(loss) < 2 * WINDOW:
        return not_checked(name, f"{len(loss)} lines with a loss are too few; it needs {2 * WINDOW}")
    smooth = _smooth(loss)
    best = int(smooth.argmin())
    ratio = float(smooth[-1] / smooth[best])
    advice = f"the training became worse after step {steps[best]:,.0f}: lower --optim.lr, clip the "
    advice += "gradient's norm, or look for what changed in the data"
    return Check(
        name=name,
        found=f"{_over(ratio)} the minimum, at step {steps[best]:,.0f}",
        expected=f"at most {100 * (RISE - 1):.0f} % (mean of {WINDOW} lines)",
        verdict=judge(ratio > RISE, ratio > FAR),
        advice=advice if ratio > RISE else "",
        settings=slower(run) if ratio > RISE else {},
    )


def check_recipe(rows: Sequence[Row], bands: Mapping[int, tuple[float, float]], differs: Sequence[str]) -> Check:
    """Compares the loss at some steps with the values measured for the recipe, unless relevant settings differ."""
    name = "loss of the recipe"
    if not bands:
        return not_checked(name, "no losses are known for this recipe")
    if differs:
        return not_checked(name, f"settings differ from the recipe's: {', '.join(differs)}")
    there = dict(zip(*(column.tolist() for column in series(rows, "loss")), strict=True))
    compared = {step: there[step] for step in bands if step in there}
    if not compared:
        return not_checked(name, f"the log has no loss at steps {', '.join(map(str, bands))}")
    wrong = {step: value for step, value in compared.items() if not bands[step][0] <= value <= bands[step][1]}
    shown = wrong or compared
    advice = "data, settings or code differ from those the recipe was measured with: compare the run.json of both, "
    advice += "and the versions in it"
    return Check(
        name=name,
        found=", ".join(f"{value:.3g} at {step}" for step, value in shown.items()),
        expected=", ".join(f"{bands[step][0]:.3g} to {bands[step][1]:.3g}" for step in shown),
        verdict="wrong" if wrong else "ok",
        advice=advice if wrong else "",
    )


def check_validation(rows: Sequence[Row]) -> Check:
    """Compares the validation loss at the end with its minimum: overfitting, if the training loss still fell."""
    name = "validation loss"
    steps, validation = series(rows, "held_out_loss")
    steps, validation = steps[np.isfinite(validation)], validation[np.isfinite(validation)]
    train_steps, loss = _finite(rows)
    if len(validation) < 3 or not len(loss):
        return not_checked(
            name, f"{len(validation)} validation losses are too few; it needs 3 (--train.validate-every)"
        )
    best = int(validation.argmin())
    ratio = float(validation[-1] / validation[best])
    then, now = np.interp([steps[best], steps[-1]], train_steps, _smooth(loss))
    falling = bool(now <= 1.02 * then and now <= FAR * _smooth(loss).min())  # and is not recovering from a divergence
    found = f"{_over(ratio)} the minimum, at step {steps[best]:,.0f}"
    if ratio > RISE:
        found += _worst_bucket(rows, int(steps[best]))
    advice = f"overfitting from step {steps[best]:,.0f} on: the training loss went on from {then:.3g} to {now:.3g}. "
    advice += "Stop there, or use more data, --data.flip, dropout or a smaller model"
    if not falling:
        advice = "the training loss rises as well, so this is not overfitting: see the rise of the loss"
    return Check(
        name=name,
        found=found,
        expected=f"at most {100 * (RISE - 1):.0f} %",
        verdict=judge(ratio > RISE, ratio > FAR and falling),
        advice=advice if ratio > RISE else "",
        settings={"train.steps": int(steps[best])} if ratio > RISE and falling else {},
    )


def _over(ratio: float) -> str:
    """The ratio as text: a percentage below 2, a multiple above."""
    return f"{100 * (ratio - 1):.1f} % over" if ratio < 2 else f"{ratio:,.3g} times"


def _worst_bucket(rows: Sequence[Row], best: int) -> str:
    """The bucket of time whose validation loss rose the most since that step, as text."""
    logged = [row for row in rows if isinstance(row.get("held_out_by_time"), list)]
    before = next((row["held_out_by_time"] for row in logged if row["step"] == best), None)
    if before is None or len(logged[-1]["held_out_by_time"]) != len(before):
        return ""
    pairs = enumerate(zip(before, logged[-1]["held_out_by_time"], strict=True))
    ratios = {i: b / a for i, (a, b) in pairs if a and b is not None and np.isfinite([a, b]).all()}
    if not ratios:
        return ""
    i = max(ratios, key=lambda i: ratios[i])
    return f"; most at t from {i / len(before):g} to {(i + 1) / len(before):g}: {100 * (ratios[i] - 1):.0f} %"


def full_rate_steps(run: Run, step: int) -> float:
    """The sum over steps 0 ... step - 1 of the learning rate relative to its peak."""
    at = np.unique(np.linspace(0, max(0, step - 1), 1000).round().astype(int))
    rates = [learning_rate(run.optim, int(i), run.train.steps) for i in at]
    return float(np.mean(rates)) / run.optim.lr * step


def _finite(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the logged training losses that are finite."""
    steps, loss = series(rows, "loss")
    return steps[np.isfinite(loss)], loss[np.isfinite(loss)]


def _smooth(loss: np.ndarray) -> np.ndarray:
    """The running mean of each row and the few before it."""
    sums = np.concatenate([[0.0], np.cumsum(loss)])
    end = np.arange(1, len(loss) + 1)
    start = np.maximum(0, end - WINDOW)
    return (sums[end] - sums[start]) / (end - start)
