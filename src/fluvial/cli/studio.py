"""fluvial studio."""

from dataclasses import dataclass
from pathlib import Path

from fluvial.cli.arguments import parse
from fluvial.studio.app import serve
from fluvial.utils.errors import UsageError

USAGE = "fluvial studio [FOLDER]"
DESCRIPTION = """A web page over a folder of runs, runs by default: see them train, draw from them, compare.

It is open to this machine alone. With --host 0.0.0.0 others reach it too: it then prints an address with a token, and
answers only who brings it."""


@dataclass(frozen=True, kw_only=True)
class StudioOptions:
    port: int = 7860
    """Port of the page."""
    host: str = "127.0.0.1"
    """Address that the page is served at."""
    show: bool = False
    """Also open it in the browser."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 2**16:
            raise ValueError(f"port must be from 1 to {2**16 - 1:,}, got {self.port}")


def studio(arguments: list[str]) -> None:
    """Serves the page until it is interrupted."""
    named = bool(arguments) and not arguments[0].startswith("-")
    folder = Path(arguments[0] if named else "runs")
    options = parse(StudioOptions, StudioOptions(), arguments[named:], USAGE, DESCRIPTION)
    if not named:
        folder.mkdir(exist_ok=True)  # to begin in
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give one of runs, such as runs; `fluvial train` makes them")
    serve(folder, host=options.host, port=options.port, show=options.show)
