"""Checks of training speed, gradient norms, skipped steps and roll-backs."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fluvial.config import Run
from fluvial.tools.doctor.check import Check, judge, not_checked, rounded
from fluvial.tools.doctor.settings import slower
from fluvial.training.rows import Row, series

BEFORE = 20  # rows whose median a gradient norm is compared with
SPIKE, HUGE = 6.0, 30.0  # multiples of that median
SLOWER, HALF = 0.8, 0.5  # of the speed of the first half
CLIPPED = 0.95  # of the rows
SKIPPED = 0.01  # of the steps


def check_speed(rows: Sequence[Row]) -> Check:
    """Compares images/s at the end with the first half, without the first row, which includes compilation."""
    name = "images/s"
    _, speed = series(rows, "images_per_second")
    speed = speed[1:]
    if len(speed) < 8:
        return not_checked(name, f"{len(speed)} lines with images/s after the first are too few; it needs 8")
    first, last = float(np.median(speed[: len(speed) // 2])), float(np.median(speed[-(len(speed) // 4) :]))
    advice = "another program runs on this machine, the GPU is hot or its memory full, or the data comes "
    advice += "from a slow disk: look at nvidia-smi or top while it runs, and cache the latents (--data.cache True)"
    return Check(
        name=name,
        found=f"{last:,.4g} in the last quarter, {first:,.4g} in the first half",
        expected=f"at least {100 * SLOWER:.0f} % of it",
        verdict=judge(last < SLOWER * first, last < HALF * first),
        advice=advice if last < SLOWER * first else "",
    )


def check_spikes(run: Run, rows: Sequence[Row]) -> Check:
    """Compares each row's gradient norm with the median of those before it."""
    name = "gradient spikes"
    steps, norm = _finite_norm(rows)
    if len(norm) < 6:
        return not_checked(name, f"{len(norm)} lines with a gradient norm are too few; it needs 6")
    medians = np.array([np.median(norm[max(0, i - BEFORE) : i]) for i in range(5, len(norm))])
    ratios = norm[5:] / np.maximum(medians, 1e-30)
    worst, spikes = int(ratios.argmax()), int((ratios > SPIKE).sum())
    found = f"largest {ratios[worst]:.3g} times the median before it, at step {steps[5 + worst]:,.0f}"
    advice = "a bad batch, or a learning rate close to divergence: look for broken images, clip the norm, or lower "
    advice += "--optim.lr or the second of --optim.betas"
    mend = slower(run)
    if run.optim.clip != "norm":
        mend = {"optim.clip": "norm", "optim.clip_at": rounded(3 * float(np.median(norm)))}
    return Check(
        name=name,
        found=f"{found}; {spikes} above {SPIKE:g}" if spikes else found,
        expected=f"at most {SPIKE:g} times",
        verdict=judge(spikes > 0, float(ratios[worst]) > HUGE or spikes > 0.05 * len(ratios) + 1),
        advice=advice if spikes else "",
        settings=mend if spikes else {},
    )


def check_clipping(run: Run, rows: Sequence[Row]) -> Check:
    """Checks the fraction of steps after the warm-up whose gradient was clipped by its norm."""
    name = "clipping"
    if run.optim.clip != "norm":
        return not_checked(name, f"--optim.clip is {run.optim.clip}, not norm")
    steps, norm = _finite_norm(rows)
    norm = norm[steps > run.optim.warmup]
    if len(norm) < 5:
        return not_checked(name, f"{len(norm)} lines after the warm-up are too few; it needs 5")
    share, median = float((norm > run.optim.clip_at).mean()), float(np.median(norm))
    always = share >= CLIPPED
    advice = "every gradient is scaled to the same norm: AdamW hides it, but every outlier counts as "
    advice += f"much as a typical batch; --optim.clip-at {3 * median:.2g} or so would only clip spikes"
    return Check(
        name=name,
        found=f"{100 * share:.0f} % of steps, median norm {median:.3g}",
        expected=f"less than {100 * CLIPPED:.0f} % above --optim.clip-at {run.optim.clip_at:g}",
        verdict=judge(always, always and median > 10 * run.optim.clip_at),
        advice=advice if always else "",
        settings={"optim.clip_at": rounded(3 * median)} if always else {},
    )


def check_events(run: Run, rows: Sequence[Row]) -> list[Check]:
    """Checks of skipped steps and roll-backs, if the log has any."""
    checks = []
    skipped = max((int(row["skipped"]) for row in rows if isinstance(row.get("skipped"), int | float)), default=0)
    if skipped:
        share = skipped / max(1, rows[-1]["step"])
        modules = _modules(rows, "skipped")
        checks.append(
            Check(
                name="skipped steps",
                found=f"{skipped:,}, {100 * share:.2g} % of all{modules}",
                expected=f"at most {100 * SKIPPED:.0f} %",
                verdict=judge(True, share > SKIPPED),
                advice="gradients that were not finite or far too large: lower --optim.lr, or look at the data",
                settings=slower(run),
            )
        )
    rolled = [row for row in rows if "rolled_back_to" in row]
    if rolled:
        where = ", ".join(f"{row['step']:,} to {row['rolled_back_to']:,}" for row in rolled[:3])
        checks.append(
            Check(
                name="roll-backs",
                found=f"{len(rolled)}, from step {where}{_modules(rolled, 'rolled_back_to')}",
                expected="none",
                verdict=judge(True, len(rolled) > 1),
                advice="numbers overflow in that module: train in fp32, lower --optim.lr, or clip the norm",
                settings={"train.precision": "fp32"} if run.train.precision != "fp32" else slower(run),
            )
        )
    return checks


def _modules(rows: Sequence[Row], key: str) -> str:
    """The modules that first produced non-finite numbers, the most frequent first, as text."""
    names = Counter(row["first_non_finite"] for row in rows if key in row and row.get("first_non_finite"))
    return f", first in {', '.join(name for name, _ in names.most_common(3))}" if names else ""


def _finite_norm(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the logged gradient norms that are finite."""
    steps, norm = series(rows, "grad_norm")
    return steps[np.isfinite(norm)], norm[np.isfinite(norm)]
