import io
import tarfile

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fluvial.data import images as data_images
from fluvial.data import inspect as inspection
from fluvial.data import sources
from fluvial.data.images import DataConfig, Files, load


def picture(i, side=8):
    """An image that says which one it is in every pixel."""
    return Image.new("RGB", (side, side), (i, 2 * i, 255 - i))


def encoded(i, side=8):
    buffer = io.BytesIO()
    picture(i, side).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(images):
    """Which images these are, from their pixels."""
    pixels = images.rows(torch.arange(len(images.pixels)))
    assert torch.equal(pixels[:, 1].int(), 2 * pixels[:, 0].int())
    return pixels[:, 0, 0, 0].tolist()


def tree(root, classes, side=8):
    for name, ids in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in ids:
            (root / name / f"{i:03d}.png").write_bytes(encoded(i, side))
    return root


def open_at(path, split="train", **options):
    return load(DataConfig(path=str(path), **options), split)


def test_a_folder_for_each_class(tmp_path):
    tree(tmp_path, {"zebra": [5, 4], "ant": [1, 2, 3], "cow/left": [7], "cow/right": [8]})
    (tmp_path / "ant" / ".hidden.png").write_bytes(b"")
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "ant" / "009.PNG").write_bytes(encoded(9))
    images = open_at(tmp_path)
    assert images.class_names == ("ant", "cow", "zebra")
    assert numbers(images) == [1, 2, 3, 9, 7, 8, 4, 5]
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert open_at(tmp_path, "test") is None


def test_held_out_classes_have_the_ids_of_training(tmp_path):
    tree(tmp_path / "train", {"a": [1], "b": [2], "c": [3]})
    tree(tmp_path / "val", {"b": [4], "c": [5]})
    names = open_at(tmp_path).class_names
    held_out = open_at(tmp_path, "test", class_names=names)
    assert held_out.labels.tolist() == [1, 2] and held_out.class_names == ("a", "b", "c")
    tree(tmp_path / "val", {"d": [6]})
    renamed = open_at(tmp_path / "train", class_names=("x", "y", "z"))
    assert renamed.class_names == ("x", "y", "z") and renamed.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"labels \['d'\] are not among the class names"):
        open_at(tmp_path, "test", class_names=names)
    dataset([1, 2, 3], [0, 1, 1], names=("c", "b")).to_parquet(tmp_path / "other.parquet")
    assert open_at(tmp_path / "other.parquet", class_names=names).labels.tolist() == [2, 1, 1]


def test_the_split_that_is_trained_on_is_not_held_out(tmp_path):
    for name in ("val", "test"):
        tree(tmp_path / "f" / name, {"a": [1 if name == "val" else 2]})
    (tmp_path / "p").mkdir()
    for name, i in (("validation", 3), ("test", 4)):
        dataset([i]).to_parquet(tmp_path / "p" / f"{name}.parquet")
    for place, split, ids in (("f", "val", (1, 2)), ("p", "validation", (3, 4))):
        config = DataConfig(path=str(tmp_path / place), split=split)
        assert [numbers(load(config, part)) for part in ("train", "test")] == [[ids[0]], [ids[1]]]


def test_a_link_in_a_circle_is_followed_once(tmp_path):
    tree(tmp_path, {"a": [1], "b": [2]})
    (tmp_path / "a" / "self").symlink_to(tmp_path)
    assert numbers(open_at(tmp_path)) == [1, 2]


def test_the_digest_is_of_the_files_wherever_they_lie(tmp_path):
    for name in ("one", "two"):
        tree(tmp_path / name, {"a": [1], "b": [2]})
        dataset([1, 2], [0, 1]).to_parquet(tmp_path / f"{name}.parquet")
    assert open_at(tmp_path / "one").digest == open_at(tmp_path / "two").digest != ""
    assert open_at(tmp_path / "one.parquet").digest == open_at(tmp_path / "two.parquet").digest
    (tmp_path / "two" / "a" / "001.png").write_bytes(encoded(1, 80))
    assert open_at(tmp_path / "one", size=8).digest != open_at(tmp_path / "two", size=8).digest


def test_the_digest_of_rows_is_of_their_images_and_labels(tmp_path):
    def digest(contents, labels=(0, 1, 1), names=("cat", "dog"), size=1000):
        rows = [None if c is None else {"bytes": c, "path": None} for c in contents]
        features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(names))})
        columns = {"img": rows, "fine": list(labels)}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet", batch_size=size)
        return sources.open_source(str(tmp_path / "a.parquet")).digest()

    def bitmap(pixels):
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "BMP")
        return buffer.getvalue()

    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    plain, inverted = ([bitmap(p) for p in rows] for rows in (pixels, 255 - pixels))
    assert list(map(len, plain)) == list(map(len, inverted))
    expected = digest(plain)
    assert digest(plain) == digest(plain, size=1) == expected
    others = [
        digest(plain, labels=(1, 0, 0)),
        digest(plain, names=("dog", "cat")),
        digest(inverted),
        digest([*plain[:2], inverted[2]]),
        digest(plain[::-1]),
        digest([plain[0], None, plain[1]]),
        digest([None, *plain[:2]]),
        digest([plain[0], plain[1][:-1], plain[1][-1:] + plain[2]]),
        digest([None] * 3),
    ]
    assert len({expected, *others}) == 10


def test_rows_without_an_image_are_unreadable(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": encoded(1), "path": None}, None, {"bytes": encoded(2), "path": None}]
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "n.parquet")
    images = open_at(tmp_path / "n.parquet", unreadable="skip")
    assert numbers(images) == [1, 2] and "row 1" in images.skipped[0].name


def test_labels_may_be_left_aside(tmp_path):
    dataset([1, 2], [0, 1]).to_parquet(tmp_path / "a.parquet")
    assert open_at(tmp_path / "a.parquet", label_column="none").labels is None


def table(images, labels, file):
    """A parquet file as other tools write it: images as bytes, or as the path of a file."""
    rows = [{"bytes": None, "path": i} if isinstance(i, str) else {"bytes": i, "path": None} for i in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, kind), "label": labels}), file)


def test_folders_named_by_numbers_are_in_the_order_of_their_values(tmp_path):
    images = open_at(tree(tmp_path, {"10": [1], "9": [2], "205": [3]}))
    assert images.class_names == ("9", "10", "205")
    assert dict(zip(numbers(images), images.labels.tolist(), strict=True)) == {2: 0, 1: 1, 3: 2}
    images = open_at(tree(tmp_path / "b", {"1": [1], "01": [2], "001": [3], "2": [4]}))
    assert images.class_names == ("001", "01", "1", "2") and numbers(images) == [3, 2, 1, 4]


def test_labels_in_digits_of_several_spellings_stay_apart(tmp_path):
    table([encoded(i) for i in (1, 2, 3)], ["1", "01", "2"], tmp_path / "a.parquet")
    images = open_at(tmp_path / "a.parquet")
    assert images.class_names == ("01", "1", "2") and images.labels.tolist() == [1, 0, 2]
    table([encoded(i) for i in (1, 2, 3)], ["10", "9", "0"], tmp_path / "b.parquet")
    images = open_at(tmp_path / "b.parquet")
    assert images.class_names == () and images.labels.tolist() == [10, 9, 0]


def test_a_row_opens_no_file_outside_the_folder_of_the_data_set(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(3))
    (tmp_path / "set" / "inside.png").write_bytes(encoded(4))
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    file = tmp_path / "set" / "a.parquet"
    for path in (tmp_path / "secret.png", "../secret.png", "link.png", "/etc/hostname", "a\0b"):
        table([encoded(1), str(path)], [0, 1], file)
        for place in (file, tmp_path / "set" / "*.parquet", tmp_path / "s?t" / "a.parquet"):
            with pytest.raises(ValueError, match=r"row 1 points to the file .*, outside the folder of the data set"):
                numbers(open_at(place))
    table(["inside.png", str(tmp_path / "set" / "inside.png")], [0, 1], file)
    for place in (file, tmp_path / "set" / "*.parquet"):
        assert numbers(open_at(place)) == [4, 4]


@pytest.mark.parametrize("labels", [[0, 10**12], [0, -1], [0, 20_000_000]])
def test_label_ids_are_not_counted_one_by_one(tmp_path, labels):
    table([encoded(1), encoded(2)], labels, tmp_path / "a.parquet")
    assert inspection.class_sizes(open_at(tmp_path / "a.parquet")) == {str(label): 1 for label in labels}


def test_archives_beside_class_folders_are_not_the_data(tmp_path):
    tree(tmp_path, {"a": [1], "b": [2]})
    (tmp_path / "original.tar").write_bytes(b"")
    (tmp_path / "labels.csv.gz").write_bytes(b"")
    assert numbers(open_at(tmp_path)) == [1, 2]


def test_a_flat_folder_has_no_labels(tmp_path):
    images = open_at(tree(tmp_path, {"": [3, 1, 2]}))
    assert numbers(images) == [1, 2, 3] and images.labels is None and images.class_names == ()


def test_folders_of_splits(tmp_path):
    tree(tmp_path / "train", {"a": [1], "b": [2]})
    tree(tmp_path / "val", {"a": [3], "b": [4, 5]})
    assert numbers(open_at(tmp_path)) == [1, 2] and numbers(open_at(tmp_path, "test")) == [3, 4, 5]
    assert numbers(open_at(tmp_path / "train", "test", test_path=str(tmp_path))) == [3, 4, 5]
    tree(tmp_path / "extra", {"a": [6]})
    with pytest.raises(ValueError, match="has a folder of training images beside extra: name the folder"):
        open_at(tmp_path)
    assert numbers(load(DataConfig(path=str(tmp_path), split="extra"), "train")) == [6]
    assert numbers(open_at(tmp_path / "train", "test", test_path=str(tmp_path / "extra"))) == [6]
    with pytest.raises(ValueError, match="has no folder 'dev', only extra, train, val"):
        load(DataConfig(path=str(tmp_path), split="dev"), "train")


def test_a_folder_without_images_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no images: it has no files"):
        open_at(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        ValueError, match=r"has no images: .*1 file left out: 1 \.txt \(notes\.txt\)\. Give a folder of images \(\.jpg"
    ):
        open_at(tmp_path)
    tree(tmp_path, {"": [1], "a": [2]})
    with pytest.raises(ValueError, match="1 images beside 1 folders of images"):
        open_at(tmp_path)


def dataset(ids, labels=None, column="img", names=("cat", "dog"), feature=None):
    columns = {column: [{"bytes": encoded(i), "path": None} for i in ids]}
    features = {column: datasets.Image()}
    if labels is not None:
        columns["fine"], features["fine"] = labels, feature or datasets.ClassLabel(names=list(names))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_parquet_finds_its_columns_and_class_names(tmp_path):
    dataset([1, 2, 3], [1, 0, 1]).to_parquet(tmp_path / "a.parquet")
    images = open_at(tmp_path / "a.parquet")
    assert numbers(images) == [1, 2, 3] and images.labels.tolist() == [1, 0, 1]
    assert images.class_names == ("cat", "dog") and open_at(tmp_path / "a.parquet", "test") is None
    assert open_at(tmp_path / "a.parquet", class_names=("x", "y")).class_names == ("x", "y")


def test_wildcards_folders_and_splits_of_parquet(tmp_path):
    for name, ids in (("train-0", [1, 2]), ("train-1", [3]), ("test-0", [4])):
        dataset(ids, [0] * len(ids)).to_parquet(tmp_path / f"{name}.parquet")
    assert numbers(open_at(tmp_path / "train-*.parquet")) == [1, 2, 3]
    assert numbers(open_at(tmp_path)) == [1, 2, 3] and numbers(open_at(tmp_path, "test")) == [4]
    held_out = str(tmp_path / "test-0.parquet")
    assert numbers(open_at(tmp_path / "train-0.parquet", "test", test_path=held_out)) == [4]


def test_arrow_saved_and_as_files(tmp_path):
    dataset([5, 6], [0, 1]).save_to_disk(tmp_path / "saved")
    assert numbers(open_at(tmp_path / "saved")) == [5, 6]
    (file,) = (tmp_path / "saved").glob("*.arrow")
    images = open_at(file)
    assert numbers(images) == [5, 6] and images.labels.tolist() == [0, 1] and images.class_names == ("cat", "dog")


def webdataset(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_tars(tmp_path):
    members = [
        (f"{i:04d}.{kind}", part) for i in (3, 4, 5) for kind, part in (("png", encoded(i)), ("cls", b"%d" % (i % 2)))
    ]
    images = open_at(webdataset(tmp_path / "shard-0.tar", members))
    assert numbers(images) == [3, 4, 5] and images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "bytes_left", [5 * 1024 + 100, 5 * 1024 + 600, 5 * 1024]
)  # in a header, in a file, between two
def test_a_tar_that_is_cut_is_an_error(tmp_path, bytes_left):
    whole = webdataset(tmp_path / "whole.tar", [(f"{i:04d}.png", encoded(i)) for i in range(9)]).read_bytes()
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "cut.tar").write_bytes(whole[:bytes_left])
    for place in (tmp_path / "cut.tar", tmp_path):
        with pytest.raises(ValueError, match="cut.tar is cut short"):
            open_at(place)


def test_labels_that_are_words_or_wrong(tmp_path):
    dataset([1, 2, 3], ["dog", "ant", "dog"], feature=datasets.Value("string")).to_parquet(tmp_path / "w.parquet")
    assert open_at(tmp_path / "w.parquet").labels is None  # "fine" is no usual name
    images = open_at(tmp_path / "w.parquet", label_column="fine")
    assert images.labels.tolist() == [1, 0, 1] and images.class_names == ("ant", "dog")
    images = open_at(tmp_path / "w.parquet", label_column="fine", class_names=("dog", "cat", "ant"))
    assert images.labels.tolist() == [0, 2, 0]
    with pytest.raises(ValueError, match=r"labels \['ant'\] are not among the class names \['dog', 'cat'\]"):
        open_at(tmp_path / "w.parquet", label_column="fine", class_names=("dog", "cat"))
    dataset([1, 2], [0.5, 1.0], feature=datasets.Value("float32")).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="labels must be whole numbers or names, got 0.5"):
        open_at(tmp_path / "f.parquet", label_column="fine")
    dataset([1, 2], [3, None], feature=datasets.Value("int64")).to_parquet(tmp_path / "n.parquet")
    with pytest.raises(ValueError, match="1 images have no label, the first is image 1"):
        open_at(tmp_path / "n.parquet", label_column="fine")
    dataset([1, 2], [1, 7], feature=datasets.Value("int64")).to_parquet(tmp_path / "i.parquet")
    assert open_at(tmp_path / "i.parquet", label_column="fine").labels.tolist() == [1, 7]
    with pytest.raises(ValueError, match="labels run to 7, but there are 2 class names"):
        open_at(tmp_path / "i.parquet", label_column="fine", class_names=("a", "b"))
    dataset([1, 2], [-1, -1], feature=datasets.Value("int64")).to_parquet(tmp_path / "m.parquet")
    assert open_at(tmp_path / "m.parquet", label_column="fine").labels is None  # a test split without labels


def test_wrong_columns_name_those_there_are(tmp_path):
    dataset([1, 2], [0, 1]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'image', only img, fine; set data.image_column"):
        open_at(tmp_path / "a.parquet", image_column="image")
    with pytest.raises(ValueError, match="no column 'coarse', only img, fine; set data.label_column"):
        open_at(tmp_path / "a.parquet", label_column="coarse")
    with pytest.raises(ValueError, match="column 'fine' holds ClassLabel.*not images"):
        open_at(tmp_path / "a.parquet", image_column="fine")
    both = dataset([1, 2], [0, 1])
    both = both.add_column("coarse", [0, 0]).cast_column("coarse", datasets.ClassLabel(names=["animal"]))
    both.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="several label columns: fine, coarse; choose one with data.label_column"):
        open_at(tmp_path / "b.parquet")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="no image column among text"):
        open_at(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (
            "hub:nobody/nothing",
            "nobody/nothing is no folder or file here, and cannot be loaded from",
        ),
        ("nobody/nothing", "nobody/nothing does not exist"),
        ("gone.parquet", "gone.parquet does not exist"),
        ("*.tar", "does not exist"),
        ("given", "images given to it in Python"),
    ],
)
def test_what_is_not_there_is_an_error(place, says):
    with pytest.raises(ValueError, match=says.replace("*", r"\*")):
        open_at(place)


def test_damaged_parquet_and_other_files_are_errors(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(ValueError, match="a.parquet cannot be read: it is damaged"):
        open_at(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match="a.csv is none of the files that can be read, .parquet"):
        open_at(tmp_path / "a.csv")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    for pattern in ("c*", "*/*.png"):
        with pytest.raises(ValueError, match="is a pattern, which is for files of many images; give the folder"):
            open_at(tmp_path / pattern)


def test_an_unreadable_image_stops_or_is_left_out(tmp_path):
    tree(tmp_path, {"a": [1, 2, 3], "b": [4, 5]})
    (tmp_path / "a" / "002.png").write_bytes(encoded(2)[:40])
    with pytest.raises(ValueError, match=r"1 unreadable image: .*a/002.png.*unreadable skip"):
        open_at(tmp_path)
    images = open_at(tmp_path, unreadable="skip")
    assert numbers(images) == [1, 3, 4, 5] and images.labels.tolist() == [0, 0, 1, 1]
    assert [error.name for error in images.skipped] == [str(tmp_path / "a" / "002.png")]
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images can be read: 5 unreadable"):
        open_at(tmp_path, unreadable="skip", size=8)
    with pytest.raises(ValueError, match="the first image sets the size, and is unreadable"):
        open_at(tmp_path)


def test_images_too_many_for_memory_are_read_when_needed(tmp_path, monkeypatch):
    tree(tmp_path, {"a": range(20), "b": range(20, 30)}, side=12)
    (tmp_path / "a" / "003.png").write_bytes(b"")
    config = {"size": 8, "unreadable": "skip"}
    whole = open_at(tmp_path, **config)
    monkeypatch.setattr(data_images, "IN_MEMORY", 0)
    lazy = open_at(tmp_path, **config)
    assert isinstance(lazy.pixels, Files) and isinstance(whole.pixels, torch.Tensor)
    assert lazy.pixels.shape == tuple(whole.pixels.shape) == (29, 3, 8, 8) and torch.equal(lazy.labels, whole.labels)
    chosen, flipped = torch.tensor([28, 0, 3, 3]), torch.tensor([True, False, True, False])
    assert torch.equal(lazy.rows(chosen, flipped), whole.rows(chosen, flipped))
    late = open_at(tmp_path, size=8)
    with pytest.raises(ValueError, match="1 unreadable image: .*a/003.png"):
        late.rows(torch.tensor([0, 3]))


def test_random_crops_follow_their_generator(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    images = open_at(tmp_path, size=16, crop="random")
    chosen = torch.zeros(6, dtype=torch.long)
    corners = np.random.default_rng(1).random((6, 2))
    crops = images.rows(chosen, None, corners)
    assert torch.equal(crops[2:], images.rows(chosen[2:], None, corners[2:]))
    assert len({tuple(c.flatten().tolist()) for c in crops}) > 3


def test_images_of_several_sizes_need_a_size(tmp_path):
    tree(tmp_path, {"": [1]}, side=8)
    (tmp_path / "002.png").write_bytes(encoded(2, 10))
    with pytest.raises(ValueError, match="10 x 10 pixels where the first image has 8 x 8; crop them all"):
        open_at(tmp_path)
    assert open_at(tmp_path, size=8).pixels.shape == (2, 3, 8, 8)
    assert open_at(tmp_path, size=8, channels=1).pixels.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crop": "random"}, "data.crop random needs data.size"),
        ({"size": -1}, "at least 0: {'size': -1}"),
        ({"crop": "random", "size": 8, "cache": True}, "random crops cannot be cached"),
    ],
)
def test_settings_that_contradict_themselves(options, says):
    with pytest.raises(ValueError, match=says):
        DataConfig(**options)
