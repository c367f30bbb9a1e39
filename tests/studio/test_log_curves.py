"""The curves of a run, read in part: against training's own reader of the log where that reads all of it."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fluvial.studio import curves
from fluvial.studio.curves import Reader, names_within, places_within, scale
from fluvial.studio.pages import charts
from fluvial.tools import curves as plotted
from fluvial.training import log
from fluvial.training.rows import finite, series

KEYS = ("loss", "held_out_loss", "lr", "grad_norm", "images_per_second")
START = 1.7e9


def row(step, **values):
    return {"step": step, **values, "time": START + step / 10}


def trained(step):
    return row(step, loss=1 + 1 / step, lr=1e-3, grad_norm=0.5 + step % 7, images_per_second=100.0 + step % 3)


def write(folder, rows, *, end=b""):
    """Writes a log of rows, or of bytes in place of some, and returns its path."""
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows]
    (folder / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines) + end)
    return folder / "log.jsonl"


def searched(reader):
    reader.look()
    while reader.searched < 1:
        reader.look()
    return reader.rows


@pytest.fixture
def mixed():
    """Rows of each kind, with damaged lines, numbers that are none, and two roll-backs."""
    rows = [trained(step) for step in range(1, 41)]
    rows[10:10] = [b"{damaged", b"[1, 2]", b'{"step": "3", "loss": 1}', b"", row(10, loss=float("nan"), grad_norm="x")]
    rows += [row(40, held_out_loss=1.5, held_out_by_time=[1.0, None, 2.0]), row(40, score={"fid": 30.0, "kid": 0.1})]
    rows += [row(40, skipped=2), row(40, rolled_back_to=20, first_non_finite="blocks.0"), row(40, rolled_back_to="x")]
    rows += [trained(step) for step in range(21, 30)] + [row(29, held_out_loss=1.2), row(29, rolled_back_to=25)]
    return [*rows, trained(26), row(26, score={"fid": 20.0}), row(26, held_out_loss=1.1)]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "thinned"])
def test_curves_are_those_of_the_log_as_training_reads_it(tmp_path, mixed, monkeypatch, whole, capsys):
    path = write(tmp_path, mixed, end=b'{"step": 27, "lo')
    if not whole:  # a stride as short as the lines: everything is read by places
        monkeypatch.setattr(curves, "WHOLE", 0)
        monkeypatch.setattr(curves, "POINTS", path.stat().st_size)
    rows, oracle = searched(Reader(path)), log.read(tmp_path)
    capsys.readouterr()
    for key, part in [*((key, None) for key in KEYS), ("score", "fid"), ("score", "kid"), ("held_out_by_time", 2)]:
        steps, values = series(oracle, key, part)
        kept = np.isfinite(values)
        found = finite(rows, key, part)
        assert len(found[0]) or part in ("kid", 2)  # undone
        assert np.array_equal(found, (steps[kept], values[kept])), key
    assert [r["rolled_back_to"] for r in rows if "rolled_back_to" in r] == [20, 25]
    assert names_within(rows, "score") == names_within(oracle, "score") == ["fid"]
    assert places_within(rows, "held_out_by_time") == 0


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A log of 200,000 lines, of which a roll-back undid some."""
    rows = []
    for step in range(1, 198_001):
        rows.append(trained(step))
        if step % 100 == 0:
            rows.append(row(step, held_out_loss=2 + 1 / step))
        if step in (50_000, 150_000):
            rows += [row(step, score={"fid": 1e6 / step}), row(step, skipped=step)]
    rows.append(row(198_000, rolled_back_to=190_000))
    return write(tmp_path_factory.mktemp("long"), [*rows, trained(190_001)])


def test_of_a_long_log_few_rows_are_read_and_every_measurement(long):
    reader = Reader(long)
    tracemalloc.start()
    reader.look(budget=0.0)
    assert reader.searched < 1
    assert curves.POINTS / 3 < len(finite(reader.rows, "loss")[0]) <= curves.POINTS + 1
    searched(reader)
    assert tracemalloc.get_traced_memory()[1] < 12e6 < 2 * long.stat().st_size
    tracemalloc.stop()
    steps, values = finite(reader.rows, "loss")
    assert np.array_equal(values, 1 + 1 / steps)
    assert np.diff(steps).min() > 0
    assert (steps[0], steps[-1]) == (1, 190_001)
    assert np.diff(steps).max() < 198_000 / 500
    assert np.array_equal(finite(reader.rows, "held_out_loss")[0], np.arange(100, 190_001, 100))
    assert finite(reader.rows, "score", "fid")[0].tolist() == [50_000, 150_000]
    assert [r["skipped"] for r in reader.rows if "skipped" in r] == [50_000, 150_000]


def test_measurements_stay_below_a_limit(long, monkeypatch):
    monkeypatch.setattr(curves, "KEPT", 100)
    rows = searched(Reader(long))
    steps, _ = finite(rows, "held_out_loss")
    assert 50 < len(steps) <= 200
    assert np.diff(steps).max() < 190_000 / 20
    assert [r["rolled_back_to"] for r in rows if "rolled_back_to" in r] == [190_000]


def test_looking_again_reads_what_is_new_alone(long, tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    path.write_bytes(long.read_bytes())
    reader = Reader(path)
    searched(reader)
    version, rows, parsed = reader.version, reader.rows, []
    whole = curves.row_of
    monkeypatch.setattr(curves, "row_of", lambda line: parsed.append(line) or whole(line))
    assert reader.look() == version
    assert reader.rows is rows
    assert not parsed
    with path.open("ab") as file:
        file.write(json.dumps(trained(190_002)).encode() + b"\n" + json.dumps(row(190_002, held_out_loss=3.0)).encode())
    assert reader.look() == version + 1
    assert len(parsed) < 10
    assert reader.rows[-1]["step"] == 190_002
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(trained(190_003)).encode()[:-9])
    reader.look()
    assert reader.rows[-1]["held_out_loss"] == 3.0
    assert reader.rows[:-2] == rows[: len(reader.rows) - 2]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "thinned"])
def test_a_line_cut_short_is_read_once_it_is_whole(tmp_path, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(curves, "WHOLE", 0)
        monkeypatch.setattr(curves, "POINTS", 64)
    path = write(tmp_path, [trained(1)], end=b'{"step": 2, "loss": 0.2')
    reader = Reader(path)
    reader.look()
    assert [r["step"] for r in reader.rows] == [1]
    with path.open("ab") as file:
        file.write(b'5, "time": 3}\n' + json.dumps(trained(3)).encode() + b"\n")
    reader.look()
    assert [(r["step"], r["loss"]) for r in reader.rows[1:]] == [(2, 0.25), (3, 1 + 1 / 3)]


def test_a_log_that_is_written_anew_is_read_anew(long, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(long.read_bytes())
    reader = Reader(path)
    searched(reader)
    lines = long.read_bytes().split(b"\n")[:100_000]
    (tmp_path / "other").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "other").rename(path)
    steps, _ = finite(searched(reader), "held_out_loss")
    assert steps[-1] == json.loads(lines[-1])["step"] // 100 * 100 < 100_000
    path.unlink()
    reader.look()
    assert reader.rows == []


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0" * 10**6, b"x" * 3 * 2**20, b"{}\n" * 10**5])
def test_a_log_that_is_none_has_no_rows(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    assert searched(Reader(tmp_path / "log.jsonl")) == []
    assert searched(Reader(tmp_path)) == searched(Reader(tmp_path / "none")) == []


def test_axes_are_those_of_the_plots():
    times = {step: START + step / 10 + 1e4 * float(step > 30) for step in range(5, 60, 5)}
    rows = [{"step": step, "loss": 1.0, "time": time} for step, time in times.items()]
    steps = np.array(list(times), dtype=np.float64)
    for by, other, factor in (("images", "images", 1), ("steps", "steps", 1), ("seconds", "hours", 3600)):
        oracle = plotted._scale(plotted.History(name="", rows=rows, images_per_step=8), other)(steps)
        assert np.allclose(scale(rows, by, 8, steps), factor * oracle)
    assert {"loss", "held_out_loss", *charts.PANELS} == set(plotted.PANELS)
    assert all(charts.PANELS[key] == plotted.PANELS[key] for key in charts.PANELS)


def test_charts_have_the_points_and_leave_out_what_has_no_place(tmp_path):
    rows = [row(step, loss=step - 3.0) for step in range(8)] + [row(7, held_out_loss=2.0), row(7, rolled_back_to=6)]
    view = charts.View("images", log_x=True, log_y=True)
    found = charts.charts([charts.History("a", rows, 10)], view)
    assert list(found) == ["loss"]
    raw, _, validation = found["loss"]["series"]
    assert [x for x, _ in raw["data"]] == [40, 50, 60, 70]
    assert raw["markLine"]["data"] == [{"xAxis": 70.0}]
    assert validation["data"] == [[70.0, 2.0]]
    both = charts.charts([charts.History("a", rows, 1), charts.History("b", rows, 1)], charts.View())
    assert [line["name"] for line in both["loss"]["series"]] == [*"aa", "a, validation", *"bb", "b, validation"]


def test_nothing_of_the_pages_imports_torch_before_it_is_needed():
    names = ("curves", "details", "gallery", "training", "pages.run", "pages.runs")
    imports = "; ".join(f"import fluvial.studio.{name}" for name in names)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
