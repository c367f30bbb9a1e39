import json
import sys
import types

import numpy as np
import pytest

from fluvial.train import log


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
    assert [part.tolist() for part in log.series(read, "loss")] == [[10, 20], [2.0, 1.8]]


def test_series_look_inside_and_leave_out_what_is_null():
    rows = [
        {"step": 1, "held_out_by_time": [1.0, None], "score": {"accuracy": 0.5}},
        {"step": 2, "held_out_by_time": [0.5, 0.25], "loss": float("nan")},
        {"step": 3, "held_out_by_time": None, "score": {"accuracy": 0.75, "frechet": 2}},
    ]
    assert [part.tolist() for part in log.series(rows, "held_out_by_time", 1)] == [[2], [0.25]]
    assert [part.tolist() for part in log.series(rows, "score", "accuracy")] == [[1, 3], [0.5, 0.75]]
    assert np.isnan(log.series(rows, "loss")[1]).tolist() == [True]
    assert len(log.series(rows, "lr")[0]) == 0


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
