"""What is a path and what is on the hub: data, autoencoders, weights of extractors, run folders."""

from dataclasses import replace

import pytest

from fluvial import autoencoders, cli, recipes
from fluvial.autoencoders import AutoencoderConfig
from fluvial.data import images as data_images
from fluvial.data.images import DataConfig
from fluvial.evaluation.opening import open_images
from fluvial.metrics.features import extractor
from fluvial.run import inputs
from fluvial.run.folder import RunFolder
from fluvial.utils.places import closest, missing, repository

TYPOS = ("pixel", "taesd", "./models/vae", "models/vae", "madebyollin/taesd/vae", "/nowhere/vae", "~/no/vae")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, with a folder models in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "vae-ema").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("madebyollin/taesd", "madebyollin/taesd"),
        ("hub:madebyollin/taesd", "madebyollin/taesd"),
        ("hub:owner/name/vae", "owner/name/vae"),
        ("hub:mnist", "mnist"),
        *((name, None) for name in TYPOS),
        ("", None),
        ("../a", None),
        ("a b/c", None),
    ],
)
def test_what_names_a_repository(here, name, expected):
    assert repository(name) == expected


@pytest.mark.parametrize("name", ["hub:", "hub:/etc", "hub:../a", "hub:a//b", "hub:~/a", "hub:a/.."])
def test_hub_names_are_no_paths(here, name):
    with pytest.raises(ValueError, match="names nothing on the Hugging Face hub, expected hub:OWNER/NAME"):
        repository(name)


def test_a_folder_of_the_name_of_a_repository_is_not_read_in_its_place(here):
    """As libraries of the hub do: a data set of that name would be another one."""
    for name in ("hub:models/vae-ema", "hub:models/vae-ema/sub"):
        with pytest.raises(ValueError, match="is on the Hugging Face hub, but there is also models/vae-ema here"):
            repository(name)


def test_the_closest_name_is_told(here):
    (here / "models" / "vae-ema" / "train").mkdir()
    (here / "gone").symlink_to("nowhere")
    assert closest("models/vae-em") == "; did you mean models/vae-ema?"
    assert closest("model/vae-ema/train") == "; did you mean models/vae-ema/train?"
    assert closest("model/other") == "; did you mean models?"
    assert closest(str(here / "model")) == f"; did you mean {here / 'models'}?"
    assert closest("zzz") == closest("") == closest("/") == ""
    assert closest("digit", ("digits",)) == "; did you mean digits?"
    assert closest("gone") == ": it is a link to nowhere"
    assert missing("zzz") == "zzz does not exist (of the Hugging Face hub it would be hub:OWNER/NAME)"


@pytest.fixture
def hub(monkeypatch):
    """The names that were asked of the hub, by any of its clients."""
    import datasets
    import diffusers
    import transformers

    asked = []

    def ask(name, *_, **__):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", ask)
    monkeypatch.setattr(diffusers.AutoencoderKL, "load_config", ask)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", ask)
    return asked


@pytest.mark.parametrize("name", TYPOS)
def test_a_path_is_never_asked_of_the_hub(here, hub, name):
    for use in (
        lambda: autoencoders.load(name),
        lambda: extractor("dinov2", weights=name),
        lambda: data_images.load(DataConfig(path=name), "train"),
        lambda: data_images.load(DataConfig(name=name), "train"),
        lambda: open_images(name),
        lambda: open_images(f"{name}:train"),
    ):
        with pytest.raises(ValueError, match="does not exist"):
            use()
    for command in (["data", "inspect", name], ["encode", name, "--autoencoder", "pixels", "--out", "x"]):
        assert cli.main(command) == 1
    assert not hub


def test_names_are_asked_of_the_hub(here, hub):
    for use in (
        lambda name: autoencoders.load(name),
        lambda name: extractor("dinov2", weights=name),
        lambda name: data_images.load(DataConfig(name=name), "train"),
        lambda name: data_images.load(DataConfig(path=f"hub:{name.removeprefix('hub:')}"), "train"),
        lambda name: open_images(f"hub:{name.removeprefix('hub:')}:train"),
    ):
        for name in ("owner/name", "hub:owner/name"):
            with pytest.raises(ValueError, match="hub"):
                use(name)
            assert hub.pop() == "owner/name" and not hub


def test_a_path_is_looked_for_before_anything_is_downloaded(here, hub):
    run = replace(recipes.get("cifar10-sit"), autoencoder=AutoencoderConfig(name="owner/vae"))
    for data in ({"path": "cats"}, {"test_path": "cats"}, {"path": "cats/*.parquet"}):
        with pytest.raises(ValueError, match="cats.* does not exist"):
            inputs.open_inputs(replace(run, data=replace(run.data, **data)))
    assert not hub


def test_a_folder_called_like_a_built_in_set_is_a_path(here):
    assert len(data_images.load(DataConfig(path="digits"), "train").pixels) == 1257
    (here / "digits").mkdir()
    with pytest.raises(ValueError, match="digits has no images"):
        data_images.load(DataConfig(path="digits"), "train")
    assert len(data_images.load(DataConfig(name="digits"), "train").pixels) == 1257


SMALL = ["--method.width", "16", "--method.heads", "2", "--method.depth", "1", "--train.batch", "4"]
SMALL += ["--train.steps", "1", "--train.validate-every", "0", "--train.sample-every", "0", "--sample.steps", "2"]


def test_a_given_name_takes_the_place_of_a_path(here, capsys, monkeypatch):
    """Of a run folder or a recipe, which the name would otherwise be dropped for."""
    asked = []
    monkeypatch.setattr("fluvial.cli.train._tell", lambda run, *_: asked.append(run.data))
    assert cli.main(["train", "photos-256", "--data.name", "owner/name", "--dry-run"]) == 0
    assert (asked[0].name, asked[0].path) == ("owner/name", "")
    assert cli.main(["train", "digits-sit", "--data.name", "digits", "--data.path=x"]) == 2
    assert "--data.name digits and --data.path x are two data sets" in capsys.readouterr().err


def test_run_json_names_the_data_that_was_used(here):
    (images := here / "animals").mkdir()
    pixels = data_images.digits("train").subset(data_images.torch.arange(20)).pixels
    for i, image in enumerate(pixels):
        (images / f"{i % 2}").mkdir(exist_ok=True)
        data_images.Image.fromarray(image[0].numpy()).save(images / f"{i % 2}" / f"{i}.png")
    options = ["--data.path", "animals", "--data.channels", "1", "--method.classes", "2"]
    assert cli.main(["train", "digits-sit", *SMALL, *options, "--out", "run"]) == 0
    written = RunFolder("run").run().data
    assert (written.name, written.path) == ("", "animals") and '"digits"' not in (here / "run/run.json").read_text()
    # a run that began with the name of the same images goes on with their path
    record = RunFolder("run").record()
    record["run"]["data"] |= {"name": "owner/name", "path": ""}
    RunFolder(here / "run").write(record)
    assert cli.main(["train", "run", "--data.path", "animals"]) == 0
    assert cli.main(["train", "run", "--data.name", "digits"]) == 1


def test_a_missing_run_folder_has_a_closest_one(here, capsys):
    (here / "runs" / "cats").mkdir(parents=True)
    assert cli.main(["sample", "runs/cat"]) == 1
    assert "runs/cat is not a run folder: it has no run.json; did you mean runs/cats?" in capsys.readouterr().err
