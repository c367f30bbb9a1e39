"""The studio as a process: who it answers, what it prints, and how it ends."""

import http.client
import re
import signal
import socket
import subprocess
import sys

import pytest
from in_browser import browsing, errors_of, go, served, text_of, until

from fluvial import cli


def answer(studio, path="/", **headers):
    """Status and text of an answer, with these headers in place of the usual ones."""
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{studio.port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    got = connection.getresponse()
    return got.status, got.read().decode(errors="replace"), got.headers


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with served(tmp_path_factory.mktemp("empty")) as found:
        yield found


def test_it_is_open_to_this_machine_and_its_own_pages(studio):
    assert answer(studio)[0] == 200
    assert answer(studio, Host="evil.example")[0] == 403
    assert answer(studio, Origin="http://evil.example")[0] == 403
    socket_of = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert answer(studio, socket_of, Origin="http://evil.example")[0] == 403
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": "http://evil.example"}
    assert answer(studio, socket_of.replace("polling", "websocket"), **upgrade)[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/studio/../app.py",
        "/studio/%2e%2e/app.py",
        "/studio/..%2fapp.py",
        "/studio//etc/passwd",
        "/studio/../../../../etc/passwd",
    ],
)
def test_no_file_outside_its_own_is_served(studio, path):
    status, text, _ = answer(studio, path)
    assert status in (400, 403, 404) and "def serve" not in text and "root:" not in text


def test_nothing_is_fetched_from_elsewhere(studio, browser):
    go(browser, studio.address)
    until(lambda: "No runs" in text_of(browser))
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked and [name for name in asked if not name.startswith((studio.address, "data:"))] == []
    assert errors_of(browser) == []


def test_another_host_asks_for_the_token_that_it_prints(tmp_path):
    with served(tmp_path, "--host", "0.0.0.0") as studio:
        printed = studio.process.stdout.readline()
        token = re.search(r"token=([\w-]{32,})", printed)[1]
        assert answer(studio)[0] == 403
        assert answer(studio, "/?token=wrong")[0] == 403
        status, _, headers = answer(studio, f"/play?run=a&token={token}")
        assert status == 303 and headers["location"] == "/play?run=a"
        with browsing(tmp_path / "profile") as browser:
            go(browser, f"{studio.address}/?token={token}")
            until(lambda: "No runs" in text_of(browser))
            assert token not in browser.current_url
            assert errors_of(browser) == []


def test_it_ends_with_ctrl_c(tmp_path):
    with served(tmp_path) as studio:
        studio.process.send_signal(signal.SIGINT)
        assert studio.process.wait(30) in (0, 130)
        assert "Traceback" not in studio.process.stdout.read()


def test_what_cannot_be_served_is_refused(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "fluvial", "studio", str(tmp_path), "--port", port]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "in use" in done.stderr and "--port" in done.stderr
    for words, expected in ((["nowhere"], "is no folder"), (["--port", "0"], "port must be from 1")):
        assert cli.main(["studio", *words]) == 2
        assert expected in capsys.readouterr().err
