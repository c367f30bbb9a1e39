"""Starts the studio: the server, its pages, and who may open them."""

import logging
import socket
from pathlib import Path

from fluvial.studio.guard import Guard, is_loopback, new_token
from fluvial.studio.shared import Studio
from fluvial.utils.extras import require

STATIC = Path(__file__).parent / "static"


def serve(root: Path, *, host: str = "127.0.0.1", port: int = 7860, show: bool = False, token: str = "") -> None:
    """Serves the studio over the runs in a folder until it is interrupted.

    A host that other machines reach needs a token, which is made if none is given; the address with it is printed.
    Raises ValueError if NiceGUI is missing, or the port is taken.
    """
    require("nicegui", extra="studio", why="fluvial studio")
    check_free(host, port)
    from nicegui import app, ui

    from fluvial.studio.given import UploadLimit
    from fluvial.studio.pages import apart, data, edit, playground, run, runs

    studio = Studio(root)
    token = "" if is_loopback(host) else token or new_token()
    app.add_middleware(UploadLimit)
    app.add_middleware(Guard, token=token)  # the last one that is added is asked first
    app.add_static_files("/studio", STATIC)
    for page in (runs, run, playground, edit, data, apart):
        page.register(studio)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/{f'?token={token}' if token else ''}"
    app.on_startup(lambda: logging.getLogger("uvicorn.error").addFilter(is_worth_a_line))
    app.on_startup(lambda: print(f"fluvial studio: {address} over {root}; Ctrl+C ends it", flush=True))
    ui.run(
        host=host,
        port=port,
        title="fluvial studio",
        favicon=STATIC / "icon.svg",
        dark=None,
        reload=False,
        show=show,
        show_welcome_message=False,
        message_history_length=50,
    )


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for the error of a page whose browser left before it was made: Starlette's middleware raises it."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, RuntimeError) and str(error) == "No response returned.")


def check_free(host: str, port: int) -> None:
    """Raises ValueError if nothing can be served there, as another program does."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be served: {error.strerror}. Choose another --port or --host"
        ) from error
