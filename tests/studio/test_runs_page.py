"""The pages of runs in a browser: cards, curves that grow, trainings that start and stop, and what is refused."""

import json
import shutil
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote

import pytest
from in_browser import browsing, errors_of, go, served, text_of, until
from PIL import Image
from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains

import fluvial
from fluvial import recipes
from fluvial.studio.gallery import Gallery, ago, picture_file

WAIT = 60
LOG_AXIS = """const e = document.querySelector(".at-chart-loss");
    return getElement(Number(e.id.slice(1))).chart.getOption().yAxis[0].type"""
SLOW = 100_000  # steps, which are not taken before it is stopped


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a run, a copy with other settings, one that is damaged, and a link to one outside."""
    outer = tmp_path_factory.mktemp("runs-page")
    root, outside = outer / "runs", outer / "outside"
    run = recipes.smoke(recipes.get("digits-sit"))
    train = replace(run.train, steps=40, batch=16, log_every=2, validate_every=10, sample_every=20)
    fluvial.train(replace(run, train=train), root / "digits", device="cpu")
    fluvial.train(replace(run, train=replace(train, steps=20), seed=7), root / "a b%#<i>", device="cpu")
    shutil.copytree(root / "digits", root / "broken")
    (root / "broken" / "run.json").write_text("{")
    shutil.copytree(root / "digits", outside)
    (root / "link").symlink_to(outside)
    (root / "digits" / "samples" / "out.png").symlink_to(outside / "samples" / "step-00000020.png")
    (root / "digits" / "samples" / "text.png").write_text("no picture")
    shutil.copy(root / "digits" / "samples" / "step-00000020.png", root / "digits" / "samples" / "odd.txt")
    return root


@pytest.fixture(scope="module")
def studio(root):
    with served(root) as found:
        yield found


@pytest.fixture
def page(browser, studio):
    """Opens an address of the studio; its console says nothing."""
    errors_of(browser)

    def opened(address):
        go(browser, f"{studio.address}{address}")
        return browser

    yield opened
    assert errors_of(browser) == []


def one(browser, selector):
    """The first element of the selector that is shown."""

    def found():
        try:
            return next((e for e in browser.find_elements("css selector", selector) if e.is_displayed()), None)
        except StaleElementReferenceException:  # drawn anew meanwhile
            return None

    return until(found, WAIT, f"no {selector}")


def click(browser, selector):
    """Clicks on the first element of the selector that is shown."""

    def clicked():
        try:
            one(browser, selector).click()
        except StaleElementReferenceException:  # drawn anew meanwhile
            return False
        return True

    until(clicked, WAIT, f"{selector} cannot be clicked")


def shows(browser, text, selector="body"):
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join('\\n')"
    until(lambda: text in browser.execute_script(script, selector), WAIT, f"no {text!r} in {selector}")


def choose(browser, selector, text):
    """Chooses an item of a select. A menu that a change of the page has closed is opened again."""

    def tried():
        with suppress(StaleElementReferenceException, ElementNotInteractableException):
            there = browser.find_elements("css selector", ".q-menu .q-item")
            if items := [item for item in there if text in item.text]:
                items[0].click()
                return True
            if not there:
                click(browser, selector)
        return False

    until(tried, WAIT, f"no {text} in {selector}")


def points(browser, selector=".at-chart-loss"):
    """The points of the curves of a chart, by name; the last curve of a name stays."""
    script = """const e = document.querySelector(arguments[0]); if (!e) return {};
        const chart = getElement(Number(e.id.slice(1))).chart; if (!chart) return {};
        return Object.fromEntries(chart.getOption().series.map(s => [s.name, s.data]))"""
    return browser.execute_script(script, selector)


def curves(browser, selector=".at-chart-loss"):
    return until(lambda: points(browser, selector), WAIT, "no curves")


def test_cards_say_what_each_run_is(page, root):
    browser = page("/")
    one(browser, ".at-run img")
    text = text_of(browser)
    for told in ("digits", "a b%#<i>", "broken", "damaged", "finished", "step 40 of 40", "run.json is not the file"):
        assert told in text
    assert len(browser.find_elements("css selector", ".at-run")) == 3
    script = "return [...document.querySelectorAll('.at-run img')].every(e => e.complete && e.naturalWidth > 100)"
    until(lambda: browser.execute_script(script), WAIT, "a picture was not served")
    assert not browser.find_element("css selector", ".at-search").is_displayed()


def test_many_runs_are_searched_and_sorted_and_only_what_changes_is_redrawn(browser, tmp_path, root):
    for i in range(10):
        shutil.copytree(root / "digits", tmp_path / f"run-{i}")
    with served(tmp_path) as studio:
        go(browser, studio.address)
        one(browser, ".at-search input").send_keys("run-3")
        shown = "return [...document.querySelectorAll('.at-run')].filter(e => e.offsetWidth).map(e => e.pathname)"
        until(lambda: browser.execute_script(shown) == ["/run/run-3"], WAIT, "it does not search")
        one(browser, ".at-search input").send_keys("x")
        shows(browser, "No run fits the search.")
        one(browser, ".at-search input").send_keys("\b" * 6)
        until(lambda: len(browser.execute_script(shown)) == 10, WAIT)
        marks = "[...document.querySelectorAll('.at-run')].map(e => e.querySelector('.run-numbers'))"
        browser.execute_script(f"{marks}.forEach(e => e.marked = true)")
        with (tmp_path / "run-5" / "log.jsonl").open("a") as file:
            file.write('{"step": 41, "loss": 0.125, "time": 1}\n')
        shows(browser, "loss 0.125")
        assert browser.execute_script(f"return {marks}.filter(e => !e.marked).length") == 1
        shutil.rmtree(tmp_path / "run-5")
        until(lambda: len(browser.execute_script(shown)) == 9, WAIT, "a run that is gone is still shown")


def test_a_run_has_curves_pictures_findings_and_settings(page, root):
    browser = page("/run/digits")
    drawn = curves(browser)
    rows = [json.loads(line) for line in (root / "digits" / "log.jsonl").read_text().splitlines()]
    assert [x for x, _ in drawn["training"]] == [row["step"] for row in rows if "loss" in row]
    validation = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert [y for _, y in drawn["validation"]] == pytest.approx(validation, rel=1e-4)
    for title in ("Learning rate", "Gradient norm", "Images/s", "Validation loss by time t", "step 40"):
        shows(browser, title)
    shows(browser, "of 14 checks", ".at-findings")
    shows(browser, "no score:", ".at-scores")
    shows(browser, "no recipe to compare with", ".at-differing")
    click(browser, ".at-settings .q-item")
    shows(browser, "train.batch\t16", ".at-settings")
    picture = one(browser, ".at-picture img").get_attribute("src")
    one(browser, ".at-picture-slider [tabindex]").send_keys("\ue012")  # the arrow to the left
    until(lambda: one(browser, ".at-picture img").get_attribute("src") != picture, WAIT, "the slider does nothing")
    shows(browser, "step 20", ".picture-step")


def test_axes_and_other_runs(page):
    browser = page("/run/digits")
    steps = curves(browser)["training"]
    click(browser, ".at-by button:nth-child(2)")
    images = [[16 * x, y] for x, y in steps]
    until(lambda: points(browser).get("training") == images, WAIT, "the axis does not count images")
    click(browser, ".at-log .q-checkbox, .at-log")
    axis = "return getElement(Number(document.querySelector('.at-chart-loss').id.slice(1))).chart.getOption().yAxis[0]"
    until(lambda: browser.execute_script(axis)["type"] == "log", WAIT, "the axis is not logarithmic")
    choose(browser, ".at-compare", "a b")
    until(lambda: {"digits", "a b%#<i>"} < set(points(browser)), WAIT, "the other run is not drawn")


def test_a_curve_that_grows_keeps_its_zoom(page, root):
    log = root / "grows" / "log.jsonl"
    shutil.copytree(root / "digits", log.parent)
    browser = page("/run/grows")
    before = curves(browser)["training"]
    chart = "getElement(Number(document.querySelector('.at-chart-loss').id.slice(1))).chart"
    browser.execute_script(f"{chart}.dispatchAction({{type: 'dataZoom', start: 40, end: 70}})")
    with log.open("a") as file:
        file.write('{"step": 60, "loss": 0.5, "time": 1}\n{"step": 62, "lo')
    until(lambda: len(points(browser)["training"]) == len(before) + 1, WAIT, "the curve does not grow")
    assert points(browser)["training"][-1][0] == 60
    zoom = browser.execute_script(f"return {chart}.getOption().dataZoom.map(z => [z.start, z.end])")
    assert zoom == [[40, 70], [40, 70]]
    shutil.rmtree(log.parent)
    shows(browser, "gone", ".at-why")


def test_what_differs_from_another_run_and_names_are_text(page):
    browser = page(f"/run/{quote('a b%#<i>')}")
    shows(browser, "step 20 of 20")
    shows(browser, "no recipe to compare with", ".at-differing")
    choose(browser, ".at-other", "digits")
    shows(browser, "seed\t7\t0", ".at-differing")
    assert not browser.find_elements("css selector", ".page i:not(.q-icon)")


def test_a_damaged_run_shows_as_such(page):
    browser = page("/run/broken")
    shows(browser, "This run is damaged: run.json is not the file of a run", ".at-why")
    assert curves(browser)["training"]
    shows(browser, "cannot be read", ".at-findings")
    assert not any(e.is_displayed() for e in browser.find_elements("css selector", ".at-go-on, .at-play"))


@pytest.mark.parametrize("name", ["link", "../outside", "..%2Foutside", "%2Fetc", "none", "a%00b", "x" * 300])
def test_no_page_and_no_picture_of_what_lies_outside(studio, name):
    with urllib.request.urlopen(f"{studio.address}/run/{name}") as answer:
        text = answer.read().decode()
    assert "No such run" in text or "404" in text
    assert "step-00000020" not in text
    assert refused(studio, name, "samples/step-00000020.png")


@pytest.mark.parametrize(
    "file",
    [
        "run.json",
        "samples/out.png",
        "samples/text.png",
        "samples/odd.txt",
        "samples",
        "",
        "../broken/samples/step-00000020.png",
    ],
)
def test_pictures_of_a_run_alone_are_served(studio, root, file):
    assert not refused(studio, "digits", "samples/step-00000020.png")
    assert picture_file(root, "digits", "samples/step-00000020.png").parent == (root / "digits" / "samples").resolve()
    assert refused(studio, "digits", file)


def refused(studio, name, file):
    try:
        with urllib.request.urlopen(f"{studio.address}/picture/{name}?file={quote(file)}") as answer:
            assert answer.headers["content-type"] == "image/png"
            Image.open(answer).load()
            return False
    except urllib.error.HTTPError as error:
        return error.code == 404


def test_a_run_is_trained_from_the_page_and_its_curve_grows_and_it_is_stopped(page, root):
    browser = page("/")
    click(browser, ".at-new")
    click(browser, ".at-kind button:nth-child(2)")
    until(lambda: one(browser, ".at-name input").get_attribute("value") == "digits-sit", WAIT, "no name is proposed")
    one(browser, ".at-steps input").send_keys(str(SLOW))
    click(browser, ".at-show")
    shows(browser, "checked: training would start in", ".at-plan")
    click(browser, ".at-start")
    until(lambda: browser.current_url.endswith("/run/digits-sit"), WAIT, "its page is not opened")
    shows(browser, "digits-sit", ".at-queue")
    shows(browser, "running", ".at-state")
    first = len(curves(browser)["training"])
    until(lambda: len(points(browser)["training"]) > first, WAIT, "the curve does not grow")
    settings = "return document.querySelector('.at-settings').textContent"
    until(lambda: str(SLOW) in browser.execute_script(settings), WAIT, "the settings are of before it began")
    click(browser, ".at-queue .at-stop")
    shows(browser, "stopped", ".at-state")
    one(browser, ".at-go-on")
    assert fluvial.load(root / "digits-sit", device="cpu").step > 0  # it has saved


def test_the_pointer_over_a_chart_tells_its_values(page):
    browser = page("/run/digits")
    last = curves(browser)["training"][-1]
    chart = one(browser, ".at-chart-loss canvas")
    for x, y in ((0, 0), (20, 10), (120, -30), (-90, 20)):
        ActionChains(browser).move_to_element_with_offset(chart, x, y).perform()
    shows(browser, "training", ".at-chart-loss")
    assert last[0] == 40
    for chart in browser.find_elements("css selector", ".at-chart canvas"):
        ActionChains(browser).move_to_element(chart).perform()
    click(browser, ".at-log")
    until(lambda: browser.execute_script(LOG_AXIS) == "log", WAIT, "the chart is not drawn anew")


def test_the_tabs_lead_to_the_run_of_the_page(page):
    browser = page("/run/digits")
    assert one(browser, ".tab.here").text == "Runs"
    for name, path in (("Playground", "/play"), ("Data", "/data")):
        next(tab for tab in browser.find_elements("css selector", "a.tab") if tab.text == name).click()
        until(lambda path=path: f"{path}?run=digits" in browser.current_url, WAIT, f"{name} is of another run")


def test_one_that_fails_shows_why(page, root):
    browser = page("/")
    click(browser, ".at-new")
    one(browser, ".at-place input").send_keys(str(root / "nothing-here"))
    click(browser, ".at-show")
    shows(browser, "nothing-here", ".at-plan")
    assert not any(e.is_displayed() for e in browser.find_elements("css selector", ".at-start"))
    one(browser, ".at-place input").send_keys("\ue010" + "\b" * 200 + "--help")
    click(browser, ".at-show")
    shows(browser, "It cannot begin with a dash.")


def test_nothing_is_wider_than_a_phone(studio, tmp_path):
    with browsing(tmp_path / "profile") as browser:
        metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for address in ("/", "/run/digits", "/run/broken"):
            go(browser, studio.address + address)
            one(browser, ".at-run, canvas")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, address


def test_the_gallery_reads_again_what_has_changed(tmp_path, root):
    shutil.copytree(root / "digits", tmp_path / "a")
    shutil.copytree(root / "digits", tmp_path / "b")
    gallery = Gallery(tmp_path)
    before = gallery.look()
    (tmp_path / "b" / "run.json").write_text("{")
    after = gallery.look()
    assert after[0] is before[0]
    assert (before[1].listed.state, after[1].listed.state) == ("finished", "damaged")
    assert before[0].picture.startswith("/picture/a?file=samples%2Fstep-00000040.png&of=")
    shutil.rmtree(tmp_path / "a")
    assert [shown.name for shown in gallery.look()] == ["b"]
    assert [ago(0.0, now) for now in (-5.0, 59.0, 60.0, 7300.0, 2e5)] == [
        "just now",
        "just now",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]
