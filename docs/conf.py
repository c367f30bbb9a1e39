"""The site of the documentation: `make docs` builds it in docs/_build. Its pages are those that GitHub shows."""

import re
from collections.abc import Iterator
from importlib.metadata import version as version_of

project = "fluvial"
copyright = "the fluvial developers"
release = version = version_of("fluvial")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "README.md", "reference/modules.rst"]  # README.md is the index of GitHub
suppress_warnings = ["ref.python"]  # a field named bytes, where the annotation of another is Python's bytes
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
highlight_language = "none"  # what names no language is a formula, or output
html_theme = "furo"
html_title = "fluvial"

apidoc_modules = [
    {
        "path": "../src/fluvial",
        "destination": "reference",
        "exclude_patterns": ["../src/fluvial/__main__.py", "../src/fluvial/studio/**"],
        "separate_modules": True,
        "module_first": True,
    }
]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # those of PyTorch's modules


def literal(lines: list[str]) -> Iterator[str]:
    """The lines of a docstring as reStructuredText: `names` as code, indented blocks as they are, all else as text."""
    indented = in_list = False
    for line in lines:
        if line.strip():
            inside = line.startswith("  ")
            in_list = bool(re.match(r"(-|\d+\.) ", line)) or (in_list and inside)
            block = inside and not in_list
        else:
            block = indented
        if block and not indented:
            yield from ("", "::", "")
        if indented and not block:
            yield ""
        indented = block
        yield line if block else _escaped(line)


def _escaped(line: str) -> str:
    """A line of text in which only `names` mean anything."""
    parts = re.split(r"(`[^`]+`)", line)
    # "\\ " is nothing, after which code may begin and end at any letter
    return "".join(f"\\ `{part}`\\ " if part[:1] == "`" else re.sub(r"([\\*|_`])", r"\\\1", part) for part in parts)


def setup(app: object) -> None:
    """Makes docstrings, which are plain text, what autodoc reads."""
    app.connect("autodoc-process-docstring", _process)  # type: ignore[attr-defined]


def _process(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = list(literal(lines))
