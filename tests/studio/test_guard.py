"""Who is let in: hosts, origins, tokens, and paths."""

import asyncio

import pytest

from fluvial.studio.guard import COOKIE, Guard, is_loopback, new_token
from fluvial.studio.places import name_of_run, run_named, runs_below


def asked(token="", query="", kind="http", path="/play", **headers):
    """The messages that the guard answers with; ["passed"] where it lets the request in."""
    sent = []

    async def app(scope, receive, send):
        sent.append("passed")

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "query_string": query.encode()}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Guard(app, token)(scope, None, send))
    return sent


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "localhost"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_this_machine_is_let_in(host, kind):
    assert asked(host=host, kind=kind) == ["passed"]
    assert asked(host=host, kind=kind, origin=f"http://{host}") == ["passed"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:7860"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"host": "localhost@evil.example"},
        {"host": "[::1"},
        {"host": "localhost:7860", "origin": "http://evil.example"},
        {"host": "localhost:7860", "origin": "http://localhost:9999"},
        {"host": "localhost:7860", "origin": "null"},
    ],
)
def test_others_are_refused(headers):
    assert asked(**headers)[0]["status"] == 403
    assert asked(**headers, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_a_token_is_asked_for_and_then_kept_in_a_cookie():
    token = new_token()
    assert len(token) >= 32 and token != new_token()
    assert asked(token, host="10.0.0.2:7860")[0]["status"] == 403
    assert asked(token, host="10.0.0.2:7860", query="token=wrong")[0]["status"] == 403
    start = asked(token, host="10.0.0.2:7860", query=f"run=a&token={token}")[0]
    headers = dict(start["headers"])
    assert start["status"] == 303 and headers[b"location"] == b"/play?run=a"
    cookie = headers[b"set-cookie"].decode()
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert asked(token, host="10.0.0.2:7860", cookie=cookie.partition(";")[0]) == ["passed"]
    assert asked(token, host="10.0.0.2:7860", cookie=f"{COOKIE}=other")[0]["status"] == 403
    assert asked(token, host="10.0.0.2", cookie=f"{COOKIE}={token}", origin="http://evil.example")[0]["status"] == 403
    assert asked(token, host="10.0.0.2", kind="websocket")[0]["type"] == "websocket.close"
    assert is_loopback("127.0.0.1") and not is_loopback("0.0.0.0") and not is_loopback("10.0.0.2")


def test_only_runs_below_the_folder_are_named(tmp_path):
    root, outside = tmp_path / "runs", tmp_path / "outside"
    for folder in (root / "a", root / "deep" / "b", outside):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    (root / "link").symlink_to(outside)
    (root / "within").symlink_to(root / "a")
    assert [name_of_run(root, run) for run in runs_below(root)] == ["a", "deep/b"]
    assert run_named(root, "deep/b") == root / "deep" / "b" and run_named(root, "within") == root / "within"
    for name in ("../outside", "link", str(outside), "deep/../../outside", "nothing", "a\0", "x" * 5000, "deep"):
        with pytest.raises(ValueError, match="is no run in"):
            run_named(root, name)
