import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fluvial.cli import main
from fluvial.metrics.report import KIND, sealed
from fluvial.run.folder import RunFolder
from fluvial.tools.doctor import doctor
from fluvial.tools.report import html, sections
from fluvial.tools.report import report as report_of
from fluvial.tools.report.gather import evenly, gather
from folders import rows, run_folder

VOID = {"meta", "img"}


class Read(HTMLParser):
    """The elements of a page with their text and attributes; fails where tags do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.links, self.pictures = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data", "poster")]
        assert not [name for name in found if name.startswith("on")]
        if tag == "img":
            kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", found["src"]).groups()
            self.pictures.append(Image.open(BytesIO(base64.b64decode(content, validate=True))))
            assert self.pictures[-1].format == kind.upper()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def __str__(self):
        return " ".join(" ".join(self.text).split())


def grid(run, step, shade=0, side=64):
    (run / "samples").mkdir(exist_ok=True)
    Image.new("L", (side, side), shade).save(run / "samples" / f"step-{step:08d}.png")


def card(count=1000, **scores):
    made = {
        "kind": KIND,
        "of": "x",
        "scores": {name: {"value": value, "error": 0.25, "real": 0.5} for name, value in scores.items()},
        "images": {"count": count, "shape": [8, 8]},
        "extractor": {"name": "pixels", "hash": "no weights"},
        "reference": {"name": "digits:<test>", "hash": "0" * 64},
        "training": {},
        "sampling": {"solver": "ab2", "nfe": 12, "guidance": 1.5, "train_step": 400},
        "warnings": ["few <b>images</b>"],
        "made_by": {},
    }
    return json.dumps(sealed(made))


def write_report(folders, out):
    return report_of(folders, out, doctor)


@pytest.fixture
def cheap(monkeypatch):
    """Without opening the data of the run for doctor."""
    monkeypatch.setattr(
        "fluvial.tools.doctor.training_latents", lambda *args, **kwargs: (_ for _ in ()).throw(OSError())
    )


def test_one_page_with_everything_and_nothing_fetched(tmp_path, cheap, capsys):
    pytest.importorskip("matplotlib")
    run = run_folder(tmp_path / "a", 400, log=rows(), steps=400, batch=8)
    for i in range(1, 21):
        grid(run, 20 * i, shade=10 * i)
    (run / "score.json").write_text(card(frechet_distance=0.75))
    assert main(["report", str(run)]) == 0 and capsys.readouterr().out.strip() == str(run / "report.html")
    page = Read((run / "report.html").read_text())
    assert page.links == [link for link in page.links if link.startswith("data:image/")]
    assert "http" not in re.sub(r"base64,[^\"]+", "", (run / "report.html").read_text()).replace("http-equiv", "")
    shades = [int(np.array(picture)[0, 0]) for picture in page.pictures if picture.size == (64, 64)]
    assert shades == [10, 40, 60, 90, 120, 150, 170, 200]  # 8 of 20, the newest last
    assert len(page.pictures) == 8 + 5  # and the panels
    text = str(page)
    assert "400 of 400 (3,200 images)" in text and "3 min 20 s" in text and "frechet distance 0.75 ± 0.25 0.5" in text
    assert "train.batch 160 8" in text and "train.steps 1200 400" in text and "optim.warmup 100" not in text
    assert "few <b>images</b>" in text and f"fluvial sample {run}" in text and "moving average" in text


NASTY = "<script>alert('1')&\"</script >$x$_"


def test_names_of_any_kind_are_text(tmp_path, cheap):
    run = run_folder(tmp_path / NASTY.replace("/", ""), 50, log=rows(), recipe="digits-arflow")
    record = RunFolder(run).record()
    record["run"]["data"] |= {"path": f"/{NASTY}", "name": "", "class_names": [f"{NASTY}{i}" for i in range(10)]}
    RunFolder(run).write(record | {"recipe": NASTY})
    other = run_folder(tmp_path / "b\udcff", 50, log=rows())
    grid(run, 50)
    (run / "score.json").write_text(card(**{NASTY: 1.0}))
    for folders in ([run], [run, other]):
        page = Read(write_report(folders, tmp_path / "r.html").read_text())
        assert "script" not in page.tags and "b" not in page.tags
        assert str(page).count("<script>alert('1')&\"<") >= 3


def test_missing_and_damaged_parts_are_lines(tmp_path, cheap):
    bare = run_folder(tmp_path / "bare")
    text = str(Read(write_report([bare], tmp_path / "r.html").read_text()))
    for line in (
        "no samples yet",
        "no score: ",
        "has no log.jsonl",
        "training has not begun",
        "0 of 1,200",
        "go on to step 1,200",
    ):
        assert line in text, line
    broken = run_folder(tmp_path / "broken", 50, log=rows())
    grid(broken, 10)
    grid(broken, 20)
    (broken / "samples" / "step-00000010.png").write_bytes(b"\x89PNG nothing")
    (broken / "score.json").write_text("{}")
    page = Read(write_report([bare, broken], tmp_path / "r.html").read_text())
    assert "step-00000010.png cannot be read" in str(page) and "is not a score card" in str(page)
    (bare / "run.json").write_text("{}")
    (tmp_path / "r.html").unlink()
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        write_report([broken, bare], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_several_runs_stand_side_by_side(tmp_path, cheap, capsys):
    pytest.importorskip("matplotlib")
    a = run_folder(tmp_path / "a", 100, log=rows(), batch=8)
    b = run_folder(tmp_path / "b", 200, log=rows(), batch=16, recipe="digits-flowar")
    c = run_folder(tmp_path / "c", 200, log=rows(), batch=8)
    for run, count in ((a, 1000), (b, 500), (c, 1000)):
        (run / "score.json").write_text(card(count, frechet_distance=count / 500))
    assert main(["report", str(a), str(b), str(c)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    text = str(Read((tmp_path / "report.html").read_text()))
    assert "train.batch 8 16 8" in text and "frechet distance 2 ± 0.25 1 ± 0.25 2 ± 0.25 0.5" in text
    assert "b and a cannot be compared: images.count is 1000 and 500" in text and "c and a" not in text
    assert "method.head_depth - 2 -" in text and "method sit flowar sit" in text


def test_a_large_grid_is_reduced(tmp_path):
    run = run_folder(tmp_path / "a")
    grid(run, 1, side=2000), grid(run, 2, side=2000)
    sizes = [
        Image.open(BytesIO(found.content)).size
        for found in gather(run, "a", lambda folder: [], lambda name: None).grids
    ]
    assert sizes == [(420, 420), (1400, 1400)]


def test_some_of_many_with_both_ends():
    assert evenly(list(range(5)), 8) == [0, 1, 2, 3, 4]
    assert evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]


def test_markup_is_made_here_only():
    assert html.element("p", "<i>", html.element("b", 1), title='"') == '<p title="&quot;">&lt;i&gt;<b>1</b></p>'
    assert html.text("\udcff") == "\\udcff"
    assert [sections.duration(s) for s in (3.21, 200.0, 7500.0)] == ["3.2 s", "3 min 20 s", "2 h 5 min"]


def test_wrong_outputs_and_folders_are_refused(tmp_path, capsys):
    run = run_folder(tmp_path / "a")
    assert main(["report", str(run), "--out", str(tmp_path / "x.txt")]) == 2
    assert main(["report", str(run), str(run)]) == 1 and "twice" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1 and "is not a run folder" in capsys.readouterr().err
    assert main(["report"]) == 2 and main(["report", "--help"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
