"""The playground in a browser: how soon a slider shows something, and how fast pictures follow the pointer.

    python benchmarks/studio.py runs/digits-sit runs/digits-sit-4-steps

The ratios are the time between two pictures while dragging by that of `Sampler.sample`, in the same minute on the same
machine: alone, and while the browser draws two pictures by turns, as often, without the studio. A browser without a GPU
takes the cores that sampling is on. Needs chromium and chromedriver.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fluvial.run.load import Sampler, load

FOLLOW = """
const stage = document.querySelector('.stage');
window.shownAt = [];
stage.addEventListener('load', () => shownAt.push(performance.now()), true);
"""
DRAG = """
const done = arguments[0], stage = document.querySelector('.stage'), box = stage.getBoundingClientRect();
const at = (x, y) => ({clientX: box.x + x, clientY: box.y + y, bubbles: true, pointerId: 1, button: 0});
shownAt.length = 0;
stage.dispatchEvent(new PointerEvent('pointerdown', at(200, 200)));
let n = 0;
const go = () => {
  n += 1;
  stage.dispatchEvent(new PointerEvent('pointermove', at(200 + n % 120, 200 + n % 70)));
  if (n < 360) return requestAnimationFrame(go);
  const count = shownAt.length, from = shownAt[0], to = shownAt[count - 1];
  stage.dispatchEvent(new PointerEvent('pointerup', at(200, 200)));
  setTimeout(() => done([count, (to - from) / Math.max(1, count - 1)]), 500);
};
requestAnimationFrame(go);
"""
SLIDE = """
const done = arguments[0], slider = document.querySelector(`.q-slider[aria-label="Steps"]`);
const field = slider.matches('[tabindex]') ? slider : slider.querySelector('[tabindex]');
shownAt.length = 0;
const began = performance.now();
field.dispatchEvent(new KeyboardEvent('keydown', {keyCode: 39, which: 39, key: 'ArrowRight', bubbles: true}));
field.dispatchEvent(new KeyboardEvent('keyup', {keyCode: 39, which: 39, key: 'ArrowRight', bubbles: true}));
setTimeout(() => done(shownAt.length ? [shownAt[0] - began, shownAt[shownAt.length - 1] - began] : null), 2500);
"""

# the picture and another by turns, each `arguments[0]` milliseconds
BUSY = """
const every = arguments[0], shown = document.querySelector('.stage img'), canvas = document.createElement('canvas');
[canvas.width, canvas.height] = [shown.naturalWidth, shown.naturalHeight];
const draws = canvas.getContext('2d');
draws.filter = 'invert(1)';
draws.drawImage(shown, 0, 0);
const pictures = [shown.src, canvas.toDataURL()];
let n = 0;
window.busy = setInterval(() => { shown.src = pictures[n++ % 2]; }, every);
"""


def alone(sampler: Sampler, count: int) -> float:
    """Median seconds of sampling so many images."""
    seconds = []
    for seed in range(10):
        started = time.perf_counter()
        sampler.sample(count, seed=seed)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measured(browser: Any, address: str, run: str, sampler: Sampler, count: int) -> dict[str, float]:  # noqa: ANN401
    """Milliseconds from a slider to the first and to the last picture, between pictures while dragging, and of sampling
    beside a browser that draws."""
    from in_browser import until  # pyright: ignore[reportMissingImports] - see main

    browser.get(f"{address}/play?run={run}&count={count}")
    told = "return (document.querySelector('.told') || {}).innerText || ''"
    until(lambda: "evaluations" in browser.execute_script(told))
    browser.execute_script(FOLLOW)
    slides = [found for _ in range(6) if (found := browser.execute_async_script(SLIDE))]
    drags = [browser.execute_async_script(DRAG) for _ in range(3)]
    first, last = (statistics.median(times) for times in zip(*slides, strict=True)) if slides else (0.0, 0.0)
    between = statistics.median(between for _, between in drags)
    browser.execute_script(BUSY, between)
    beside = alone(sampler, count)
    browser.execute_script("clearInterval(busy)")
    return {"first": first, "last": last, "between": between, "beside": 1000 * beside}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, in one folder")
    parser.add_argument("--count", type=int, default=16, help="images in the picture")
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "studio"))
    from in_browser import browsing, served  # pyright: ignore[reportMissingImports]

    root = options.runs[0].resolve().parent
    print("| run | slider to first picture | to last | between pictures | a second | alone | ratio | beside | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as profile, served(root) as studio, browsing(Path(profile)) as browser:
        browser.set_script_timeout(60)
        for run in options.runs:
            sampler = load(run)
            before = alone(sampler, options.count)
            found = measured(browser, studio.address, run.name, sampler, options.count)
            own = 1000 * statistics.mean((before, alone(sampler, options.count)))
            slider = f"{found['first']:.0f} ms | {found['last']:.0f} ms" if found["first"] else "- | -"
            between, beside = found["between"], found["beside"]
            drag = f"{between:.0f} ms | {1000 / between:.1f} | {own:.0f} ms | {between / own:.2f}"
            print(f"| {run.name} | {slider} | {drag} | {beside:.0f} ms | {between / beside:.2f} |", flush=True)


if __name__ == "__main__":
    main()
