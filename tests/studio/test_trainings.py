"""Trainings that the studio starts: processes that wait, run, stop and fail, and outlive it."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from in_browser import until

from fluvial.studio import training as module
from fluvial.studio.training import Training, Trainings, checked_name, free_name, plain, words_for

PROGRAM = """
import signal, sys, time
print("begins", *sys.argv[1:], flush=True)
if "fails" in sys.argv[2]:
    print("\\n".join(f"line {i}" for i in range(30)))
    sys.exit("this cannot be")
def end(*_):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(0.3 if "short" in sys.argv[2] else 60)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    return sys.executable, str(tmp_path / "program.py")


@pytest.fixture
def trainings(tmp_path, program):
    """Trainings of a program that does nothing, over an empty folder; what still runs is ended."""
    (tmp_path / "runs").mkdir()
    found = Trainings(program)
    found.open(tmp_path / "runs", watch=False)
    yield found
    for each in found.all():
        if each.pid > 1 and found._is_alive(each):
            module._interrupt(each.pid, at_once=True)


def states(trainings):
    trainings.tick()
    return {each.run: each.state for each in trainings.all()}


def says(trainings, run, line):
    until(lambda: line in trainings.output(trainings.of(run)), 30, f"{run} did not say {line}")


def test_one_runs_and_the_others_wait_in_order(trainings):
    for name in ("short-a", "short-b", "c"):
        trainings.start(["train", name], name)
    assert states(trainings) == {"short-a": "running", "short-b": "waiting", "c": "waiting"}
    assert trainings.before(trainings.of("c")) == ["short-a", "short-b"]
    with pytest.raises(ValueError, match="c is being trained, or waits"):
        trainings.start(["train", "c"], "c")
    until(lambda: states(trainings) == {"short-a": "finished", "short-b": "finished", "c": "running"}, 30)
    assert trainings.before(trainings.of("c")) == []


def test_stop_lets_it_save_and_what_waits_does_not_begin(trainings):
    trainings.start(["train", "a"], "a")
    trainings.start(["train", "b"], "b")
    says(trainings, "a", "ready")
    assert trainings.stop("b").state == "stopped"
    assert trainings.stop("a").stopping
    until(lambda: states(trainings) == {"a": "stopped", "b": "stopped"}, 30)
    assert trainings.output(trainings.of("a"))[-1] == "saved"
    with pytest.raises(ValueError, match="'a' was started here"):
        trainings.stop("a")


def test_one_that_failed_shows_the_end_of_its_output_until_it_is_dismissed(trainings):
    trainings.start(["train", "fails"], "x")
    until(lambda: states(trainings) == {"x": "failed"}, 30)
    assert trainings.output(trainings.of("x"), 3) == ["line 28", "line 29", "this cannot be"]
    trainings.forget(trainings.of("x"))
    assert list(trainings.folder.iterdir()) == []


def test_it_outlives_the_studio_and_one_that_is_opened_again_finds_it(trainings, program, tmp_path):
    code = f"""
import sys; from pathlib import Path; from fluvial.studio.training import Trainings
trainings = Trainings({list(program)!r}); trainings.open(Path({str(trainings.root)!r}))
trainings.start(["train", "a"], "a"); trainings.start(["train", "b"], "b")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert states(trainings) == {"a": "running", "b": "waiting"}
    says(trainings, "a", "ready")
    trainings.stop("a")
    until(lambda: states(trainings) == {"a": "stopped", "b": "running"}, 30)
    assert trainings.output(trainings.of("a"))[-1] == "saved"


def test_two_studios_start_it_once(trainings, program):
    other = Trainings(program)
    other.open(trainings.root, watch=False)
    trainings.folder.mkdir()
    trainings._write(training := Training(id="1", words=["train", "a"], run="a"))
    trainings._launch(training)
    other._launch(training)
    assert trainings.of("a").pid == trainings._processes["1"].pid
    assert not other._processes
    assert states(other) == {"a": "running"}


def test_a_process_that_was_given_the_number_is_left_alone(trainings):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as other:
        try:
            trainings.folder.mkdir()
            trainings._write(Training(id="1", words=["train", "a"], run="a", state="running", pid=other.pid))
            trainings.stop("a")
            time.sleep(0.3)
            assert other.poll() is None
            assert states(trainings) == {"a": "stopped"}
        finally:
            other.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("change", [{"words": ["sample", "x"]}, {"id": "2"}, {"x": 1}, None])
def test_a_record_that_is_none_starts_nothing(trainings, change):
    trainings.folder.mkdir()
    record = asdict(Training(id="1", words=["train", "x"], run="x"))
    (trainings.folder / "1.json").write_text("{" if change is None else json.dumps(record | change))
    assert states(trainings) == {}
    (trainings.folder / "1.json").write_text(json.dumps(record))
    assert states(trainings) == {"x": "running"}


def test_places_and_names_that_cannot_be(trainings, tmp_path):
    root = trainings.root
    (root / "taken").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("", ".", "..", "../x", "a/b", "/x", "-x", ".hidden", "a\0", "a\n", "é", "x" * 101, "taken", "link"):
        with pytest.raises(ValueError, match="name"):
            trainings.new("digits", name, minutes=1.0)
    for place in ("", " ", "-x", "--help", " -x", "a\0", "x" * 5000):
        with pytest.raises(ValueError, match="cannot begin with a dash"):
            trainings.new(place, "x", minutes=1.0)
    for minutes in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="Minutes"):
            trainings.new("digits", "x", minutes=minutes)
    with pytest.raises(ValueError, match="method"):
        trainings.new("digits", "x", minutes=1.0, method="--out")
    assert trainings.all() == []


def test_only_runs_below_the_folder_go_on(trainings, tmp_path):
    for folder in (tmp_path / "outside", trainings.root / "inside"):
        folder.mkdir()
        (folder / "run.json").write_text("{}")
    (trainings.root / "link").symlink_to(tmp_path / "outside")
    for name in ("../outside", str(tmp_path / "outside"), "link", "none", "--help", "a\0"):
        with pytest.raises(ValueError, match="is no run in"):
            trainings.go_on(name, 1.0)
    words = trainings.go_on("inside", 1.5).words
    assert words == ["train", str(trainings.root / "inside"), "--minutes", "1.5"]


def test_records_are_not_written_through_a_link(trainings, tmp_path):
    (tmp_path / "outside").mkdir()
    trainings.folder.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leads elsewhere"):
        trainings.start(["train", "a"], "a")
    assert list((tmp_path / "outside").iterdir()) == []


def test_words_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    out = ["--out", str(tmp_path / "r")]
    images = words_for("photos", tmp_path / "r", minutes=5.0, method="sit")
    assert images == ["train", str(tmp_path / "photos"), *out, "--minutes", "5", "--method", "sit"]
    assert words_for("digits-sit", tmp_path / "r", steps=9) == ["train", "digits-sit", *out, "--steps", "9"]
    for code in ("my.py", "a/MY.PY"):
        with pytest.raises(ValueError, match="Files of Python are code"):
            words_for(code, tmp_path / "r", steps=1)
    assert free_name(tmp_path, "photos") == "photos-2"
    assert free_name(tmp_path, "../my photos!") == "my-photos"
    assert checked_name(tmp_path, free_name(tmp_path, "...")) == "run"


def test_the_plan_is_what_the_command_says(trainings):
    assert trainings.plan(["train", "short"]) == (True, "begins train short --dry-run\nready")
    fits, said = trainings.plan(["train", "fails"])
    assert not fits
    assert said.endswith("this cannot be")


def test_output_is_as_a_terminal_shows_it():
    assert plain(b"\x1b[1mstep 1\x1b[0m\rstep 2\r\nend\xff") == "step 2\nend\ufffd"


def test_records_of_what_ended_do_not_pile_up(trainings, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 2)
    trainings.folder.mkdir()
    for i in range(5):
        trainings._write(replace(Training(id=str(i), words=["train", "a"], run=f"run-{i}"), state="finished"))
    assert states(trainings) is not None
    assert list(states(trainings)) == ["run-3", "run-4"]
