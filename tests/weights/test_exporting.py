"""Exports: what is imported again, what diffusers loads, and what a hub (a fake one on loopback) receives."""

import base64
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fluvial
from conftest import randomise, read_golden
from fluvial import cli
from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.images import DataConfig
from fluvial.flow.guidance import Guidance
from fluvial.methods import METHODS
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.train import build
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.tensors import write_tensors
from fluvial.weights import exporting
from fluvial.weights.importing import import_weights

SHAPE = {"size": (8, 8), "classes": 3, "patch": 2, "depth": 2, "width": 16, "heads": 2}
FLOWAR = {"scales": (1, 2, 4), "head_depth": 1, "head_width": 16, "head_heads": 2}


def config(kind, channels):
    return METHODS[kind].Config(**SHAPE, channels=channels, **(FLOWAR if kind == "flowar" else {}))


def folder_of(run, path):
    model = build(run)
    randomise(model, std=0.3)
    record = record_of(run, "mine")
    RunFolder(path).create(record, model.state_dict(), step=1200, seconds=3.5)
    return path


@pytest.fixture(params=METHODS)
def run(request, tmp_path):
    """A run folder with the weights of some step."""
    sample = SampleConfig(solver="ab2", steps=4, guidance=Guidance(weight=2.0), batch=3)
    return folder_of(Run(method=config(request.param, 1), sample=sample), tmp_path / "run")


def to_diffusers(*arguments):
    from fluvial.weights.pipeline import to_diffusers as export

    return export(*arguments)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_then_import_is_the_identity(run, tmp_path):
    out = exporting.to_safetensors(run, tmp_path / "out")
    assert files(out).keys() == {"model.safetensors", "README.md"}
    found = import_weights(out / "model.safetensors", tmp_path / "again")
    assert files(tmp_path / "again") == files(run)
    assert found.run == RunFolder(run).run()
    exporting.to_safetensors(tmp_path / "again", tmp_path / "twice")
    assert files(tmp_path / "twice") == files(out)


def test_the_text_of_a_file_of_settings_is_not_published(run, tmp_path):
    folder = RunFolder(run)
    folder.write({**folder.record(), "config": {"file": "/home/me/my.yaml", "text": "# a private word"}})
    for path, content in files(exporting.to_safetensors(run, tmp_path / "out")).items():
        assert b"private word" not in content and b"my.yaml" not in content, path


def test_what_others_read_of_the_file(run, tmp_path):
    """By the safetensors library, with our names; half as large in bf16."""
    exporting.to_safetensors(run, tmp_path / "fp32")
    exporting.to_safetensors(run, tmp_path / "bf16", dtype="bf16")
    model = fluvial.load(run, device="cpu").model
    whole, half = (load_file(tmp_path / dtype / "model.safetensors") for dtype in ("fp32", "bf16"))
    assert whole.keys() == half.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(whole[name], value) and torch.equal(half[name], value.bfloat16())
    with safe_open(tmp_path / "fp32" / "model.safetensors", "pt") as opened:
        record = json.loads(opened.metadata()["fluvial"])
    assert (record["step"], record["seconds"], record["recipe"]) == (1200, 3.5, "mine")
    assert record["run"] == json.loads((run / "run.json").read_text())["run"]


def test_a_changed_export_is_refused(run, tmp_path):
    file = exporting.to_safetensors(run, tmp_path / "out") / "model.safetensors"
    weights = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    name = next(iter(weights))
    for wrong, says in (
        ({k: v for k, v in weights.items() if k != name}, f"{name} is missing"),
        ({**weights, name: torch.full_like(weights[name], torch.nan)}, f"{name} holds numbers that are not finite"),
        ({**weights, "extra": torch.zeros(1)}, "extra is unknown"),
    ):
        write_tensors(tmp_path / "wrong.safetensors", wrong, metadata)
        with pytest.raises(ValueError, match=f"wrong.safetensors: {says}"):
            import_weights(tmp_path / "wrong.safetensors", tmp_path / "again")
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 64
    (tmp_path / "wrong.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match="wrong.safetensors is damaged: its content is not what was written"):
        import_weights(tmp_path / "wrong.safetensors", tmp_path / "again")
    save_file(weights, tmp_path / "wrong.safetensors", metadata)
    with pytest.raises(ValueError, match="wrong.safetensors carries no checksum"):
        import_weights(tmp_path / "wrong.safetensors", tmp_path / "again")
    write_tensors(tmp_path / "wrong.safetensors", weights, {"fluvial": "{}"})
    with pytest.raises(ValueError, match="the run in its metadata cannot be read"):
        import_weights(tmp_path / "wrong.safetensors", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_card_says_what_the_model_is(run, tmp_path):
    card = fluvial.score(run, count=12, device="cpu")
    (run / "score.json").write_text(json.dumps(card))
    exporting.to_safetensors(run, tmp_path / "out", license="mit")
    text = (tmp_path / "out" / "README.md").read_text()
    count = sum(p.numel() for p in fluvial.load(run, device="cpu").model.parameters())
    for part in (
        f"{count:,} parameters",
        "license: mit",
        "library_name: fluvial",
        "1,200 steps",
        "on digits",
        f"| frechet distance (pixels) | {card['scores']['frechet_distance']['value']:.4g} +- ",
        "| samples | 12, classes: all classes in turn, seed 0 |",
        f"540 images of digits, held out ({card['reference']['hash'][:12]})",
    ):
        assert part in text, part
    assert "arxiv.org/abs/2" in text


def test_an_imported_release_says_so(tmp_path, sit_golden):
    torch.save(sit_golden.state_dict, tmp_path / "sit.pt")
    import_weights(tmp_path / "sit.pt", tmp_path / "run", heads=2, autoencoder="pixels")
    exporting.to_safetensors(tmp_path / "run", tmp_path / "out")
    assert "imported from the published file sit.pt" in (tmp_path / "out" / "README.md").read_text()


def pixels_of(images):
    return (images * 255).round().to(torch.uint8)


def pipeline_of(folder, **options):
    diffusers = pytest.importorskip("diffusers")
    code = {"custom_pipeline": str(folder), "trust_remote_code": True, **options}
    return diffusers.DiffusionPipeline.from_pretrained(str(folder), **code)


def test_a_pipeline_of_diffusers_draws_the_same_images(run, tmp_path):
    out = to_diffusers(run, tmp_path / "out")
    pipeline = pipeline_of(out)
    trained = fluvial.load(run, device="cpu")
    expected = trained.sample(5, seed=7).images
    assert torch.equal(pixels_of(pipeline(count=5, seed=7, output_type="pt").images), expected)
    assert not any(p.requires_grad for p in pipeline.model.parameters())  # or attention rounds otherwise
    chosen = trained.sample(2, classes=(2, 1)).images
    assert torch.equal(pixels_of(pipeline([2, 1], output_type="pt").images), chosen)
    settings = replace(trained.run.sample, steps=3, guidance=Guidance(weight=1.0))
    other = trained.sample(1, classes=(2,), settings=settings).images
    drawn = pipeline([2], guidance_scale=1.0, num_inference_steps=3, output_type="np", return_dict=False)[0]
    assert torch.equal(pixels_of(torch.from_numpy(drawn)).movedim(-1, 1), other)
    assert pipeline([0]).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="output_type must be pil, np or pt, got 'latent'"):
        pipeline([0], output_type="latent")
    with pytest.raises(ValueError, match="class ids"):
        pipeline([3])


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"])
def test_the_autoencoder_is_in_the_pipeline(kind, tmp_path, tiny):
    vae = tiny(kind)
    vae.save_pretrained(tmp_path / "vae")
    channels = vae.config.latent_channels
    autoencoder = AutoencoderConfig(name=str(tmp_path / "vae"), shift=(0.1,), scale=(0.7,))
    sample = SampleConfig(steps=2, batch=2)
    folder_of(Run(method=config("sit", channels), autoencoder=autoencoder, sample=sample), tmp_path / "run")
    expected = fluvial.load(tmp_path / "run", device="cpu").sample(3).images
    out = to_diffusers(tmp_path / "run", tmp_path / "out")
    (tmp_path / "vae").rename(tmp_path / "gone")
    assert torch.equal(pixels_of(pipeline_of(out)(count=3, output_type="pt").images), expected)


def test_released_weights_leave_as_a_pipeline_too(tmp_path):
    golden = read_golden("flowar_tiny_cross_attention")
    torch.save(golden.state_dict, tmp_path / "flowar.pth")
    import_weights(tmp_path / "flowar.pth", tmp_path / "run", autoencoder="pixels")
    out = to_diffusers(tmp_path / "run", tmp_path / "out")
    images = pipeline_of(out)([5], num_inference_steps=2, output_type="pt").images
    trained = fluvial.load(tmp_path / "run", device="cpu")
    expected = trained.sample(1, classes=(5,), settings=replace(trained.run.sample, steps=2)).images
    assert torch.equal(pixels_of(images), expected)


MODES = {"safetensors": "lfs", "md": "regular"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs: small files in the commit, large ones by themselves."""

    def log_message(self, *_):
        pass

    def answer(self, value, code=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        self.server.seen.append(("GET", self.path))
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": [], "private": self.server.private})

    def do_PUT(self):
        self.server.files[self.path] = self.body()
        self.answer({})

    def do_POST(self):
        body, server = self.body(), self.server
        server.seen.append(("POST", self.path))
        server.tokens.add(self.headers.get("Authorization"))
        here = f"http://127.0.0.1:{server.server_port}"
        if server.refuse:
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            server.created = json.loads(body)
            return self.answer({"url": f"{here}/me/model", "id": "1", "name": "me/model"})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": MODES[p.rpartition(".")[2]], "shouldIgnore": False} for p in paths]
            return self.answer({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{here}/put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            server.commit = [json.loads(line) for line in body.splitlines()]
            return self.answer({"commitUrl": f"{here}/me/model/commit/1", "commitOid": "1", "pullRequestUrl": None})
        return self.answer({})


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.files, server.commit, server.tokens, server.refuse = [], {}, [], set(), False
    server.private = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def upload(hub, *arguments):
    """The command in a process of its own: the client of the hub reads its address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_secret"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "fluvial", "export", *map(str, arguments), "--to", "hub"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_run_goes_to_the_hub(tmp_path, hub):
    run = folder_of(Run(method=config("arflow", 1)), tmp_path / "run")
    done = upload(hub, run, "--repo", "me/model", "--license", "mit")
    assert done.returncode == 0, done.stderr
    announced, address = done.stdout.strip().splitlines()
    assert address.endswith("/me/model")
    assert (hub.created["name"], hub.created["organization"]) == ("model", "me")
    assert hub.created.get("visibility") == "private" or hub.created.get("private")  # by version of the client
    assert hub.tokens == {"Bearer hf_secret"}
    exporting.to_safetensors(run, tmp_path / "out", license="mit")
    listed = [
        f"{name} ({(tmp_path / 'out' / name).stat().st_size:,} bytes)" for name in ("README.md", "model.safetensors")
    ]
    assert announced == f"to the private repository me/model: {', '.join(listed)}"
    small = [line["value"] for line in hub.commit if line["key"] == "file"]
    inline = {file["path"]: base64.b64decode(file["content"]) for file in small}
    assert inline == {"README.md": (tmp_path / "out" / "README.md").read_bytes()}
    (large,) = (line["value"] for line in hub.commit if line["key"] == "lfsFile")
    assert large["path"] == "model.safetensors"
    assert hub.files[f"/put/{large['oid']}"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    hub.private = False  # a repository that is there already, for all to see
    refused = upload(hub, run, "--repo", "me/model")
    assert refused.returncode == 1 and "it exists and is public" in refused.stderr
    hub.refuse = True
    seen = len(hub.seen)
    refused = upload(hub, run, "--repo", "me/model/more")
    assert "a repository on the hub is OWNER/NAME, got 'me/model/more'" in refused.stderr and len(hub.seen) == seen
    refused = upload(hub, run, "--repo", "me/model")
    assert (
        refused.returncode == 1
        and "cannot upload to 'me/model'" in refused.stderr
        and "hf auth login" in refused.stderr
    )
    assert "hf_secret" not in refused.stderr


def test_the_command(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--to", "safetensors", "--dtype", "bf16"]) == 0
    assert str(run / "export-safetensors" / "model.safetensors") in capsys.readouterr().out
    assert cli.main(["export", str(run), "--to", "safetensors"]) == 1
    assert "export-safetensors is there already" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "no"), "--to", "safetensors"]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    for wrong in (
        ["hub"],
        ["hub", "--repo", "a/b", "--out", "x"],
        ["diffusers", "--dtype", "bf16"],
        ["safetensors", "--repo", "a/b"],
    ):
        assert cli.main(["export", str(run), "--to", *wrong]) == 2
    assert cli.main(["export", str(run)]) == 2
    (run / "checkpoints").rename(tmp_path / "checkpoints")
    assert cli.main(["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "x")]) == 1
    assert "has no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_light_import_has_load_and_weights():
    code = "import sys, fluvial; assert 'torch' not in sys.modules; print(fluvial.load.__name__, fluvial.weights)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("load <module 'fluvial.weights'"), done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        fluvial.lod  # noqa: B018


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ({"path": "/home/alice/cats"}, {"path": "cats"}),
        ({"path": "data/alice/cats/"}, {"path": "cats"}),
        ({"test_path": "../../alice/val"}, {"test_path": "val"}),
        ({"path": "/home/alice"}, {"path": ""}),
        ({"path": "~"}, {"path": ""}),
        ({"start": "C:\\Users\\alice\\runs\\one"}, {"start": "one"}),
        ({"path": "hub:alice/cats"}, {"path": "hub:alice/cats"}),
        ({"name": "stabilityai/sd-vae-ft-ema"}, {"name": "stabilityai/sd-vae-ft-ema"}),
        ({"name": "~alice/vae"}, {"name": "vae"}),
        ({"cells": ["file:///home/alice/vae", 3, None, True]}, {"cells": ["vae", 3, None, True]}),
        ({"class_names": ["/m/01g317", "~", "a/b"]}, {"class_names": ["/m/01g317", "~", "a/b"]}),
        ("see /home/alice/cats, or https://arxiv.org/abs/2401.08740", "see cats, or https://arxiv.org/abs/2401.08740"),
        ("SiT-XL/2 and/or 1/2 of it", "SiT-XL/2 and/or 1/2 of it"),
    ],
)
def test_of_a_path_only_the_last_part_is_published(value, published):
    assert exporting.public(value) == published


def test_nothing_of_this_machine_is_in_an_export(tmp_path, monkeypatch, tiny):
    home = tmp_path / "home" / "alice"
    monkeypatch.setenv("HOME", str(home))
    vae = tiny("AutoencoderKL")
    vae.save_pretrained(home / "vae")
    run = Run(
        method=config("sit", 4),
        data=DataConfig(path=str(home / "cats"), test_path=str(home), class_names=("a", "b", "c")),
        autoencoder=AutoencoderConfig(name=str(home / "vae"), shift=(0.1,), scale=(0.7,)),
        sample=SampleConfig(steps=2),
    )
    folder = folder_of(run, home / "runs" / "one")
    record = RunFolder(folder).record()
    RunFolder(folder).write({**record, "start": str(home / "runs" / "zero"), "imported": {"file": "sit.pt"}})
    exporting.to_safetensors(folder, tmp_path / "file")
    to_diffusers(folder, tmp_path / "pipeline")
    written = {**files(tmp_path / "file"), **{f"p/{k}": v for k, v in files(tmp_path / "pipeline").items()}}
    assert len(written) >= 8
    for name, content in written.items():
        for word in (b"alice", bytes(tmp_path), b"_name_or_path"):
            assert word not in content, name
    found = import_weights(tmp_path / "file", tmp_path / "again", autoencoder=str(home / "vae"))
    assert (found.run.data.path, found.run.data.test_path, found.run.data.class_names) == ("cats", "", ("a", "b", "c"))
    trained = fluvial.load(tmp_path / "again", device="cpu")
    assert torch.equal(trained.sample(2).images, fluvial.load(folder, device="cpu").sample(2).images)
    assert pipeline_of(tmp_path / "pipeline")([1]).images[0].size == (32, 32)


def edited(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def flipped(file):
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model/diffusion_pytorch_model.safetensors", flipped, "the model in the pipeline is damaged, or not the one"),
        ("vae/diffusion_pytorch_model.safetensors", flipped, "the autoencoder in the pipeline is damaged"),
        ("model/config.json", lambda f: edited(f, lambda v: v["run"]["sample"].update(steps=9)), "the run in the pipe"),
        (
            "model/config.json",
            lambda f: edited(f, lambda v: v["written"].pop("vae")),
            "the autoencoder in the pipeline",
        ),
        ("model/config.json", lambda f: edited(f, lambda v: v.pop("written")), "carries no checksums of its parts"),
        ("vae/config.json", lambda f: edited(f, lambda v: v.update(norm_num_groups=2)), "configuration of the autoenc"),
    ],
)
def test_a_damaged_pipeline_is_not_loaded(tmp_path, tiny, file, damage, says):
    tiny("AutoencoderKL").save_pretrained(tmp_path / "vae")
    autoencoder = AutoencoderConfig(name=str(tmp_path / "vae"))
    folder_of(Run(method=config("sit", 4), autoencoder=autoencoder), tmp_path / "run")
    out = to_diffusers(tmp_path / "run", tmp_path / "out")
    pipeline_of(out)
    with pytest.raises(ValueError, match="is loaded as float32.*got torch.bfloat16"):
        pipeline_of(out, torch_dtype=torch.bfloat16)
    damage(out / file)
    with pytest.raises(ValueError, match=says):
        pipeline_of(out)
