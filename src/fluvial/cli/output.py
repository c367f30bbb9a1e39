"""How the commands print tables."""

from rich.console import Console


def console() -> Console:
    """A console that prints text as it is: names of classes and files may look like rich's markup or emoji."""
    return Console(markup=False, emoji=False, highlight=False)
