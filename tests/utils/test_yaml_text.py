import json
import random

import pytest
import yaml

from fluvial.utils.yaml_text import as_yaml, parse

TEXTS = [
    "",
    "no",
    "on",
    "~",
    "null",
    "true",
    "1e-4",
    "1_000",
    "12:30",
    "2024-01-01",
    "- a",
    "a: b",
    "a #b",
    "é",
    "日本",
]
TEXTS += [
    "'",
    '"',
    "a\nb",
    "a\tb",
    " a ",
    "{a}",
    "[a]",
    "*a",
    "&a",
    "!a",
    "%a",
    "@a",
    "\\",
    "\x7f",
    "\u2028",
    "😀",
    "...",
]
TEXTS += ["日本", "...", "=", "<<", ".inf", "0x1F", "010", "---", "?", "a,b", "None", "runs/x", "hub:OWNER/NAME"]
NUMBERS = [0, -1, 10**18, 1e-4, 1e-05, 1.5e300, -0.0, 0.1, 1e16, True, False, None]


@pytest.mark.parametrize("value", [*TEXTS, *NUMBERS, TEXTS, NUMBERS, [], [[1, 2], ["a", [None]]]], ids=repr)
def test_what_is_written_is_read_again_and_by_yaml_1_1_too(value):
    text = f"x: {as_yaml(value)}"
    assert "\n" not in text
    assert repr(parse(text).values["x"]) == repr(value)
    assert repr(yaml.safe_load(text)["x"]) == repr(value)


def test_json_is_read_as_json():
    generator = random.Random(0)

    def value(depth):
        kind = generator.randrange(5 if depth else 4)
        if kind == 4:
            return [value(depth - 1) for _ in range(generator.randrange(4))]
        return [generator.choice(TEXTS), generator.choice(NUMBERS), generator.uniform(-9, 9), generator.randrange(99)][
            kind
        ]

    for _ in range(300):
        one = value(3)
        for ascii in (True, False):
            text = json.dumps({"x": one}, ensure_ascii=ascii)
            if "\\ud" not in text and "\x7f" not in text and "\u2028" not in text:  # which YAML writes otherwise
                assert repr(parse(text).values["x"]) == repr(one)


def test_plain_words_are_those_of_yaml_1_2():
    for text, value in (
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("+3", 3),
        ("20_000", 20_000),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("False", False),
        ("", None),
        ("!!str 5", "5"),
    ):
        assert repr(parse(f"x: {text}").values["x"]) == repr(value)


def test_settings_are_nested_or_dotted_and_know_their_line():
    found = parse("# a comment\na:\n  b: 1\n  c.d: {e: 2}\na.f: [x, 3]\n\ng:\n")
    assert found.values == {"a.b": 1, "a.c.d.e": 2, "a.f": ["x", 3], "g": None}
    assert found.lines == {"a": 2, "a.b": 3, "a.c.d": 4, "a.c.d.e": 4, "a.f": 5, "g": 7} and found.faults == []
    for empty in ("", "# nothing", "---\n# nothing\n", "~"):
        assert parse(empty) == ({}, {}, [])


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("a: 1\nb: 2\na: 3", [(3, "a is given twice, in line 1")]),
        ("a: {b: 1}\na: {c: 1}", [(2, "a is given twice, in line 1")]),
        ("a: {b: 1}\na.b: 2", [(2, "a.b is given twice, in line 1")]),
        ("a.b: 1\na: {b: 2}", [(2, "a.b is given twice, in line 1")]),
        ("a.b: 1\na: 2", [(2, "a is given twice, in line 1")]),
        ("a: 1\na.b: 2", [(2, "a.b is given twice, in line 1")]),
        ("a: &x 1\nb: *x", [(2, "b: an alias")]),
        ("a: &x {b: 1}\nc: *x", [(2, "c: an alias")]),
        ("a: &x {b: *x}", [(1, "a.b: an alias")]),
        ("a: &x [*x]", [(1, "a: an alias")]),
        ("[1]: 2\n{a: 1}: 3", [(1, "expected the name"), (2, "expected the name")]),
        ("a: !!python/object:os.system 1\nb: !c {d: 1}", [(1, "a: must be a number"), (2, "b: must be a number")]),
        ("a: [{b: 1}]", [(1, "a: must be a number")]),
        (f"a: {'9' * 5000}", [(1, "a: must be a number")]),
        ("a: !!int x", [(1, "a: must be a number")]),
    ],
)
def test_faults_are_listed_with_their_line(text, faults):
    found = parse(text).faults
    assert [line for line, _ in found] == [line for line, _ in faults]
    assert all(said in text for (_, text), (_, said) in zip(found, faults, strict=True)), found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a", "expected settings"),
        ("a", "expected settings"),
        ("3", "expected settings"),
        ("a: b: c", "line 1: no YAML: mapping values"),
        ("a:\n\tb: 1", "line 2: no YAML"),
        ("a: [1", "line 1: no YAML"),
        ("a: 1\n---\nb: 2", "line 2: no YAML"),
        ("a: *b", "line 1: no YAML: found undefined alias"),
        ("a: \x00", "no YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_mapping_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse(text)
