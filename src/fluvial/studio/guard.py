"""Which requests the studio answers: of this machine alone, or with a token, and of its own pages."""

from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import SimpleCookie
from secrets import compare_digest, token_urlsafe
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "fluvial_token"


def is_loopback(host: str) -> bool:
    """True for a name of this machine that no other one reaches."""
    return host in LOOPBACK


def new_token() -> str:
    """A token that cannot be guessed: 192 bits."""
    return token_urlsafe(24)


class Guard:
    """An ASGI application that passes on what it is allowed to, and refuses the rest with 403.

    Without a token the Host must be one of this machine, so that a page elsewhere cannot reach the studio under a name
    of its own (DNS rebinding). With a token, the first request has it in its address (?token=...) and is sent on with a
    cookie, which all others bring. An Origin, if there is one, must be the address that is asked: pages of others can
    neither start anything nor open a socket.
    """

    def __init__(self, app: App, token: str = "") -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self.refusal(headers, scope.get("query_string", b"").decode("latin-1")):
            return await _answer(scope, send, 403, refusal)
        if self.token and (rest := self._without_token(scope)) is not None:
            # Strict would keep it back where the printed address is a link that is followed from another page
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Lax; Path=/"
            return await _answer(scope, send, 303, "", {"location": rest, "set-cookie": cookie})
        await self.app(scope, receive, send)

    def refusal(self, headers: dict[str, str], query: str) -> str:
        """The reason to refuse a request; "" for none."""
        host = headers.get("host", "")
        if not self.token and not is_loopback(_name(host)):
            return f"The studio is open to this machine alone, under {' or '.join(LOOPBACK[:2])}; got {host[:100]!r}."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"The page {origin[:100]!r} is not one of the studio."
        if self.token:
            given = SimpleCookie(headers.get("cookie", ""))
            told = given[COOKIE].value if COOKIE in given else dict(parse_qsl(query)).get("token", "")
            if not compare_digest(told.encode(), self.token.encode()):
                return "The studio asks for the token that it printed: open the address with ?token=..."
        return ""

    def _without_token(self, scope: Scope) -> str | None:
        """The address without the token in it; None if it has none."""
        asked = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        rest = [(name, value) for name, value in asked if name != "token"]
        if scope["type"] != "http" or len(rest) == len(asked):
            return None
        return scope["path"] + (f"?{urlencode(rest)}" if rest else "")


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _answer(scope: Scope, send: Any, status: int, text: str, headers: dict[str, str] | None = None) -> None:  # noqa: ANN401
    if scope["type"] == "websocket":  # closed before it is accepted: the browser is told 403
        return await send({"type": "websocket.close", "code": 1008})
    fields = {"content-type": "text/plain; charset=utf-8", **(headers or {})}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": text.encode()})
