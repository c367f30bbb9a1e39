"""The entry point: what importing needs is looked at before anything large is imported."""

import sys
import tempfile
from contextlib import suppress


def main() -> int:
    """Runs one command of `fluvial.cli`; 1 if there is no folder for temporary files, which libraries ask for early."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        told = f"fluvial: error: {error.strerror}; set TMPDIR to a folder that can be written to"
        with suppress(OSError):  # of a stderr that takes nothing either
            print(told, file=sys.stderr, flush=True)
        return 1
    from fluvial.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
