"""Folders that version 0.1.0 wrote: whatever changes, they are read, or refused with the command that converts them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fluvial
from fluvial import recipes
from fluvial.cli import main
from fluvial.config import from_json, to_json
from fluvial.data import latents
from fluvial.flow.guidance import Guidance
from fluvial.run.folder import RunFolder
from fluvial.sampling.settings import SampleConfig
from fluvial.training import checkpoint
from fluvial.utils.files import json_checksum
from fluvial.utils.run_format import ADDED, as_first_written
from fluvial.utils.tensors import tensors_checksum
from fluvial.weights.importing import import_weights

FOLDERS = Path(__file__).parents[1] / "folders"
WEIGHTS = {
    2: "ee36c35aa2ce8b752072e0da0df286ff8204fcb31a72c2f0b82db66c6b22f7fd",
    4: "188b8e24a34f03cdfddcca30a355971f4dbc1beb3ff951ec1b019008606fd209",
}  # checksums of the averages by step
ROWS = "57fff6c43472d5ef17259e50a65d502cff0ae08b39302dacde121046d4246add"


def test_a_run_is_loaded_and_goes_on(tmp_path):
    """Two of its four steps are done; the export holds what it had at the end."""
    run = shutil.copytree(FOLDERS / "run", tmp_path / "run")
    trained = fluvial.load(run, device="cpu")
    assert trained.step == 2 and trained.run.method.images_per_sequence == 5
    assert tensors_checksum(dict(trained.model.state_dict())) == WEIGHTS[2]
    ended = fluvial.train(RunFolder(run).run(), run, device="cpu")
    import_weights(FOLDERS / "export" / "model.safetensors", tmp_path / "imported")
    expected = fluvial.load(tmp_path / "imported", device="cpu").model.state_dict()
    for name, value in ended.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-4)
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == [2, 4] and checkpoint.newest(run).name == "step-00000004"


def test_a_run_is_sampled(tmp_path):
    """Its settings are those of ab2 in 12 steps under guidance, which version 0.1.0 wrote flat."""
    run = shutil.copytree(FOLDERS / "run", tmp_path / "run")
    trained = fluvial.load(run, device="cpu")
    assert trained.run.sample == SampleConfig(solver="ab2", steps=12, guidance=Guidance(weight=1.5))
    assert trained.sample(2, seed=0).nfe == {"conditional": 12, "null": 12}
    assert main(["sample", str(run), "--count", "2", "--sample.steps", "3"]) == 0


def test_checkpoints_know_a_run_whose_settings_have_new_names(tmp_path):
    """The identity of a FlowAR run, whose method.upsample was method.enlarge, is the one that version 0.1.0 wrote."""
    run = recipes.get("digits-flowar")
    run = replace(run, train=replace(run.train, steps=2, batch=2, save_every=2, sample_every=0, validate_every=0))
    run = replace(run, method=replace(run.method, width=16, heads=2, depth=2, head_width=16, head_depth=1))
    fluvial.train(run, tmp_path / "run", device="cpu")
    settings = json.loads(json.dumps(to_json(run)))
    before = {name.replace("upsample", "enlarge"): value for name, value in settings["method"].items()}
    before = {name: value for name, value in before.items() if name not in ADDED}
    assert "enlarge" in before
    known = checkpoint.load_meta(checkpoint.newest(tmp_path / "run"))["run"]
    assert known == json_checksum({"method": before, "seed": 0})[:16]
    record = RunFolder(tmp_path / "run").record()
    record["run"]["method"] = before
    RunFolder(tmp_path / "run").write(record)
    run = replace(run, optim=replace(run.optim), train=replace(run.train, keep=5))
    fluvial.train(run, tmp_path / "run", device="cpu")
    assert RunFolder(tmp_path / "run").record()["run"]["method"]["upsample"] == "via_full"
    assert checkpoint.newest(tmp_path / "run").name == "step-00000002"


def test_settings_that_are_added_leave_the_identity():
    """What version 0.1.0 called the settings of each method: a checkpoint knows its run by these."""
    of_a_transformer = "size channels classes patch depth width heads mlp_ratio label_drop position_size name"
    first = {
        "sit": f"{of_a_transformer} interpolant time_sampling",
        "arflow": f"{of_a_transformer} interpolant time_sampling images_per_sequence sorted_times qkv_norm"
        " history_decay image_decay",
        "flowar": "size channels classes patch scales scale_columns depth width heads head head_depth head_width"
        " head_heads dropout label_drop loss_weight enlarge time_sampling floor_time init context_noise name",
    }
    for name, settings in first.items():
        present = to_json(recipes.get(f"digits-{name}"))["method"]
        assert set(as_first_written(present)) == set(settings.split()), name
    other = {"name": "arflow", "own_path": 0.5}
    assert as_first_written(other) == other, "another model is another run"
    plugin = {"name": "mine", "contrast": 0.0}
    assert as_first_written(plugin) == plugin, "whose settings of these names are its own"


def test_a_setting_that_is_gone_is_read_where_it_did_nothing():
    settings = json.loads(json.dumps(to_json(recipes.get("digits-sit"))))
    settings["method"]["prediction"] = "velocity"
    assert from_json(settings) == recipes.get("digits-sit")
    settings["method"]["prediction"] = "data"
    with pytest.raises(ValueError, match="prediction"):
        from_json(settings)


def test_an_export_is_imported(tmp_path):
    import_weights(FOLDERS / "export" / "model.safetensors", tmp_path / "imported")
    weights, _ = RunFolder(tmp_path / "imported").weights()
    assert tensors_checksum(weights) == WEIGHTS[4]


def test_latents_are_read():
    cached = latents.load(FOLDERS / "latents")
    assert cached.labels.tolist() == [0, 0, 1, 1] and cached.class_names == ("a", "b")
    assert tensors_checksum({"rows": cached.rows(torch.arange(4))}) == ROWS
