"""The playground in a browser: what it shows is what the copied command draws, byte for byte."""

import base64
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from in_browser import browsing, errors_of, go, served, text_of, until
from PIL import Image, ImageChops

import fluvial
from fluvial import cli, recipes
from fluvial.studio.scene import Scene, to_query

WAIT = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a run of classes, one that was distilled, and one that is damaged."""
    root = tmp_path_factory.mktemp("studio") / "runs"
    run = recipes.smoke(recipes.get("digits-sit"))
    train = replace(run.train, steps=20, batch=16, validate_every=0, sample_every=0)
    sampler = fluvial.train(replace(run, train=train), root / "digits", device="cpu")
    fluvial.distill(sampler, root / "few", steps=2, trajectories=20, updates=2, batch=4)
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def studio(root):
    with served(root) as found:
        yield found


@pytest.fixture
def page(browser, studio):
    """Opens the playground with these settings, and waits for its picture."""

    def opened(**settings):
        query = "&".join(f"{name}={value}" for name, value in to_query(Scene(**settings)).items())
        go(browser, f"{studio.address}/play?{query}")
        until(lambda: picture(browser), WAIT)
        settled(browser)
        return browser

    yield opened
    assert errors_of(browser) == []


def picture(browser):
    """The bytes of the picture that is shown."""
    source = browser.execute_script("return (document.querySelector('.stage img') || {}).src || ''")
    return base64.b64decode(source.partition(",")[2]) if source else b""


def line(browser):
    return browser.execute_script("return (document.querySelector('.told') || {}).innerText || ''")


def settled(browser):
    """The line below a picture that is finished."""
    return until(lambda: "evaluations" in (text := line(browser)) and text, WAIT, "no picture was finished")


def evaluations(browser):
    """How many the picture took; 0 for one that is not finished."""
    found = re.search(r"(\d+) evaluations", line(browser))
    return int(found[1]) if found else 0


def steps(browser):
    """Where the slider of the steps stands."""
    return int(
        browser.execute_script(
            "const s = document.querySelector('.q-slider[aria-label=\"Steps\"]');"
            "return (s.matches('[aria-valuenow]') ? s : s.querySelector('[aria-valuenow]')).ariaValueNow"
        )
    )


def copied(browser, title):
    """The text under this title, folded away or not."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.lines')].find(e => e.innerText.includes(arguments[0]))"
        ".querySelector('.code').textContent",
        title,
    )


def drawn_by_command(browser, folder, monkeypatch):
    """The bytes of the picture that the copied command draws."""
    monkeypatch.chdir(folder)
    words = shlex.split(copied(browser, "As a command"))
    assert words[0] == "fluvial" and cli.main(words[1:]) == 0
    return (folder / "picture" / "grid.png").read_bytes()


def press(browser, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def drag(browser, x, y):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    stage = browser.find_element(By.CSS_SELECTOR, ".stage")
    ActionChains(browser).click_and_hold(stage).move_by_offset(x, y).release().perform()


def button(browser, name):
    browser.execute_script("document.querySelector(`button[aria-label^='${arguments[0]}']`).click()", name)


def slide(browser, name, presses):
    """Moves a slider with the keys, as a user of the keyboard does."""
    from selenium.webdriver.common.keys import Keys

    found = f"document.querySelector('.q-slider[aria-label=\"{name}\"]')"
    browser.execute_script(f"const s = {found}; (s.matches('[tabindex]') ? s : s.querySelector('[tabindex]')).focus()")
    for _ in range(presses):
        press(browser, Keys.ARROW_RIGHT)


def test_the_picture_is_the_commands(page, tmp_path, monkeypatch, root):
    browser = page(run="digits")
    assert "seed 0" in line(browser)
    assert picture(browser) == drawn_by_command(browser, tmp_path, monkeypatch)
    program = copied(browser, "As Python").replace("'picture'", "'again'")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "grid.png").read_bytes() == picture(browser)


def test_a_slider_redraws(page, tmp_path, monkeypatch):
    browser = page(run="digits", label="3", count=4)
    before, of_a_step = picture(browser), evaluations(browser) / steps(browser)
    more = steps(browser) + 3
    slide(browser, "Steps", 3)
    until(lambda: f"--steps {more}" in copied(browser, "As a command"), WAIT)
    until(lambda: evaluations(browser) == more * of_a_step, WAIT, "it is not drawn with the new steps")
    assert picture(browser) != before
    assert picture(browser) == drawn_by_command(browser, tmp_path, monkeypatch)
    assert "steps=" in browser.current_url, "the link has the settings"
    now = picture(browser)
    browser.refresh()
    until(lambda: picture(browser), WAIT)
    settled(browser)
    assert picture(browser) == now
    button(browser, "settings of the run")
    until(lambda: "--steps" not in copied(browser, "As a command"), WAIT)
    button(browser, "back")
    until(lambda: picture(browser) == now, WAIT, "back draws the picture before")


def test_the_plane_of_seeds_is_dragged(page, tmp_path, monkeypatch):
    browser = page(run="few", x=3.0, y=2.0)
    start = picture(browser)
    drag(browser, -60, -35)
    until(lambda: "between seeds 203, 204, 303, 304" in line(browser), WAIT)
    settled(browser)
    until(lambda: "--at" in copied(browser, "As a command"), WAIT)
    assert picture(browser) != start
    assert picture(browser) == drawn_by_command(browser, tmp_path, monkeypatch)
    button(browser, "to the nearest seed")
    until(lambda: line(browser).startswith("seed 203"), WAIT)
    settled(browser)
    assert picture(browser) == start


def test_keys_move_between_seeds(page):
    from selenium.webdriver.common.keys import Keys

    browser = page(run="digits", count=4)
    for key, seed in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_DOWN, 101), (Keys.ARROW_LEFT, 100), (Keys.ARROW_UP, 0)):
        press(browser, key)
        until(lambda seed=seed: line(browser).startswith(f"seed {seed}:"), WAIT, f"no seed {seed}")
        settled(browser)
    press(browser, " ")
    until(lambda: "seed 0:" not in line(browser), WAIT)
    settled(browser)


def test_a_long_picture_shows_previews_and_is_stopped(page, studio):
    browser = page(run="digits", count=4)
    go(browser, f"{studio.address}/play?run=digits&steps=100000&count=64")
    until(lambda: line(browser).startswith("seed 0: step"), WAIT, "no preview")
    button(browser, "stop drawing")
    until(lambda: line(browser) == "stopped", WAIT)
    assert picture(browser), "the last preview stays"
    button(browser, "settings of the run")
    settled(browser)


def test_pinned_pictures_are_compared(page):
    browser = page(run="digits", count=4)
    before = picture(browser)
    button(browser, "pin")
    until(lambda: "Pinned" in text_of(browser), WAIT)
    page_of = browser.execute_script("return document.querySelector('.over').src")
    assert base64.b64decode(page_of.partition(",")[2]) == before
    button(browser, "other seed")
    until(lambda: picture(browser) != before, WAIT)
    settled(browser)
    until(lambda: "Difference," in text_of(browser) and "Difference, 0.0" not in text_of(browser), WAIT)


def test_two_browsers_draw_at_once(page, studio, tmp_path, browser):
    page(run="digits", count=4)
    with browsing(tmp_path / "other") as other:
        go(other, f"{studio.address}/play?run=few&x=5")
        until(lambda: "evaluations" in line(other), WAIT)
        assert line(other).startswith("seed 5") and line(browser).startswith("seed 0")
        assert "few" in copied(other, "As a command") and "digits" in copied(browser, "As a command")
        assert errors_of(other) == []


def test_runs_that_cannot_be_drawn_from_say_why(page, browser, studio):
    page(run="digits", count=4)
    for name, told in (("broken", "run.json"), ("../elsewhere", "is no run in"), ("none", "is no run in")):
        go(browser, f"{studio.address}/play?run={name}")
        until(lambda told=told: told in line(browser), WAIT, told)
    go(browser, f"{studio.address}/play?run=digits&label=eleven")
    until(lambda: "eleven" in line(browser), WAIT)


def test_files_are_saved(page, root, studio, tmp_path):
    browser = page(run="digits", count=4)
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for form, told in (("png", "PNG"), ("gif", "GIF of the steps"), ("npz", ".npz of the images")):
        button(browser, "save")
        item = "[...document.querySelectorAll('.q-menu .q-item')].find(e => e.innerText.includes(arguments[0]))"
        until(lambda told=told, item=item: browser.execute_script(f"return !!{item}", told), WAIT)
        browser.execute_script(f"{item}.click()", told)
        file = tmp_path / f"digits-0-0.{form}"
        until(lambda file=file: file.exists() and os.path.getsize(file), WAIT, f"no {form}")
        until(lambda: not browser.execute_script("return !!document.querySelector('.q-menu')"), WAIT)
    assert (tmp_path / "digits-0-0.png").read_bytes() == picture(browser)
    with Image.open(tmp_path / "digits-0-0.gif") as gif, Image.open(tmp_path / "digits-0-0.png") as png:
        assert gif.n_frames > 2
        gif.seek(gif.n_frames - 1)
        apart = ImageChops.difference(gif.convert("L"), png.convert("L"))
        assert max(apart.getextrema()) <= 2, "the last frame is the picture"


def test_it_moves_through_seeds_by_itself(page):
    browser = page(run="few", x=1.03, count=4)  # from where steps of 0.08 never meet a whole seed, which has no --at
    button(browser, "move through seeds")
    until(lambda: "between seeds" in line(browser), WAIT)
    seen = {picture(browser)}
    until(lambda: seen.add(picture(browser)) or len(seen) > 3, WAIT, "it stands still")
    button(browser, "move through seeds")
    until(lambda: "--at" in copied(browser, "As a command"), WAIT)
    settled(browser)


def test_a_grid_of_two_settings_is_what_its_lines_draw(page, tmp_path):
    browser = page(run="digits", count=4, label="3")
    open_grid = "[...document.querySelectorAll('.lines .q-item')].find(e => e.innerText.includes('Grid')).click()"
    browser.execute_script(open_grid)
    draw = "[...document.querySelectorAll('button')].find(e => e.innerText === 'Draw grid')"
    until(lambda: browser.execute_script(f"return !!{draw}"), WAIT)
    browser.execute_script(f"{draw}.click()")
    source = "return (document.querySelector('.grid-picture img') || {}).src || ''"
    until(lambda: browser.execute_script(source).startswith("data:image/png"), WAIT, "no grid")
    shown = base64.b64decode(browser.execute_script(source).partition(",")[2])
    program = browser.execute_script("return document.querySelector('.grid-python').textContent")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").read_bytes() == shown


def test_the_images_of_a_run_are_shown(page, browser, studio):
    page(run="digits", count=4)
    go(browser, f"{studio.address}/data?run=digits")
    until(lambda: "Contact sheet" in text_of(browser), WAIT)
    assert "1,257" in text_of(browser) and "As the model sees them" in text_of(browser)
    go(browser, f"{studio.address}/data?run=broken")
    until(lambda: "These images cannot be shown" in text_of(browser), WAIT)
    go(browser, f"{studio.address}/data?run=../elsewhere")
    until(lambda: "is no run in" in text_of(browser), WAIT)


def test_the_address_stays_while_the_browser_goes_elsewhere(page, browser):
    """As it would stay on the page: a change of the address takes the place of a navigation that has begun."""
    page(run="digits", count=4)
    address = browser.current_url
    browser.execute_script("dispatchEvent(new Event('beforeunload')); keepAddress('/play?run=digits&count=9')")
    assert browser.current_url == address
    page(run="digits", count=4)
    browser.execute_script("keepAddress('/play?run=digits&count=9')")
    assert browser.current_url.endswith("/play?run=digits&count=9")


def test_pages_are_left_while_they_draw(page, browser, studio):
    page(run="digits", count=4)
    for _ in range(2):
        for address in ("play?run=digits&count=64&steps=300", "data?run=digits", "edit?run=digits", "apart?run=digits"):
            go(browser, f"{studio.address}/{address}")
    page(run="few", count=4)  # what the server has printed is looked at when it ends
