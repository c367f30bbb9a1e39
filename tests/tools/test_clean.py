import json

import pytest

from fluvial.cli import main
from fluvial.run.folder import RunFolder
from fluvial.tools.clean import Keeping, clean, plan
from fluvial.training import checkpoint
from fluvial.utils.atomic import atomic_files, only_one
from folders import rows, run_folder


def steps(run):
    return [int(path.name[5:]) for path in sorted((run / "checkpoints").glob("step-*"))]


def break_(run, step):
    shard = next((run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def test_only_told_to_it_removes_and_the_newest_whole_ones_stay(tmp_path, capsys):
    run, other = run_folder(tmp_path / "a", 100, 200, 300, 400), run_folder(tmp_path / "b", 100)
    assert main(["runs", "clean", str(tmp_path), "--keep", "2"]) == 0
    printed = capsys.readouterr().out
    assert steps(run) == [100, 200, 300, 400] and "step-00000100" in printed and "step-00000300" not in printed
    assert f"to do it: fluvial runs clean {tmp_path} --keep 2 --yes" in printed
    sizes = sum(f.stat().st_size for s in (100, 200) for f in (run / "checkpoints" / f"step-{s:08d}").iterdir())
    assert f"removable: {sizes / 1000:.3g} kB in 2 runs" in printed
    assert main(["runs", "clean", str(tmp_path), "--keep", "2", "--yes"]) == 0
    assert f"removed: {sizes / 1000:.3g} kB in 2 runs" in capsys.readouterr().out
    assert steps(run) == [300, 400] and steps(other) == [100]
    checkpoint.verify(run / "checkpoints" / "step-00000300")
    assert not list((run / "checkpoints").glob(".*"))
    assert main(["runs", "clean", str(run), "--yes"]) == 0 and steps(run) == [400]


def test_damaged_checkpoints_go_only_where_one_is_whole(tmp_path):
    run = run_folder(tmp_path / "a", 100, 200, 300, 400)
    break_(run, 400)
    (run / "checkpoints" / "damaged-step-00000050").mkdir()
    done = clean(run, Keeping())
    assert steps(run) == [300] and not (run / "checkpoints" / "damaged-step-00000050").exists()
    assert [r.path.name for r in done.removable][:2] == ["step-00000100", "step-00000200"]
    assert "SHA-256" in done.removable[2].why
    break_(run, 300)
    assert not clean(run, Keeping()).removable and steps(run) == [300]
    assert "no checkpoint is whole" in plan(run, Keeping()).notes[0]


def test_checkpoints_that_the_run_keeps_stay_unless_told(tmp_path):
    run = run_folder(tmp_path / "a", 100, 200, 300, 400, 500, keep_every=200)
    found = plan(run, Keeping())
    assert [each.path.name[-3:] for each in found.removable] == ["100", "300"]
    assert ["every 200 steps" in note for note in found.notes] == [True, True]
    assert len(plan(run, Keeping(keep_every=0)).removable) == 4
    assert [each.path.name[-3:] for each in plan(run, Keeping(keep_every=300)).removable] == ["100", "200", "400"]


def test_the_checkpoint_of_the_lowest_validation_loss_stays_where_the_run_keeps_it(tmp_path):
    log = [{"step": step, "held_out_loss": loss} for step, loss in ((100, 3.0), (200, 1.0), (250, 0.5), (300, 2.0))]
    run = run_folder(tmp_path / "a", 100, 200, 300, log=log)
    assert len(plan(run, Keeping()).removable) == 2
    record = RunFolder(run).record()
    record["run"]["train"]["keep_best"] = True
    RunFolder(run).write(record)
    found = plan(run, Keeping())
    assert [each.path.name[-3:] for each in found.removable] == ["100"] and "lowest" in found.notes[0]


def test_a_run_that_trains_or_that_cannot_be_read_is_left(tmp_path, capsys):
    run = run_folder(tmp_path / "a", 100, 200)
    with only_one(run):
        assert main(["runs", "clean", str(tmp_path), "--yes"]) == 0
        assert "another process is training" in capsys.readouterr().out
        assert not plan(run, Keeping()).removable
    assert steps(run) == [100, 200]
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"recipe": "x"}))
    assert not clean(run, Keeping()).removable and steps(run) == [100, 200]


def test_leftover_files_go_and_those_in_use_stay(tmp_path):
    run = run_folder(tmp_path / "a", 100)
    left = [run / "checkpoints" / ".step-00000200.partial", run / ".log.0123abcd.tmp.jsonl"]
    left += [run / "checkpoints" / ".step-00000050.removed", run / "samples" / ".files.0123abcd.tmp"]
    left[0].mkdir(), left[3].mkdir(parents=True)
    left[1].touch(), left[2].touch()
    (run / "samples" / ".mine.tmp").touch()
    with atomic_files(run / "ema") as in_use:
        done = clean(run, Keeping())
        assert in_use.exists()
    assert {each.path for each in done.removable} == set(left) and not any(path.exists() for path in left)
    assert (run / "samples" / ".mine.tmp").exists() and steps(run) == [100]


def test_snapshots_go_only_of_finished_runs_and_when_told(tmp_path):
    run = run_folder(tmp_path / "a", 200, steps=400)
    (run / "ema").mkdir()
    snapshot = run / "ema" / "step-00000200-0.050.safetensors"
    snapshot.write_bytes(b"123")
    assert not clean(run, Keeping(snapshots=False)).removable
    checkpoint.write_weights(run, 400, {}, {})
    assert "1 snapshots of averages stay, 3 B" in clean(run, Keeping()).notes[-1] and snapshot.exists()
    assert clean(run, Keeping(snapshots=False)).removable[-1].path == snapshot and not snapshot.exists()


@pytest.mark.parametrize(
    "options", (["--keep", "0"], ["--keep-every", "-1"], ["--keep", "1", "--keep", "2"], ["--kep", "1"])
)
def test_wrong_options_are_refused_before_anything_is_removed(options, tmp_path, capsys):
    run = run_folder(tmp_path / "a", 100, 200, log=rows())
    assert main(["runs", "clean", str(run), "--yes", *options]) == 2 and steps(run) == [100, 200]
    assert "Traceback" not in capsys.readouterr().err


def test_runs_elsewhere_are_not_cleaned_through_links(tmp_path, capsys):
    """A link to a run is left out unless it is named; one to a folder of runs is not followed."""
    inside, other = run_folder(tmp_path / "here" / "a", 100, 200), run_folder(tmp_path / "there" / "b", 100, 200)
    (tmp_path / "here" / "up").symlink_to("..")
    (tmp_path / "here" / "link").symlink_to(other)
    assert main(["runs", "clean", str(tmp_path / "here"), "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"left out: {tmp_path / 'here' / 'link'} is a link to {other}" in said and "in 1 run" in said
    assert steps(inside) == [200] and steps(other) == [100, 200]
    assert main(["runs", "clean", str(tmp_path / "here" / "link"), "--yes"]) == 0
    assert steps(other) == [200]
