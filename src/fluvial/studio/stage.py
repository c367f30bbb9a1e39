"""The picture of the playground as an element of the page."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any

from nicegui.element import Element


class Stage(Element, component="static/stage.js"):
    """A picture that is dragged, with another pinned over it. `on_drag(x, y)` has parts of its side."""

    def __init__(
        self, on_drag: Callable[[float, float], None], on_drop: Callable[[], None], on_key: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.on("key", lambda event: on_key(str(event.args)))
        self.on("drag", lambda event: on_drag(*_numbers(event.args)))
        self.on("drop", lambda event: on_drop())

    def show(self, png: bytes) -> None:
        """Shows a picture in place of the one before."""
        self.run_method("show", data_url(png))

    def pin(self, png: bytes | None) -> None:
        """Lays a picture over the left part of the others; None takes it away."""
        self.run_method("pin", "" if png is None else data_url(png))

    def say(self, text: str) -> None:
        """Shows a line in place of a picture."""
        self.run_method("say", text)


def _numbers(moved: Any) -> tuple[float, float]:  # noqa: ANN401 - from the browser
    """The way of the pointer, in sides of the picture; (0, 0) for anything that is no such message."""
    try:
        return tuple(max(-1.0, min(1.0, float(moved[axis]))) for axis in "xy")  # type: ignore[return-value]
    except (KeyError, TypeError, ValueError):
        return 0.0, 0.0


def data_url(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{b64encode(png).decode()}"
