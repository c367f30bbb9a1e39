"""The page of steps in a browser: what it shows of each method, and that its lines draw it again."""

import base64
import shlex
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import pytest
from in_browser import errors_of, go, served, text_of, until
from PIL import Image, ImageChops

import fluvial
from fluvial import cli, recipes

WAIT = 60
METHODS = ("sit", "arflow", "flowar")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a run of each method, and a damaged one."""
    root = tmp_path_factory.mktemp("apart") / "runs"
    for method in METHODS:
        run = recipes.smoke(recipes.get(f"digits-{method}"))
        train = replace(run.train, steps=60, batch=16, validate_every=0, sample_every=0)
        fluvial.train(replace(run, train=train), root / method, device="cpu")
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def studio(root):
    with served(root) as found:
        yield found


@pytest.fixture
def page(browser, studio):
    """Opens the page with these settings, and waits for its pictures."""

    def opened(**settings):
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        go(browser, f"{studio.address}/apart?{query}")
        until(lambda: len(pictures(browser)) == 3, WAIT, "no pictures")
        return browser

    yield opened
    assert errors_of(browser) == []


def pngs(browser, selector):
    """The bytes of the pictures in these elements, as far as they are shown."""
    found = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' .apart-image')].filter(e => e.offsetParent)"
        ".map(e => (e.querySelector('img') || {}).src || '')",
        selector,
    )
    return [base64.b64decode(source.partition(",")[2]) for source in found]


def pictures(browser, column=1):
    """The three pictures of the step; b"" for one that is not there."""
    return pngs(browser, f".apart-column:nth-child({column})")


def told(browser):
    return browser.execute_script("return document.querySelector('.apart-told').innerText")


def title(browser):
    """The title of what is drawn otherwise, if it is shown."""
    return browser.execute_script(
        "const e = document.querySelector('.apart-column:nth-child(2)');"
        "return e && e.offsetParent ? e.querySelector('.apart-title').innerText : ''"
    )


def lines(browser, name):
    return browser.execute_script(f"return document.querySelector('.apart-{name}').textContent")


def click(browser, text):
    """Presses the button that says so."""
    browser.execute_script(
        "[...document.querySelectorAll('button')].find(e => e.offsetParent && e.innerText.includes(arguments[0]))"
        ".click()",
        text,
    )


def go_to(browser, key):
    """Moves the slider of steps with a key, and waits until the pictures are those of the step."""
    from selenium.webdriver.common.action_chains import ActionChains

    before = told(browser), lines(browser, "drawn-python")
    browser.execute_script(
        "const s = document.querySelector('.apart-steps .q-slider');"
        "(s.matches('[tabindex]') ? s : s.querySelector('[tabindex]')).focus()"
    )
    ActionChains(browser).send_keys(key).perform()
    until(lambda: told(browser) != before[0] and lines(browser, "drawn-python") != before[1], WAIT, "it did not move")


def to_end(browser):
    from selenium.webdriver.common.keys import Keys

    while not told(browser).startswith("the end"):
        go_to(browser, Keys.ARROW_RIGHT)


def by_command(command, folder, out, monkeypatch):
    """The bytes of the picture that the copied lines draw."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    for line in command.splitlines():
        words = shlex.split(line)
        assert words[0] == "fluvial" and cli.main(words[1:]) in (0, None)
    return (folder / out / "grid.png").read_bytes()


def by_python(program, folder):
    """The pictures that the copied program draws."""
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [(folder / f"{name}.png").read_bytes() for name in ("point", "estimate", "velocity")]


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_scrubbed_and_drawn_again(page, method, tmp_path, monkeypatch):
    from selenium.webdriver.common.keys import Keys

    browser = page(run=method, label="3", seed=7, count=2)
    assert told(browser).startswith("step ")
    seen = [pictures(browser)]
    for _ in range(2):
        go_to(browser, Keys.ARROW_LEFT)
        seen.append(pictures(browser))
    for at in range(3):
        assert len({pictures[at] for pictures in seen}) == 3, "each step has a picture of its own"
    assert by_python(lines(browser, "drawn-python"), tmp_path / "python") == seen[-1]
    to_end(browser)
    assert pictures(browser)[2] == b"", "there is no velocity at the end"
    command = lines(browser, "drawn-command")
    assert by_command(command, tmp_path / "command", "picture", monkeypatch) == pictures(browser)[0]
    expected = fluvial.load(shlex.split(command)[2], device="cpu").sample(2, classes=3, seed=7).grid()
    shown = Image.open(BytesIO(pictures(browser)[0]))
    assert ImageChops.difference(shown, expected).getbbox() is None


def test_a_run_has_what_its_method_has(page):
    text = {}
    for method in METHODS:
        page(run=method)
        text[method] = text_of(page(run=method))
    assert "Guidance acts at 5 of 5 steps, with weight 1.5" in text["sit"]
    for told_of, methods in (
        ("click one to draw again", {"flowar"}),
        ("Seed from there on", {"flowar"}),
        ("No history", {"arflow"}),
        ("How far the history reaches back", {"arflow"}),
        ("Fork at this step", {"sit", "arflow"}),
    ):
        assert {method for method in METHODS if told_of in text[method]} == methods, told_of


def test_a_click_on_a_scale_draws_again_from_there_on(page, tmp_path, monkeypatch):
    browser = page(run="flowar", label="3", count=2)
    first = pngs(browser, ".apart-strip:nth-child(1)")
    assert len(first) == 3

    def redrawn(scale, seed, click=True):
        if click:
            browser.execute_script(f"document.querySelectorAll('button.apart-scale')[{scale}].click()")
        expected = f"From scale {('1x1', '2x2', '4x4')[scale]} on, seed {seed}"
        until(lambda: title(browser).startswith(expected), WAIT, f"{title(browser)}, not {expected}")
        until(lambda: len(pngs(browser, ".apart-strip:nth-child(2)")) == 3, WAIT)
        return pngs(browser, ".apart-strip:nth-child(2)")

    one, two = redrawn(2, 1), redrawn(2, 2)  # once more takes the next seed
    assert one[:2] == two[:2], "coarser scales stay"
    assert len({one[2], two[2], first[2]}) == 3
    three = redrawn(1, 2)
    assert three[0] == one[0] and three[1] != one[1]
    field = browser.find_element("css selector", ".apart-otherwise input[type=number]")
    field.send_keys("\ue009a\ue0007")  # Ctrl+A, and 7
    assert redrawn(1, 7, click=False)[1] != three[1]
    to_end(browser)
    until(lambda: pictures(browser, 2) and pictures(browser, 2)[0] != pictures(browser)[0], WAIT)
    command = lines(browser, "again-command")
    assert "--keep 1" in command
    assert by_command(command, tmp_path / "command", "changed", monkeypatch) == pictures(browser, 2)[0]
    assert by_python(lines(browser, "again-python"), tmp_path / "python") == pictures(browser, 2)


@pytest.mark.parametrize(
    ("button", "expected"), [("No history", "Without history"), ("Last points", "With the last point of the history")]
)
def test_less_history_is_another_picture_from_the_same_noise(page, tmp_path, monkeypatch, button, expected):
    from selenium.webdriver.common.keys import Keys

    browser = page(run="arflow", label="3")
    click(browser, button)
    until(lambda: title(browser).startswith(expected), WAIT)
    to_end(browser)
    until(lambda: len(pictures(browser, 2)) == 3 and pictures(browser, 2)[2] == b"", WAIT)
    ours, theirs = pictures(browser)[0], pictures(browser, 2)[0]
    assert by_command(lines(browser, "again-command"), tmp_path / "c", "changed", monkeypatch) == theirs
    assert by_python(lines(browser, "again-python"), tmp_path / "p") == [theirs, theirs, b""]
    assert " of 255 apart" in text_of(browser)
    while not told(browser).startswith("step 1 "):
        go_to(browser, Keys.ARROW_LEFT)
    assert pictures(browser)[0] == pictures(browser, 2)[0], "the noise"
    assert ours != theirs


@pytest.mark.parametrize("method", ["sit", "arflow"])
def test_a_fork_begins_as_one(page, method, tmp_path, monkeypatch):
    browser = page(run=method, label="3", seed=2)
    click(browser, "Fork at this step")
    until(lambda: title(browser).startswith("The first image, forked at t = 0.4"), WAIT, title(browser))
    to_end(browser)
    until(lambda: len(pictures(browser, 2)) == 3 and pictures(browser, 2)[2] == b"", WAIT)
    shown = pictures(browser, 2)
    assert by_command(lines(browser, "again-command"), tmp_path / "c", "changed", monkeypatch) == shown[0]
    assert by_python(lines(browser, "again-python"), tmp_path / "p") == shown


def test_it_plays_to_the_end(page):
    browser = page(run="sit", label="3")
    browser.execute_script("document.querySelector('button[aria-label=play]').click()")
    until(lambda: told(browser).startswith("the end"), WAIT)


def test_the_link_restores_the_choice(page):
    browser = page(run="sit", label="5", seed=11, count=3)
    before = pictures(browser)
    until(lambda: "label=5" in browser.current_url and "seed=11" in browser.current_url, WAIT)
    browser.refresh()
    until(lambda: pictures(browser) == before, WAIT)
    assert "--seed 11 --count 3 --columns 3 --classes 5" in lines(browser, "drawn-command")


def test_what_cannot_be_drawn_says_why(page, browser, studio):
    page(run="sit")
    for query, expected in (
        ("run=broken", "run.json"),
        ("run=../elsewhere", "is no run in"),
        ("run=sit&label=eleven", "eleven"),
    ):
        go(browser, f"{studio.address}/apart?{query}")
        until(lambda expected=expected: expected in told_line(browser), WAIT, expected)
        assert pictures(browser) == []


def told_line(browser):
    return browser.execute_script("return (document.querySelector('.told') || {}).innerText || ''")
