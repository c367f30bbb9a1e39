"""The Edit page in a browser: a mask is painted, known pixels stay, and the copied lines draw the result again."""

import base64
import shlex
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from in_browser import browsing, errors_of, go, served, text_of, until
from PIL import Image
from test_editing import huge_png, png

import fluvial
from fluvial import cli, recipes
from fluvial.studio.editing import Editing, to_query

WAIT = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a run of each method, and one that is damaged."""
    root = tmp_path_factory.mktemp("studio") / "runs"
    for name in ("sit", "arflow", "flowar"):
        run = recipes.smoke(recipes.get(f"digits-{name}"))
        train = replace(run.train, steps=10, batch=10, validate_every=0, sample_every=0)
        fluvial.train(replace(run, train=train), root / name, device="cpu")
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def studio(root):
    with served(root) as found:
        yield found


@pytest.fixture
def page(browser, studio):
    """Opens the page with these settings, and waits for the image to edit."""

    def opened(**settings):
        query = "&".join(f"{name}={value}" for name, value in to_query(Editing(**settings)).items())
        go(browser, f"{studio.address}/edit?{query}")
        until(lambda: image(browser), WAIT, "no image to edit")
        return browser

    yield opened
    assert errors_of(browser) == []


def source(browser, where):
    """The bytes of a picture; b"" if none is shown."""
    found = browser.execute_script(
        "const e = document.querySelector(arguments[0]); return e && e.offsetParent ? e.src : ''", where
    )
    return base64.b64decode(found.partition(",")[2]) if found else b""


def image(browser):
    return source(browser, ".edit-canvas img")


def result(browser):
    return source(browser, ".edit-result img")


def line(browser):
    return browser.execute_script("return (document.querySelector('.told') || {}).innerText || ''")


def drawn(browser):
    """The bytes of a result that is finished."""
    until(lambda: "evaluations" in line(browser), WAIT, "no result")
    return result(browser)


def copied(browser, title):
    return browser.execute_script(
        "return [...document.querySelectorAll('.lines')].find(e => e.innerText.includes(arguments[0]))"
        ".querySelector('.code').textContent",
        title,
    )


def click(browser, text):
    browser.execute_script(
        "[...document.querySelectorAll('button')].find(e => e.innerText.trim().endsWith(arguments[0])).click()", text
    )


def is_on(browser, text):
    return browser.execute_script(
        "return ![...document.querySelectorAll('.edit-kind')].find(e => e.innerText === arguments[0]).disabled", text
    )


def paint(browser, *ways):
    """Paints a stroke from the middle of the image, by these ways of the pointer."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    canvas = browser.find_element(By.CSS_SELECTOR, ".edit-canvas canvas")
    stroke = ActionChains(browser).move_to_element(canvas).click_and_hold()
    for x, y in ways:
        stroke.move_by_offset(x, y)
    stroke.release().perform()


def upload(browser, *files):
    """Gives files to the page, as the dialog does."""
    from selenium.webdriver.common.by import By

    browser.find_element(By.CSS_SELECTOR, ".edit-upload input[type=file]").send_keys("\n".join(map(str, files)))


def saved(browser, folder, button, name):
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    click(browser, button)
    return until(lambda: (folder / name).exists() and (folder / name).read_bytes(), WAIT, f"{name} was not saved")


def test_a_painted_mask_inpaints_and_the_copied_lines_draw_it_again(page, tmp_path, monkeypatch):
    browser = page(run="sit", label="3", copies=3)
    until(lambda: "Paint over" in line(browser), WAIT)
    assert not result(browser)
    paint(browser, (70, 0), (0, 60))
    shown = drawn(browser)
    assert "known pixels are equal" in line(browser)
    given, mask = (
        np.asarray(Image.open(BytesIO(saved(browser, tmp_path, f"Save {name}", f"{name}.png"))))
        for name in ("image", "mask")
    )
    assert given.shape == mask.shape == (8, 8) and 0 < (mask == 255).sum() < 40 and set(np.unique(mask)) == {0, 255}
    assert (given == np.asarray(Image.open(BytesIO(image(browser))))).all()
    images = np.load(BytesIO(saved(browser, tmp_path, ".npz", "inpaint-0.npz")))["arr_0"][..., 0]
    assert images.shape == (3, 8, 8) and (images == given)[:, mask == 0].all() and (images != given)[:, mask > 0].any()
    assert saved(browser, tmp_path, "PNG", "inpaint-0.PNG".lower()) == shown
    monkeypatch.chdir(tmp_path)
    words = shlex.split(copied(browser, "As a command"))
    assert words[0] == "fluvial" and cli.main(words[1:]) == 0
    assert (tmp_path / "edit" / "grid.png").read_bytes() == shown
    program = copied(browser, "As Python").replace("'edit'", "'again'")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "grid.png").read_bytes() == shown


def test_a_mask_is_erased_and_cleared(page):
    browser = page(run="sit")
    until(lambda: "Paint over" in line(browser), WAIT)
    paint(browser, (80, 0))
    before = drawn(browser)
    browser.execute_script("document.querySelector('.edit-tools .q-checkbox').click()")
    paint(browser, (1, 0))
    until(lambda: result(browser) not in (before, b""), WAIT, "what is erased is known again")
    click(browser, "Clear")
    until(lambda: "Paint over" in line(browser), WAIT)
    assert not result(browser)


def test_an_image_is_uploaded_and_dropped(page, tmp_path):
    browser = page(run="sit", kind="redraw", copies=2)
    sample, first = image(browser), drawn(browser)
    (tmp_path / "photo.png").write_bytes(png((60, 40)))
    upload(browser, tmp_path / "photo.png")
    until(lambda: image(browser) != sample, WAIT)
    until(lambda: result(browser) not in (first, b"") and "evaluations" in line(browser), WAIT)
    assert Image.open(BytesIO(image(browser))).size == (8, 8) and "photo.png" in text_of(browser)
    photo = image(browser)
    browser.execute_script(
        """const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), all = new DataTransfer();
        all.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.querySelector(".edit-canvas").dispatchEvent(new DragEvent("drop", { dataTransfer: all }));""",
        base64.b64encode(png((31, 50))).decode(),
    )
    until(lambda: "dropped.png" in text_of(browser) and image(browser) != photo, WAIT, "what is dropped is not taken")
    click(browser, "Draw another")
    until(lambda: "A sample of the run" in text_of(browser), WAIT)


def test_files_that_are_no_images_or_too_large_are_refused(page, tmp_path):
    browser = page(run="sit", kind="redraw")
    drawn(browser)
    before = image(browser)
    (tmp_path / "huge.png").write_bytes(huge_png(20_000, 10_000))
    (tmp_path / "words.png").write_text("these are words")
    (tmp_path / "words.txt").write_text("these are words")
    (tmp_path / "heavy.png").write_bytes(bytes(21 * 2**20))
    for name, told in (
        ("huge.png", "20,000 x 10,000 pixels, and at most 50 million"),
        ("words.png", "cannot be decoded"),
        ("words.txt", "Not all were taken"),
        ("heavy.png", "Images of up to 20 MB"),
    ):
        upload(browser, tmp_path / name)
        until(lambda told=told: told in text_of(browser), WAIT, f"{name}: {told}")
        assert image(browser) == before, "what was there stays"
    click(browser, "Other seed")
    drawn(browser)


def test_variations_of_a_run_with_scales(page, tmp_path, monkeypatch):
    browser = page(run="flowar", kind="vary", keep=2, copies=12, sample=4, label="5")
    shown = drawn(browser)
    assert [is_on(browser, name) for name in ("Vary", "Upscale", "Invert", "From examples")] == [
        True,
        True,
        False,
        False,
    ]
    assert "Invert: only for runs with one path" in text_of(browser)
    saved(browser, tmp_path, "Save image", "image.png")
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(copied(browser, "As a command"))[1:]) == 0
    assert (tmp_path / "edit" / "grid.png").read_bytes() == shown
    browser.refresh()
    until(lambda: image(browser), WAIT)
    assert drawn(browser) == shown, "the link has the settings"
    click(browser, "Upscale")
    until(lambda: "edit grow" in copied(browser, "As a command"), WAIT)
    assert Image.open(BytesIO(image(browser))).size == (4, 4)


def test_examples_for_a_run_with_a_history(page, tmp_path, monkeypatch):
    browser = page(run="arflow", kind="context", copies=4)
    first = drawn(browser)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png((20 + i, 30)))
    upload(browser, *(tmp_path / f"{i}.png" for i in range(3)))
    until(lambda: "0.png, 1.png, 2.png" in text_of(browser), WAIT)
    until(lambda: result(browser) not in (first, b"") and "evaluations" in line(browser), WAIT)
    saved(browser, tmp_path, "Save examples", "examples.npz")
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(copied(browser, "As a command"))[1:]) == 0
    assert (tmp_path / "edit" / "grid.png").read_bytes() == result(browser)
    click(browser, "Invert")
    until(lambda: "drawn again from its noise" in line(browser), WAIT)


def test_runs_and_kinds_that_cannot_be_say_why(page, browser, studio):
    page(run="sit", kind="vary")
    until(lambda: "Vary is only for runs with scales" in line(browser), WAIT)
    for name, told in (("broken", "run.json"), ("../elsewhere", "is no run in")):
        go(browser, f"{studio.address}/edit?run={name}")
        until(lambda told=told: told in line(browser), WAIT, told)


def test_two_tabs_edit_at_once(page, studio, tmp_path, browser):
    page(run="sit", kind="redraw", copies=2)
    with browsing(tmp_path / "other") as other:
        go(other, f"{studio.address}/edit?run=flowar&kind=vary")
        drawn(other)
        assert "flowar" in copied(other, "As a command") and errors_of(other) == []
    drawn(browser)
    assert "redraw" in copied(browser, "As a command")
