"""A studio that runs as its command does, and a headless browser in front of it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

REQUIRED = "FLUVIAL_BROWSER"  # set where the browser must be there: its tests then fail in place of being skipped
PATIENCE = 90.0  # seconds for which a test waits for the browser
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
    ),
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Served:
    """A studio over a folder, in a process of its own."""

    def __init__(self, root: Path, port: int, process: subprocess.Popen) -> None:
        self.root, self.port, self.process = root, port, process
        self.address = f"http://127.0.0.1:{port}"


@contextmanager
def served(root: Path, *options: str):
    """A studio over the folder, until the block ends."""
    port = free_port()
    words = [sys.executable, "-m", "fluvial", "studio", str(root), "--port", str(port), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}  # as a user's
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).close()
                break
            except urllib.error.HTTPError:
                break  # it answers, if only with a refusal
            except OSError:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.1)
        yield Served(root, port, process)
    finally:
        process.terminate()
        printed = process.communicate(timeout=60)[0]
    assert "Traceback" not in printed and "Error" not in printed and "deleted" not in printed, printed


@contextmanager
def browsing(folder: Path, size: tuple[int, int] = (1280, 900), *more: str):
    """A headless Chromium that notes what its console says, with a profile in the folder."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        told = "tests in the browser need chromium and chromedriver: apt install chromium chromium-driver"
        pytest.fail(told) if os.environ.get(REQUIRED) else pytest.skip(told)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}", *more):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(driver)
    found = webdriver.Chrome(options=options, service=service)
    found.set_page_load_timeout(PATIENCE)
    found.command_executor.client_config.timeout = 2 * PATIENCE
    try:
        yield found
    finally:
        try:
            found.quit()
        except Exception:  # a browser that hangs: its test has failed, and the others go on with a new one
            service.process.kill()


def until(condition, seconds: float = 60.0, what: str = ""):
    """The first true value of `condition()`; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what or "it did not come to pass"
        time.sleep(0.05)
    return value


def go(browser, address: str) -> None:
    """Opens an address as a link does. WebDriver's own way at times waits for ever, where a page draws meanwhile."""
    from selenium.common.exceptions import WebDriverException

    browser.execute_script("window.former = true; location.assign(arguments[0])", address)

    def is_there() -> bool:
        try:
            return browser.execute_script("return !window.former && document.readyState === 'complete'")
        except WebDriverException:  # between two pages
            return False

    until(is_there, PATIENCE, f"{address} does not open")


def errors_of(browser) -> list[str]:
    """What the console has said since it was last asked, errors alone."""
    return [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]


def text_of(browser) -> str:
    """The text of the page as it is shown."""
    return browser.execute_script("return document.body.innerText")
