"""Cards: what is refused, what is only told, and how far apart two scores are."""

import copy

import pytest

from fluvial.cli import main
from fluvial.metrics import report
from fluvial.utils.atomic import write_json


def card(**scores):
    return {
        "kind": report.KIND,
        "of": "runs/a",
        "scores": {name: {"value": value, "error": error} for name, (value, error) in scores.items()},
        "images": {"count": 50_000, "shape": [3, 256, 256], "cut": "as they are", "rounding": None, "labels": None},
        "extractor": {"name": "inception", "hash": "6" * 64, "resize": "bilinear to 299", "dtype": "float32"},
        "reference": {"name": "imagenet", "hash": "a" * 64, "count": 10_000, "neighbours": 10_000},
        "training": {"name": "train", "hash": "t" * 64},
        "sampling": {"solver": "euler", "nfe": 50, "guidance": 1.5},
        "warnings": [],
        "made_by": {},
    }


def test_two_cards_are_compared_in_standard_errors():
    a, b = card(fid=(2.27, 0.03), recall=(0.5, 0.0)), card(fid=(2.15, 0.04), precision=(0.8, 0.01), recall=(0.5, 0.0))
    b["sampling"]["solver"] = "heun"  # what one compares
    (fid, recall) = report.compared(a, b)
    assert fid.name == "fid" and fid.difference == pytest.approx(0.12) and fid.errors == pytest.approx(0.12 / 0.05)
    assert (recall.difference, recall.errors) == (0, 0)


@pytest.mark.parametrize(("part", "key", "value", "says"), [
    ("extractor", "name", "clip", "extractor.name is inception and clip"),
    ("extractor", "hash", "7" * 64, "extractor.hash is 666666666666 and 777777777777"),
    ("extractor", "resize", "bicubic", "how images are resized"),
    ("extractor", "dtype", "bfloat16", "extractor.dtype is float32 and bfloat16"),
    ("reference", "hash", "b" * 64, "reference.hash is aaaaaaaaaaaa and bbbbbbbbbbbb"),
    ("reference", "neighbours", 50_000, "reference.neighbours is 10000 and 50000"),
    ("images", "count", 10_000, "images.count is 50000 and 10000 .*fewer give a larger Frechet distance"),
    ("images", "shape", [3, 512, 512], r"images.shape is \[3, 256, 256\] and \[3, 512, 512\]"),
    ("images", "cut", "centre crop to 256 x 256", "images.cut is as they are and centre crop"),
])  # fmt: skip
def test_cards_that_differ_in_what_matters_are_refused(part, key, value, says):
    a, b = card(fid=(2.0, 0.1)), card(fid=(2.0, 0.1))
    b[part][key] = value
    with pytest.raises(ValueError, match=says):
        report.compared(a, b)


@pytest.mark.parametrize("key", ["rounding", "labels"])
def test_what_is_not_known_is_told_and_what_is_known_to_differ_is_refused(key):
    a, b = card(fid=(2.0, 0.1)), card(fid=(2.0, 0.1))
    b["images"][key] = "one way"
    assert report.unknown(a, b) == ["images.rounding", "images.labels"] and len(report.compared(a, b)) == 1
    a["images"][key] = "another"
    assert f"images.{key}" not in report.unknown(a, b)
    with pytest.raises(ValueError, match=f"images.{key} is another and one way"):
        report.compared(a, b)


def test_class_accuracies_by_other_classifiers_are_left_out():
    a, b = card(fid=(2.0, 0.1), class_accuracy=(0.9, 0.1)), card(fid=(2.0, 0.1), class_accuracy=(0.8, 0.1))
    assert [row.name for row in report.compared(a, b)] == ["fid", "class_accuracy"]
    b["training"] = {"hash": "u" * 64}
    assert [row.name for row in report.compared(a, b)] == ["fid"]


def test_the_command_compares_cards(tmp_path, capsys):
    a, b = card(fid=(2.27, 0.03)), card(fid=(2.15, 0.04))
    for name, content in (("a", a), ("b", b)):
        write_json(tmp_path / f"{name}.json", report.sealed(content))
    files = [str(tmp_path / "a.json"), "--against", str(tmp_path / "b.json")]
    assert main(["score", *files]) == 0
    printed = capsys.readouterr().out
    assert "fid (inception)" in printed and "+2.4" in printed
    other = copy.deepcopy(b)
    other["images"]["count"] = 10_000
    write_json(tmp_path / "b.json", report.sealed(other))
    assert main(["score", *files]) == 1
    assert "cannot be compared: images.count is 50000 and 10000" in capsys.readouterr().err
    (tmp_path / "b.json").write_text('{"frechet_distance": 0.7}')
    assert main(["score", *files]) == 1
    assert "is not a score card of this version" in capsys.readouterr().err
    assert main(["score", files[0]]) == 2
    (tmp_path / "b.json").write_text("no")
    assert main(["score", *files]) == 1 and "cannot be read" in capsys.readouterr().err


def test_a_changed_card_is_refused(tmp_path):
    file, content = tmp_path / "a.json", report.sealed(card(fid=(2.27, 0.03)))
    write_json(file, content)
    assert report.read(file) == content
    whole = file.read_bytes()
    for bit in range(0, 8 * len(whole), 13):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            assert report.read(file) == content  # another space
        except ValueError as error:
            assert str(file) in str(error)
    for changed, reason in (
        ({"scores": []}, r"scores is \[\]"),
        ({"scores": {"fid": 2.27}}, "fid is 2.27"),
        ({"scores": {"fid": {"value": "2", "error": 0.1}}}, "fid is .*'2'"),
        ({"images": "many"}, "images is 'many'"),
        ({"warnings": None}, "warnings is None"),
    ):
        write_json(file, report.sealed(card(fid=(2.27, 0.03)) | changed))
        with pytest.raises(ValueError, match=f"a.json is not a complete score card: {reason}"):
            report.read(file)
