"""docs/glossary.md: terms in alphabetical order, each with a file of the library that exists."""

import re
from pathlib import Path

import fluvial

GLOSSARY = Path(__file__).parents[1] / "docs" / "glossary.md"
ENTRY = re.compile(r"- \*\*(.+?)\*\*: .+ \(`([\w/]+\.py)`\)")


def test_terms_are_sorted_and_their_files_exist():
    lines = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("- ")]
    entries = [ENTRY.fullmatch(line) for line in lines]
    assert [line for line, entry in zip(lines, entries, strict=True) if entry is None] == []
    terms = [entry[1].lower() for entry in entries if entry]
    assert terms == sorted(set(terms))
    root = Path(fluvial.__file__).parent
    assert [entry[2] for entry in entries if entry and not (root / entry[2]).is_file()] == []
