"""Runs and images measured: what a card says, against what, and what is refused."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fluvial
from fluvial import recipes
from fluvial.cli import main
from fluvial.data.images import digits
from fluvial.evaluation import against, scores, statistics
from fluvial.evaluation.opening import open_images
from fluvial.evaluation.reference import extractor_of
from fluvial.metrics import choice, report
from fluvial.metrics.features import extractor
from fluvial.utils.files import checksum

DIT = {"width": 16, "heads": 2, "depth": 1}


def small(**train):
    run = recipes.get("digits-arflow")
    return dataclasses.replace(
        run,
        method=dataclasses.replace(run.method, **DIT),
        train=dataclasses.replace(run.train, steps=4, batch=4, save_every=4, validate_every=0, sample_every=0, **train),
        sample=dataclasses.replace(run.sample, solver="euler", steps=2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    fluvial.train(small(), out, recipe="digits-arflow", device="cpu")
    return out


def score(run, **options):
    return fluvial.score(run, device="cpu", **{"count": 60, **options})


def test_a_card_says_what_the_numbers_depend_on(run):
    card = score(run)
    sampling, images = card["sampling"], card["images"]
    assert (images["count"], images["shape"], images["labels"]) == (60, [1, 8, 8], "all classes in turn")
    assert (sampling["solver"], sampling["nfe"], sampling["nfe_null"], sampling["seed"]) == ("euler", 2, 2, 0)
    assert sampling["guidance"] == small().sample.guidance.weight and sampling["train_step"] == 4
    assert sampling["weights"] == "average of decay 0.99" and sampling["dtype"] == "float32"
    assert card["reference"]["count"] == 540 and card["reference"]["name"] == "digits, held out"
    assert len(card["reference"]["hash"]) == 64 and card["training"]["hash"] != card["reference"]["hash"]
    assert card["extractor"]["name"] == "pixels" and {"fluvial", "torch"} <= card["made_by"].keys()
    wall = images["count"] / sampling["images_per_second"]
    assert 0 < sampling["seconds_network"] <= wall + 0.05 and 0 <= sampling["seconds_decoding"] < wall
    assert {"seconds", "drawn"}.isdisjoint(sampling)
    assert json.loads(json.dumps(card))["scores"] == card["scores"] and "NaN" not in json.dumps(card)
    found = card["scores"]
    assert {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"} <= found.keys()
    assert not {"fid", "kid", "inception_score"} & found.keys()  # of the Inception network alone
    assert found["frechet_distance"]["value"] > 5 and found["class_accuracy"]["value"] < 0.5  # four steps
    assert found["class_accuracy"]["real"] > 0.98 and found["frechet_distance"]["real"] < 3
    assert all(np.isfinite(value["error"]) and value["error"] >= 0 for value in found.values())
    assert any(text.startswith("60 samples for 64 features") and "singular" in text for text in card["warnings"])


class Brightness(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return self.scale * images.float().mean(dim=1).flatten(1)[:, ::3]

    @torch.jit.export
    def logits(self, features):
        return features[:, :10]


def test_the_hash_of_a_feature_extractor_stands_in_every_card(run, tmp_path, capsys):
    """Of files of one name, the card of one is not compared with that of another."""
    files = [tmp_path / f"{scale}" / "network.pt" for scale in (1, 2)]
    for scale, file in enumerate(files, start=1):
        file.parent.mkdir()
        torch.jit.script(Brightness(float(scale))).save(file)
    cards = [score(run, features=str(file)) for file in files]
    assert [card["extractor"]["hash"] for card in cards] == [checksum(file) for file in files]
    assert {card["extractor"]["name"] for card in cards} == {"torchscript network.pt"}
    assert [text for text in report.differences(*cards) if text.startswith("extractor.hash is ")]
    assert cards[0]["scores"]["classifier_score"]["value"] >= 1 and "inception_score" not in cards[0]["scores"]
    out = tmp_path / "card.json"
    images = ["score", "digits:test", "--reference", "digits:train", "--device", "cpu"]
    assert main([*images, "--extractor", str(files[1]), "--out", str(out)]) == 0
    assert checksum(files[1])[:12] in capsys.readouterr().out
    assert report.read(out)["extractor"]["hash"] == checksum(files[1])


def test_real_images_stand_in_for_as_many_samples(run):
    """What is printed beside is the distance of as many training images, by another way to the same number."""
    card = score(run, count=200)
    training = open_images("digits:train")
    look = extractor("pixels")
    found = statistics.statistics(training, look).first(200)
    test = statistics.statistics(open_images("digits:test"), look)
    expected = scores.scores(found, test, "pixels").values
    for name in ("frechet_distance", "precision", "kernel_distance"):
        assert card["scores"][name]["real"] == pytest.approx(expected[name].value, rel=1e-6)


def test_the_training_images_may_be_the_reference(run):
    card = score(run, reference="train")
    assert card["reference"]["count"] == 1257 and card["scores"]["frechet_distance"]["real"] < 3  # test images
    assert card["real"]["count"] == 60
    with pytest.raises(ValueError, match="no data set whose images could be the reference"):
        against.against("test", None, extractor("pixels"))
    assert main(["score", str(run), "--size", "4"]) == 2  # the run's own data are cut as they are


def test_without_labels_there_is_no_class_accuracy(tmp_path):
    unlabelled = dataclasses.replace(small(), method=dataclasses.replace(small().method, classes=0))
    fluvial.train(unlabelled, tmp_path / "run", device="cpu")
    card = score(tmp_path / "run", count=20)
    assert "class_accuracy" not in card["scores"] and card["sampling"]["guidance"] == 1.0
    assert card["images"]["labels"] == "none"


def test_given_images_are_not_scored_against_the_digits(tmp_path):
    data = digits("train")
    fluvial.train(small(), tmp_path / "run", data=data._replace(pixels=255 - data.pixels), device="cpu")
    with pytest.raises(ValueError, match="images given to it in Python"):
        score(tmp_path / "run", features="pixels")
    card = score(tmp_path / "run", features="pixels", data=data, validation=digits("test"))
    assert card["reference"]["name"] == "given, held out" and "class_accuracy" in card["scores"]
    named = score(tmp_path / "run", features="pixels", reference="digits:test", training="digits:train")
    assert named["scores"] == card["scores"] and named["reference"]["hash"] == card["reference"]["hash"]


@pytest.fixture
def base_install(monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    for name in [library for libraries, _ in choice.LIBRARIES.values() for library in libraries]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_base_install_measures_in_pixels_and_the_card_says_why(base_install, run, tmp_path, capsys):
    """Images given in Python are no digits to the library, though these are: no features have to be named."""
    fluvial.train(small(), tmp_path / "run", data=digits("train"), device="cpu")
    capsys.readouterr()
    card = score(tmp_path / "run", data=digits("train"))
    assert card["extractor"]["name"] == "pixels" and "not installed" in card["extractor"]["why"]
    assert card["reference"]["name"] == "given" and "no validation images" in card["reference"]["why"]
    assert "frechet_distance" in card["scores"] and "fid" not in card["scores"]
    with pytest.raises(ValueError, match="given has no test images"):  # asked for by name, it is no other
        score(tmp_path / "run", data=digits("train"), reference="test")
    assert "why" not in score(run)["extractor"] and "why" not in score(run)["reference"]
    options = ["--count", "20", "--reference", "digits:train", "--out", str(tmp_path / "card.json")]
    assert main(["score", str(tmp_path / "run"), *options]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("measured in pixels, which gives no FID: Inception is not installed (pip install")


def test_one_line_says_everything_that_is_missing(base_install, run, tmp_path, capsys):
    fluvial.train(small(), tmp_path / "run", data=digits("train"), device="cpu")
    with pytest.raises(ValueError, match=r"Inception is not installed .*; and .*images given to it in Python"):
        score(tmp_path / "run", features="inception")
    where = {"reference": str(tmp_path / "a"), "training": str(tmp_path / "b")}
    with pytest.raises(ValueError, match=r"dinov2 is not installed .*/a does not exist.*/b does not exist"):
        score(run, features="dinov2", **where)
    capsys.readouterr()
    assert main(["score", str(tmp_path), "--features", "inception"]) == 2
    assert (
        "images need a --reference: real images, such as digits:test or a folder; and Inception is not"
        in capsys.readouterr().err
    )


def test_features_follow_what_is_compared_with(base_install, run, tmp_path):
    """Never another extractor in silence: that of the card, or of the statistics."""
    score(run, keep=tmp_path / "kept.safetensors")
    assert extractor_of(str(tmp_path / "kept.safetensors")) == "pixels" and extractor_of("digits:test") == ""
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="Inception is not installed"):
        score(run, reference=str(tmp_path / "adm.npz"))
    card = {**score(run), "extractor": {"name": "efficientnet-lite0", "hash": None, "resize": "", "dtype": ""}}
    card.pop("sha256")
    (tmp_path / "card.json").write_text(json.dumps(report.sealed(card)))
    as_many = ["--count", str(card["images"]["count"])]
    assert main(["score", str(run), *as_many, "--against", str(tmp_path / "card.json")]) == 1


def test_an_output_of_sample_is_scored_as_the_run_is(run, tmp_path):
    """The same images, from the file: the same numbers, and the card knows how they were drawn."""
    assert main(["sample", str(run), "--count", "60", "--gif", "False", "--out", str(tmp_path)]) == 0
    live = score(run, reference="digits:test", training="digits:train")
    read = fluvial.score(
        str(tmp_path), reference="digits:test", training="digits:train", features="pixels", device="cpu"
    )
    for name, found in live["scores"].items():
        assert read["scores"][name] == pytest.approx(found, rel=1e-9), name
    assert report.differences(live, read) == [] and report.unknown(live, read) == []
    assert read["sampling"]["nfe"] == 2 and read["sampling"]["solver"] == "euler"


def test_a_custom_function_and_the_parts_of_a_batch_do_not_change_the_numbers(run):
    def doubled(images):
        return images.flatten(1).float() / 127.5 - 1

    plain, own = score(run), score(run, features=doubled, reference="test")
    assert own["extractor"]["name"].startswith("function") and plain["extractor"]["name"] == "pixels"
    small_batches = score(run, settings=dataclasses.replace(small().sample, batch=7))
    value = plain["scores"]["precision"]["value"]
    assert small_batches["scores"]["precision"]["value"] == pytest.approx(value, abs=0.02)  # a grey level


def test_nearest_training_images_are_drawn_and_copies_are_found(tmp_path):
    """Samples that are training images are nearer than test images ever are."""
    train = digits("train")
    folder = tmp_path / "copies"
    folder.mkdir()
    for i, image in enumerate(train.pixels[:40]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03}.png")
    card = fluvial.score(
        str(folder), reference="digits:test", training="digits:train", features="pixels", channels=1, device="cpu",
        nearest=tmp_path / "nearest.png",
    )  # fmt: skip
    found = card["scores"]["closer_to_training"]
    assert found["value"] > 0.99
    assert Image.open(tmp_path / "nearest.png").height > 500


def test_where_nothing_tells_how_near_is_usual_there_is_no_memorisation(run, tmp_path):
    for options, says in (
        ({"reference": "digits:train", "training": "digits:train"}, "none that are not of the training images"),
        ({"reference": "digits:test"}, "name them with --training"),
    ):
        with pytest.raises(ValueError, match=says):
            score(run, nearest=tmp_path / "a.png", **options)
    assert not (tmp_path / "a.png").exists()


def test_looking_for_copies_changes_no_other_number(run, tmp_path, monkeypatch):
    """Though it looks at more training images."""
    monkeypatch.setattr(against, "BESIDE", 300)
    plain, looked = score(run), score(run, nearest=tmp_path / "deep" / "a.png")
    closer = looked["scores"].pop("closer_to_training")
    assert looked["scores"] == plain["scores"] and looked["training"] == plain["training"]
    assert closer["value"] < 1 and (tmp_path / "deep" / "a.png").exists()


def test_as_many_real_images_as_there_are(run, monkeypatch):
    monkeypatch.setattr(against, "BESIDE", 100)
    card = score(run, count=120)
    assert card["real"]["count"] == 100  # and not 120, as the card says
    assert card["scores"]["class_accuracy"]["real"] > 0.8  # ten a class are few, and enough to learn from
    monkeypatch.setattr(scores, "SVM_EACH", 11)
    assert "class_accuracy" not in score(run)["scores"]


def test_kept_statistics_of_samples_are_told_apart(run, tmp_path):
    """They have no images to hash."""
    cards = []
    for seed in (0, 1):
        score(run, seed=seed, keep=tmp_path / f"{seed}.safetensors")
        cards.append(score(run, reference=str(tmp_path / f"{seed}.safetensors")))
    assert cards[0]["scores"]["frechet_distance"]["value"] == pytest.approx(0, abs=1e-5)
    assert any("reference.hash" in difference for difference in report.differences(*cards))
    assert report.differences(cards[0], cards[0]) == []


def test_features_of_functions_are_not_known_to_be_the_same(run):
    cards = [score(run, features=lambda images: images.flatten(1).float()) for _ in range(2)]
    assert "extractor.hash" in report.unknown(*cards)
