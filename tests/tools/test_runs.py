import json
import os
import subprocess
import sys

import pytest

from fluvial.cli import main
from fluvial.cli.listing import age
from fluvial.metrics.report import KIND, sealed
from fluvial.tools.runs import find, in_bytes, look
from fluvial.utils.atomic import only_one
from folders import rows, run_folder


def test_a_run_is_listed_as_its_files_say(tmp_path):
    run = run_folder(tmp_path / "a", 200, 400, log=rows(), steps=1200)
    (run / "score.json").write_text(json.dumps({"scores": {"class_accuracy": {"value": 0.98765}, "fid": {}}}))
    found = look(run)
    assert (found.state, found.method, found.data) == ("stopped", "sit", "digits")
    assert (found.step, found.steps, found.seconds) == (400, 1200, 200.0)
    assert found.loss == pytest.approx(1.125) and found.validation == pytest.approx(1.625)
    assert found.score == "class accuracy 0.9877" and found.changed == 1e9 + 8 and not found.why
    on_disk = subprocess.run(["find", run, "-type", "f", "-printf", "%s\n"], capture_output=True, text=True).stdout
    assert found.size == sum(map(int, on_disk.split()))


def test_the_state_says_what_may_be_done_with_it(tmp_path):
    run = run_folder(tmp_path / "a", 400, log=rows(10), steps=400)
    assert look(run).state == "finished"
    with only_one(run):
        assert (look(run).state, look(run).step) == ("running", 500)  # the log is ahead of the checkpoint
    assert look(run_folder(tmp_path / "b")).state == "stopped"
    imported = run_folder(tmp_path / "c", steps=400)
    record = json.loads((imported / "run.json").read_text())
    del record["sha256"]
    (imported / "run.json").write_text(json.dumps({**record, "imported": {}}))
    from fluvial.training import checkpoint

    checkpoint.write_weights(imported, 400, {}, {})
    assert look(imported).state == "weights"


def test_after_a_roll_back_the_step_is_the_one_gone_back_to(tmp_path):
    back = [*rows(), {"step": 410, "rolled_back_to": 400}]
    run = run_folder(tmp_path / "a", log=[*back, {"step": 410, "loss": float("nan")}][:-1])
    with only_one(run):
        assert look(run).step == 400
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 450, "loss": NaN}\n{"step": 460, "lo')
    with only_one(run):
        found = look(run)
    assert found.step == 450 and found.loss != found.loss


def damage(run, kind):
    shard = next((run / "checkpoints").glob("step-*/*.safetensors"))
    record = (run / "run.json").read_text()
    match kind:
        case "run.json is gone":
            (run / "run.json").unlink()
        case "run.json cannot be read":
            (run / "run.json").unlink()
            (run / "run.json").mkdir()
        case "run.json is not the file of a run":
            (run / "run.json").write_text(record[:100])
        case "another type":
            (run / "run.json").write_text('{"run": {"train": {"steps": "7"}, "method": {"name": "sit"}}}')
        case "run.json is not as it was written":
            (run / "run.json").write_text(record.replace('"seed": 0', '"seed": 1'))
        case "checkpoint.json: No such file":
            (shard.parent / "checkpoint.json").unlink()
        case "another size":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "no checkpoint is whole":
            shard.parent.rename(shard.parent.with_name("damaged-" + shard.parent.name))
        case "of another run":
            other = run_folder(run.parent / "other", 400, recipe="digits-flowar")
            (run / "run.json").write_bytes((other / "run.json").read_bytes())
        case "log.jsonl":
            (run / "log.jsonl").mkdir()


KINDS = """run.json is gone|run.json cannot be read|run.json is not the file of a run|another type|of another run
run.json is not as it was written|checkpoint.json: No such file|another size|no checkpoint is whole|log.jsonl"""


@pytest.mark.parametrize("kind", [kind for line in KINDS.splitlines() for kind in line.split("|")])
def test_a_damaged_run_is_one_line_and_stops_no_list(kind, tmp_path, capsys):
    run = run_folder(tmp_path / "runs" / "bad", 400)
    run_folder(tmp_path / "runs" / "good", 400, steps=400)
    damage(run, kind)
    found = look(run)
    assert found.state == "damaged" and kind in found.why and "\n" not in found.why
    assert main(["runs", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr()
    assert f"{run}: {found.why}\n" in printed.out and "finished" in printed.out and not printed.err


def test_runs_are_found_at_several_levels_and_once(tmp_path, capsys):
    for name in ("a", "compare-digits/SiT", "x/y/z", "x/y/too/deep"):
        run_folder(tmp_path / name)
    (tmp_path / "notes").mkdir()
    run_folder(tmp_path / "a" / "inside")
    os.symlink(tmp_path / "x" / "y" / "z", tmp_path / "z")
    os.symlink(tmp_path, tmp_path / "notes" / "circle")
    names = [str(path.relative_to(tmp_path)) for path in find(tmp_path)]
    assert names == ["a", "compare-digits/SiT", "z"]
    assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and find(tmp_path / "a") == [tmp_path / "a"]


def test_the_list_needs_no_torch(tmp_path):
    run_folder(tmp_path / "a", 200, log=rows())
    code = "import sys; from fluvial.cli import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "runs", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "200 of 1,200" in done.stdout and "1.125" in done.stdout


def test_a_folder_without_runs_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0 and "no runs in runs" in capsys.readouterr().out
    (tmp_path / "runs").mkdir()
    assert main(["runs", str(tmp_path)]) == 2 and "has no runs in it" in capsys.readouterr().err
    assert main(["runs", "rusn"]) == 2 and "did you mean runs?" in capsys.readouterr().err
    assert main(["runs", ""]) == 2 and main(["runs", "a", "b"]) == 2


def test_sizes_and_ages_in_words():
    assert [in_bytes(n) for n in (0, 999, 1000, 123_456_789, 10**13)] == ["0 B", "999 B", "1 kB", "123 MB", "10 TB"]
    assert [age(s) for s in (-1.0, 0.0, 59.0, 60.0, 7199.0, 90000.0)] == ["0 s", "0 s", "59 s", "1 min", "1 h", "1 d"]


def test_a_card_of_the_library_is_read(tmp_path):
    run = run_folder(tmp_path / "a")
    card = sealed({"kind": KIND, "scores": {"frechet_distance": {"value": 0.73, "error": 0.1}}})
    (run / "score.json").write_text(json.dumps(card))
    assert look(run).score == "frechet distance 0.73"
    (run / "score.json").write_text("{")
    assert look(run).score == "unreadable" and look(run).state == "stopped"
