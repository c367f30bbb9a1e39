"""Classes of a run, wherever they meet others: held-out images, caches, given images, fine-tuning, samples, scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

import fluvial
from fluvial import cli
from fluvial.autoencoders import AutoencoderConfig
from fluvial.config import Run
from fluvial.data.images import DataConfig, ImageSet, load
from fluvial.evaluation.against import real_images
from fluvial.evaluation.opening import open_images
from fluvial.methods import sit
from fluvial.run import finetune, inputs
from fluvial.run.folder import RunFolder, record_of
from fluvial.run.inputs import encode, open_autoencoder, open_inputs
from fluvial.run.train import build

DIGITS = tuple(map(str, range(12)))
BY_TEXT = tuple(sorted(DIGITS))
SHAPE = {"size": (8, 8), "channels": 3, "patch": 4, "depth": 1, "width": 16, "heads": 2}


def png(value):
    from io import BytesIO

    from PIL import Image as Pillow

    Pillow.new("RGB", (8, 8), (value, 0, 0)).save(stream := BytesIO(), "PNG")
    return stream.getvalue()


def folders(root, classes):
    """A folder for each class, with one image a value: class k of the list has the values 10 k, 10 k + 1."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for value in (10 * k, 10 * k + 1):
            (root / name / f"{value}.png").write_bytes(png(value))
    return str(root)


def parquet(file, labels, kind=None):
    rows = {"image": [{"bytes": png(10 * int(v)), "path": None} for v in labels], "label": labels}
    Dataset.from_dict(rows, Features({"image": Image(), "label": kind or Value("int64")})).to_parquet(file)
    return str(file)


def run_of(classes, **data):
    return Run(method=sit.SiTConfig(**SHAPE, classes=classes), data=DataConfig(**data))


def by_id(examples):
    """The value of the first image of each class id: 10 times the place of its class in the list."""
    values = examples.rows(torch.arange(len(examples.labels)))[:, 0, 0, 0] // 10
    return {int(label): int(value) for value, label in zip(values, examples.labels, strict=True)}


def test_folders_of_numbers_meet_whole_numbers(tmp_path):
    train = folders(tmp_path / "train", DIGITS)
    for file in (
        parquet(tmp_path / "int.parquet", [10, 2, 0]),
        parquet(tmp_path / "text.parquet", ["10", "2", "0"], Value("string")),
        parquet(tmp_path / "named.parquet", [BY_TEXT.index("10")], ClassLabel(names=list(BY_TEXT))),
    ):
        opened = open_inputs(run_of(12, path=train, test_path=file))
        assert by_id(opened.train) == {i: i for i in range(12)} and opened.run.data.class_names == DIGITS
        if "named" not in file:
            assert by_id(opened.held_out) == {10: 10, 2: 2, 0: 0}
        assert opened.held_out.labels[0] == 10
    # a run that began when names were ordered as text goes on with its ids
    there = open_inputs(run_of(12, path=train, test_path=str(tmp_path / "int.parquet"), class_names=BY_TEXT))
    expected = {BY_TEXT.index(str(i)): i for i in range(12)}
    assert by_id(there.train) == expected and there.held_out.labels.tolist() == [2, 4, 0]
    # and the other way round
    opened = open_inputs(run_of(12, path=str(tmp_path / "int.parquet"), test_path=train))
    assert by_id(opened.held_out) == {i: i for i in range(12)} and opened.run.data.class_names == ()


def test_the_order_of_the_files_is_not_that_of_the_classes(tmp_path):
    """So that runs and caches made when names were ordered as text go on with the same images."""
    images = load(DataConfig(path=folders(tmp_path, DIGITS)), "train")
    assert (images.rows(torch.arange(24))[:, 0, 0, 0] // 10).tolist() == [int(n) for n in BY_TEXT for _ in "ab"]


@pytest.mark.parametrize("cached", [False, True])
def test_other_classes_are_refused_unless_the_user_names_them(tmp_path, cached):
    train, test = (folders(tmp_path / part, names) for part, names in (("a", ("bus", "car")), ("b", ("truck", "van"))))
    if cached:
        for place in (train, test):
            encode(DataConfig(path=place), open_autoencoder(AutoencoderConfig()), tmp_path / f"{place}-cache")
        train, test = f"{train}-cache", f"{test}-cache"
    run = run_of(2, path=train, test_path=test)
    both = r"the validation images have the classes \['truck', 'van'\], the training images \['bus', 'car'\]"
    with pytest.raises(ValueError, match=both):
        open_inputs(run)
    for names in (("x", "y"), ("bus", "car")):
        opened = open_inputs(replace(run, data=replace(run.data, class_names=names)))
        assert opened.held_out.labels.tolist() == [0, 0, 1, 1] and opened.run.data.class_names == names
        assert open_inputs(opened.run).held_out.class_names == names  # as it is written, it goes on
    # names that were found are no names that the user gave
    found = open_inputs(replace(run, data=replace(run.data, test_path=""))).run
    assert found.data.class_names == ("bus", "car") and not found.data.names_given
    with pytest.raises(ValueError, match=both):
        open_inputs(replace(found, data=replace(found.data, test_path=test)))
    opened = open_inputs(replace(run, data=replace(run.data, class_names=("car", "bus"), test_path=train)))
    assert by_id_of(opened) == {1: 0, 0: 1}, "the names that were given are in another order"


def by_id_of(opened):
    pixels = inputs.encoder(opened.autoencoder, opened.train)(opened.train.rows(torch.arange(4)))
    if pixels.dtype == torch.uint8 or pixels.max() > 1:
        return by_id(opened.train)
    values = ((pixels[:, 0, 0, 0] + 1) * 127.5 / 10).round()
    return {int(label): int(value) for value, label in zip(values, opened.train.labels, strict=True)}


def test_a_run_that_is_trained_keeps_what_it_knows_of_its_names(tmp_path, capsys):
    train, test = (folders(tmp_path / part, names) for part, names in (("a", ("bus", "car")), ("b", ("truck", "van"))))
    small = ["--method.width", "16", "--method.heads", "2", "--method.depth", "1", "--train.batch", "4"]
    small += ["--method.channels", "3", "--method.classes", "2", "--train.steps", "1", "--train.sample-every", "0"]
    start = ["train", "digits-sit", *small, "--data.path", train]
    given = ["--data.test-path", test, "--data.class_names", "bus", "car"]
    assert cli.main([*start, "--out", str(tmp_path / "given"), *given]) == 0
    assert cli.main(["train", str(tmp_path / "given")]) == 0
    assert cli.main([*start, "--out", str(tmp_path / "found")]) == 0
    assert cli.main(["train", str(tmp_path / "found"), "--data.test-path", test]) == 1
    assert "the training images ['bus', 'car']" in capsys.readouterr().err
    # fine-tuning: names in whatever spelling, also where they are those of the run that it starts from
    tuned = ["train", str(tmp_path / "found"), "--data.path", test, "--data.class_names", "bus", "car"]
    assert cli.main([*tuned, "--out", str(tmp_path / "tuned")]) == 0
    assert RunFolder(tmp_path / "tuned").run().data.class_names == ("bus", "car")
    assert cli.main([*tuned[:4], "--out", str(tmp_path / "anew")]) == 0
    assert RunFolder(tmp_path / "anew").run().data.class_names == ("truck", "van")


def test_given_images_are_matched_too():
    def given(labels, names):
        return ImageSet(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(labels), names)

    train, run = given([0, 1, 0, 1], ("a", "b")), run_of(2)
    opened = open_inputs(run, images=train, held_out=given([0, 0], ("b",)))
    assert opened.held_out.labels.tolist() == [1, 1] and opened.run.data.class_names == ("a", "b")
    for names in (("c", "d"), ("a", "c"), ()):
        with pytest.raises(ValueError, match=r"the validation images have .*, the training images \['a', 'b'\]"):
            open_inputs(run, images=train, held_out=given([0, 1], names))
    with pytest.raises(ValueError, match="labels run .*7, but there are 2 class names"):
        open_inputs(run, images=given([0, 7], ("a", "b")))
    free = open_inputs(run_of(0), images=train, held_out=given([0, 1], ("c", "d")))
    assert free.held_out.labels is None


def test_class_names_must_differ():
    with pytest.raises(ValueError, match="class_names must differ, got a, b, a"):
        DataConfig(class_names=("a", "b", "a"))


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((12, ()), (12, DIGITS), {i: i for i in range(12)}),
        ((12, ()), (12, BY_TEXT), {i: int(name) for i, name in enumerate(BY_TEXT)}),
        ((12, ()), (2, ("3", "11")), {0: 3, 1: 11}),
        ((12, ()), (3, ("003", "011", "012")), {0: 3, 1: 11}),  # 12 is none of 0 ... 11
        ((12, BY_TEXT), (12, ()), {int(name): i for i, name in enumerate(BY_TEXT)}),
        ((2, ("3", "11")), (12, ()), {3: 0, 11: 1}),
        ((12, DIGITS), (12, tuple(f"{i:02d}" for i in range(12))), {10: 10, 11: 11}),  # 1 and 01 are two names
    ],
)
def test_fine_tuning_finds_the_rows_of_numbers(before, after, kept):
    start, run = (run_of(classes, class_names=names) for classes, names in (before, after))
    weights, initial = ({**build(r).state_dict()} for r in (start, run))
    weights["embed_label.table.weight"] = torch.randn_like(weights["embed_label.table.weight"])
    table, _ = finetune.adapted(weights, start, run, initial)
    table = table["embed_label.table.weight"]
    for row in range(after[0]):
        source, old = (weights, kept[row]) if row in kept else (initial, row)
        assert torch.equal(table[row], source["embed_label.table.weight"][old]), row


@pytest.mark.parametrize(
    ("names", "classes", "ids"),
    [(DIGITS, "10", 10), (BY_TEXT, "10", 2), (("207", "281", "985"), "281", 1), (("a", "b", "c"), "2", 2)],
)
def test_sample_draws_the_class_that_is_called_so(tmp_path, names, classes, ids):
    run = run_of(len(names), class_names=names)
    weights = build(run).state_dict()
    RunFolder(tmp_path / "run").create(record_of(run), weights)
    options = ["--count", "2", "--gif", "False", "--sample.steps", "1"]
    assert cli.main(["sample", str(tmp_path / "run"), "--classes", classes, *options]) == 0
    assert np.load(tmp_path / "run" / "samples" / "samples.npz")["arr_1"].tolist() == [ids, ids]
    assert cli.main(["sample", str(tmp_path / "run"), "--classes", "12", *options]) == 2


def test_scores_know_the_classes_by_name(tmp_path, capsys):
    train = folders(tmp_path / "train", ("a", "b", "c"))
    other = folders(tmp_path / "other", ("c", "b"))
    wrong = folders(tmp_path / "wrong", ("x", "y"))
    real = open_images(train)
    labels = open_images(other, None, real.classes).read(range(4))[1]
    assert labels.tolist() == [1, 1, 2, 2]
    assert open_images(wrong, None, real.classes).read(range(4))[1] is None
    said = capsys.readouterr().err
    assert f"the labels of {wrong} are ignored: the images of {wrong} have the classes ['x', 'y']" in said
    both = real_images(DataConfig(path=train, test_path=other, class_names=("c", "b", "a"), names_given=False))
    assert both.training.read(range(6))[1].tolist() == [2, 2, 1, 1, 0, 0]
    assert both.test.read(range(4))[1].tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"\['x', 'y'\], the training images \['a', 'b', 'c'\]"):
        real_images(DataConfig(path=train, test_path=wrong))
    assert real_images(DataConfig(path=train, test_path=wrong), labelled=False).test is not None


def coloured(root, values):
    """Twenty images of about this value for each class."""
    for name, value in values.items():
        (root / name).mkdir(parents=True)
        for i in range(20):
            (root / name / f"{i}.png").write_bytes(png(value + i))
    return str(root)


def test_class_accuracy_is_of_the_classes_of_that_name(tmp_path, capsys):
    train = coloured(tmp_path / "train", {"dark": 0, "light": 200})
    light = coloured(tmp_path / "light", {"light": 200})  # there its id is 0
    other = coloured(tmp_path / "other", {"pale": 200})
    options = {"reference": train, "training": train, "features": "pixels"}
    assert fluvial.score(light, **options)["scores"]["class_accuracy"]["value"] == 1
    assert "class_accuracy" not in fluvial.score(other, **options)["scores"]
    assert f"the labels of {other} are ignored" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["[/red]", "[bold]", ":cat:", "[link=x]y[/]"])
def test_class_names_are_printed_as_they_are(tmp_path, capsys, name):
    place = parquet(tmp_path / "a.parquet", [0, 1], ClassLabel(names=[name, "b"]))
    assert cli.main(["data", "inspect", place, "--sheet", str(tmp_path / "sheet.png")]) == 0
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.count("│") == 4]
    assert name in rows and "b" in rows


@pytest.mark.parametrize(("labels", "kind"), [([-1, 1], None), ([-1, 1], ClassLabel(names=["a", "b"]))])
def test_inspect_tells_of_labels_that_are_no_class(tmp_path, capsys, labels, kind):
    place = parquet(tmp_path / "a.parquet", [0, 1], kind)
    import pyarrow
    from pyarrow import parquet as pq

    table = pq.read_table(place)
    pq.write_table(table.set_column(1, "label", pyarrow.array(labels)), place)  # keeps the names in the metadata
    assert cli.main(["data", "inspect", place, "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert " -1 " in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 of 2 are below: that of image 0 is -1"):
        open_inputs(run_of(2, path=place))


@pytest.fixture
def asked(monkeypatch):
    """The runs that dry runs were asked of."""
    runs = []
    monkeypatch.setattr("fluvial.cli.train._tell", lambda run, *_: runs.append(run))
    return runs


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["--sample.steps", "12"], 12),
        (["--sample.steps=5"], 5),
        (["--sample.steps", "9", "8", "7"], (9, 8, 7)),
        ([], (32, 20, 8)),
    ],
)
def test_steps_are_one_number_or_one_for_each_scale(options, steps, asked):
    assert cli.main(["train", "digits-flowar", "--dry-run", *options]) == 0
    assert asked[0].sample.steps == steps


@pytest.mark.parametrize("spelling", [["--smoke"], ["--smoke", "True"], ["--smoke=True"]])
def test_flags_take_a_value_like_other_options(spelling, asked):
    for flag in ("--dry-run", "--dry_run", "--dry-run=True"):
        assert cli.main(["train", "digits-sit", *spelling, flag]) == 0
    assert cli.main(["train", "digits-sit", "--smoke=False", "--dry-run"]) == 0
    assert [run.method.width for run in asked] == [64, 64, 64, 128]
    for wrong in ("--smok", "--smoke=yes", "--dry"):
        assert cli.main(["train", "digits-sit", wrong, "--dry-run"]) == 2
