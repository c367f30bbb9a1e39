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
        (["epoch 1 loss 2\n", '{"step": 1, "loss": 2}\n'], "line 1 of .* is not JSON"),
        ([{"step": 1, "loss": 2}, {"epoch": 1}], "line 2 of .* has no step"),
        ([[1, 2]], "has no step"),
        ([{"step": 1, "train/loss": 2}], r"has none of loss, .*got \['step', 'train/loss'\]"),
    ],
)
def test_a_foreign_log_is_named(tmp_path, lines, says):
    with pytest.raises(ValueError, match=says):
        log.read(write(tmp_path, *lines))


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
