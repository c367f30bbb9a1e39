import json
import sys
import types

import numpy as np
import pytest
import torch

from fluvial import cli, recipes
from fluvial.config import to_json
from fluvial.tools.doctor import examine
from fluvial.training import log
from fluvial.training.distributed import ALONE
from fluvial.training.rows import series


def write(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    )
    return folder


def test_rows_come_back_without_a_last_line_cut_short(tmp_path):
    rows = [{"step": 1, "loss": 2.0, "colour": "red"}, {"step": 2, "held_out_loss": 1.5}]
    assert log.read(write(tmp_path, *rows, '{"step": 3, "lo')) == rows


def test_a_roll_back_takes_back_what_was_measured_but_not_what_happened(tmp_path):
    rows = [
        {"step": 10, "loss": 2.0},
        {"step": 20, "loss": 9.0},
        {"step": 20, "skipped": 3},
        {"step": 25, "rolled_back_to": 10, "first_non_finite": "head"},
        {"step": 20, "loss": 1.8},
    ]
    read = log.read(write(tmp_path, *rows))
    assert read == [rows[0], *rows[2:]]
    assert [part.tolist() for part in series(read, "loss")] == [[10, 20], [2.0, 1.8]]


def test_series_look_inside_and_leave_out_what_is_null():
    rows = [
        {"step": 1, "held_out_by_time": [1.0, None], "score": {"accuracy": 0.5}},
        {"step": 2, "held_out_by_time": [0.5, 0.25], "loss": float("nan")},
        {"step": 3, "held_out_by_time": None, "score": {"accuracy": 0.75, "frechet": 2}},
    ]
    assert [part.tolist() for part in series(rows, "held_out_by_time", 1)] == [[2], [0.25]]
    assert [part.tolist() for part in series(rows, "score", "accuracy")] == [[1, 3], [0.5, 0.75]]
    assert np.isnan(series(rows, "loss")[1]).tolist() == [True]
    assert len(series(rows, "lr")[0]) == 0


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "is empty"),
        (['{"step": 3, "lo'], "is empty"),
        (["epoch 1 loss 2\n", "epoch 2 loss 1\n"], "line 1 and 1 more of .* is not a row of a run's log"),
        ([[1, 2]], "line 1 of .* is not a row"),
        ([{"step": 1, "train/loss": 2}], r"has none of loss, .*got \['step', 'train/loss'\]"),
    ],
)
def test_a_foreign_log_is_named(tmp_path, lines, says):
    with pytest.raises(ValueError, match=says):
        log.read(write(tmp_path, *lines))


FOREIGN = {
    "a number": b"5",
    "null": b"null",
    "a step in words": b'{"step": "4", "loss": 1}',
    "a step that is no number of steps": b'{"step": true}',
    "a huge step": b'{"step": 1' + 38 * b"0" + b', "loss": 1.0}',
    "a negative step": b'{"step": -1, "loss": 1}',
    "no step": b'{"epoch": 1}',
    "no UTF-8": b'{"step": 4, "what": "\xff"}',
    "not JSON": b"epoch 1 loss 2",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN)
def test_a_line_that_is_no_row_is_moved_aside_once_and_training_goes_on(tmp_path, capsys, line):
    rows = [b'{"step": 2, "loss": 2.0}', b'{"step": 4, "loss": 1.0}', b'{"step": 6, "loss": 0.5}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([rows[0], line, *rows[1:]]) + b"\n")
    assert [row["step"] for row in log.read(tmp_path)] == [2, 4, 6]
    assert "line 2 of" in capsys.readouterr().err
    log.Log(tmp_path, last_step=4).write(step=5, loss=0.25)
    assert "line 2 of" in capsys.readouterr().out
    assert (tmp_path / "log-unreadable.txt").read_bytes() == line + b"\n"
    assert [row["step"] for row in log.read(tmp_path)] == [2, 4, 5] and log.last_step(tmp_path) == 5
    log.Log(tmp_path, last_step=5)
    assert capsys.readouterr() == ("", "")


HUGE = "1" + 400 * "0"
ODD = {  # a row, and the keys that are left out of it
    "a roll-back in words": ('{"step": 6, "rolled_back_to": "x"}', ["rolled_back_to"]),
    "a roll-back to null": ('{"step": 6, "rolled_back_to": null}', ["rolled_back_to"]),
    "a roll-back to less than 0": ('{"step": 6, "rolled_back_to": -1}', ["rolled_back_to"]),
    "a number as score": ('{"step": 6, "score": 5}', ["score"]),
    "a list as score": ('{"step": 6, "score": [1, 2]}', ["score"]),
    "a huge score": (f'{{"step": 6, "score": {{"frechet": {HUGE}}}}}', ["score"]),
    "a number as losses by time": ('{"step": 6, "held_out_by_time": 5}', ["held_out_by_time"]),
    "a text as losses by scale": ('{"step": 6, "held_out_by_scale": ["x"]}', ["held_out_by_scale"]),
    "a huge loss": (f'{{"step": 5, "loss": {HUGE}}}', ["loss"]),
    "a long loss": (f'{{"step": 5, "loss": {10**30}, "grad_norm": 1e301, "lr": 0.5}}', ["loss", "grad_norm"]),
    "a truth value as loss": ('{"step": 5, "loss": true}', ["loss"]),
    "infinitely many skipped": ('{"step": 6, "skipped": Infinity}', ["skipped"]),
    "a number as module": ('{"step": 6, "rolled_back_to": 2, "first_non_finite": 7}', ["first_non_finite"]),
    "an infinite time": ('{"step": 6, "loss": 1.0, "time": Infinity}', ["time"]),
}
RUN = recipes.get("digits-sit")
ROWS = [{"step": step, "loss": 2.0 - step / 10, "time": 100.0 + step} for step in (1, 2, 3, 4)]


def run_folder(path, *lines):
    write(path, *ROWS, *lines, {"step": 8, "loss": 0.5, "time": 108.0})
    (path / "run.json").write_text(json.dumps({"run": to_json(RUN), "recipe": None}))
    return path


@pytest.mark.parametrize(("line", "keys"), ODD.values(), ids=ODD)
def test_a_value_of_another_kind_is_left_out_and_named(tmp_path, capsys, line, keys):
    """All is as in a run whose row never had these values."""
    sound = {key: value for key, value in json.loads(line).items() if key not in keys}
    odd, expected = run_folder(tmp_path / "odd", line + "\n"), run_folder(tmp_path / "sound", sound)
    assert log.read(odd) == log.read(expected)
    more = " and 1 more" if len(keys) > 1 else ""
    told = capsys.readouterr().err
    assert told.startswith(f"line 5 of {odd / 'log.jsonl'}: {keys[0]} is ") and f"this value{more} left out" in told
    assert examine(RUN, log.read(odd)) == examine(RUN, log.read(expected))
    before = (odd / "log.jsonl").read_bytes()
    going_on = log.Log(odd, last_step=8)
    assert (odd / "log.jsonl").read_bytes() == before and not (odd / "log-unreadable.txt").exists()
    going_on.write(step=9, loss=0.25)
    assert log.last_step(odd) == 9 and log.Log(odd, last_step=sound["step"]).resumed == set(sound)


def test_a_run_with_odd_rows_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    folder = run_folder(tmp_path / "odd", *(line + "\n" for line, _ in ODD.values()), '{"step": 1' + 38 * "0" + "}\n")
    for by in ("steps", "images", "hours"):
        assert cli.main(["plot", str(folder), "--by", by]) == 0


def test_values_at_the_edge_of_their_kind_are_kept(tmp_path, capsys):
    far = {"step": 2**63 - 1, "loss": float("inf"), "grad_norm": float("-inf"), "lr": None, "skipped": 2**63 - 1}
    far |= {"held_out_by_time": [None, float("inf"), 2**63 - 1, 9e299], "score": {"extractor": "pixels", "count": 5}}
    rows = log.read(run_folder(tmp_path / "a", far))
    assert rows[4] == far and examine(RUN, rows[:5]) and capsys.readouterr().err == ""


def test_what_is_logged_of_the_step_that_training_resumes_from_is_known(tmp_path):
    write(tmp_path, {"step": 2, "loss": 1}, {"step": 4, "loss": 1}, {"step": 4, "score": {}}, {"step": 6, "blocks": 1})
    assert log.Log(tmp_path, last_step=4).resumed == {"step", "loss", "score"}


def test_a_row_that_cannot_be_written_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    writer = log.Log.__new__(log.Log)
    writer.path, writer.others = tmp_path / "log.jsonl", []
    with pytest.raises(OSError, match=r"No space left on device; what was there before is as it was.*log\.jsonl"):
        writer.write(step=1, loss=0.5)


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no log.jsonl; expected a folder that `fluvial train` wrote"):
        log.read(tmp_path)


def test_numbers_go_to_tensorboard_under_their_path(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = log.Log(tmp_path, ["tensorboard"])
    writer.write(step=3, loss=0.5, held_out_by_time=[1.0, None], blocks={"blocks.0": {"update": 2.0}}, what="text")
    writer.write(step=4, loss=float("nan"))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "held_out_by_time/0", "blocks/blocks.0/update"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_trackers_get_the_numbers(tmp_path, monkeypatch, library):
    calls = []
    module = types.ModuleType(library)
    module.init = lambda **options: calls.append(options)
    module.log = lambda numbers, step: calls.append((numbers, step))
    monkeypatch.setitem(sys.modules, library, module)
    (tmp_path / "mine").mkdir()
    log.Log(tmp_path / "mine", [library]).write(step=7, loss=0.25)
    assert calls[0]["project"] == "fluvial" and calls[0]["name"] == "mine"
    assert calls[1] == ({"loss": 0.25}, 7)


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"train.log_to wandb needs wandb: pip install 'fluvial\[wandb\]'"):
        log.Log(tmp_path, ["wandb"])


def test_the_speed_leaves_out_pauses_wherever_they_fall(monkeypatch):
    now = 0.0
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)
    meter = log.Meter(torch.device("cpu"), ALONE)
    for seconds, images in ((2.0, 30), (1.0, 20)):
        now += seconds
        meter.add(torch.tensor(1.0), torch.tensor(False), images)
        with meter.paused():
            now += 100.0
    assert meter.read() == (1.0, pytest.approx(50 / 3))
    with meter.paused():
        now += 100.0
    now += 4.0
    meter.add(torch.tensor(2.0), torch.tensor(False), 10)
    assert meter.read() == (2.0, pytest.approx(2.5))
