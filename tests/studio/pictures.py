"""Pictures of the pages for the documentation: desktop and phone, light and dark, in one file for each page.

python tests/studio/pictures.py RUNS docs/results --run digits-arflow
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

from in_browser import browsing, go, served
from PIL import Image

HEIGHT, GAP = 480, 12  # of a row of pictures
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PAGES = {
    "runs": "/",
    "run": "/run/{run}",
    "playground": "/play?run={drawn}",
    "steps": "/apart?run={scales}",
    "edit": "/edit?run={scales}",
    "data": "/data?run={run}",
}


def taken(browser, address: str, size: tuple[int, int], scheme: str) -> Image.Image:
    """A page in the size of a screen."""
    width, height = size
    phone = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    go(browser, address)
    time.sleep(8)
    found = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    return found.resize((found.width * HEIGHT // found.height, HEIGHT), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", default="digits-arflow")
    parser.add_argument("--scales", default="digits-flowar", help="a run of FlowAR")
    parser.add_argument("--drawn", default="digits-sit", help="the run of the playground")
    parser.add_argument("--only", nargs="+", default=list(PAGES), choices=PAGES, help="pages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile, served(options.root) as studio, browsing(Path(profile)) as browser:
        for name in options.only:
            named = {"run": options.run, "scales": options.scales, "drawn": options.drawn}
            address = studio.address + PAGES[name].format(**named)
            shots = [taken(browser, address, size, scheme) for size in SIZES.values() for scheme in ("light", "dark")]
            width = sum(shot.width for shot in shots) + GAP * (len(shots) + 1)
            sheet, left = Image.new("RGB", (width, HEIGHT + 2 * GAP), "#888888"), GAP
            for shot in shots:
                sheet.paste(shot, (left, GAP))
                left += shot.width + GAP
            sheet.quantize(255).save(options.out / f"studio-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
