import errno
import json

import pytest
import torch
from PIL import Image

from conftest import small_files
from fluvial.data import latents
from fluvial.data.images import DataConfig, ImageSet, load
from fluvial.data.latents import Plan
from fluvial.data.manifest import is_cache
from fluvial.utils.files import json_checksum
from fluvial.utils.tensors import write_tensors

N, SHARD = 23, 5
PIXELS = torch.randint(0, 256, (N, 3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = ImageSet(PIXELS, torch.arange(N) % 3, ("a", "b", "c"))


def moments(x):
    """A posterior that is easy to tell: the image as the mean, its half as the log variance."""
    return torch.cat([x, x / 2], 1)


def plan(**settings):
    defaults = {
        "source": "here",
        "images": N,
        "autoencoder": "it",
        "hash": "abc",
        "digest": "x",
        "labels": "y",
        "stride": 1,
        "channels": 3,
    }
    defaults |= {"image_size": 6, "crop": "centre", "flip": True, "dtype": "fp32", "shard": SHARD}
    return Plan(**{**defaults, "class_names": IMAGES.class_names, **settings})


def write(folder, **options):
    return latents.write(
        options.pop("images", IMAGES),
        options.pop("moments", moments),
        options.pop("plan", plan()),
        folder,
        batch=2,
        **options,
    )


@pytest.fixture
def cache(tmp_path):
    return write(tmp_path / "cache") and tmp_path / "cache"


def signed(pixels):
    return pixels.float() / 127.5 - 1


def test_what_is_written_is_read(cache):
    found = latents.load(cache)
    chosen = torch.tensor([22, 0, 7, 7, 5])
    flipped = torch.tensor([False, True, False, True, False])
    expected = signed(PIXELS[chosen])
    expected[flipped] = expected[flipped].flip(-1)
    assert torch.equal(found.rows(chosen, flipped), moments(expected))
    assert torch.equal(found.rows(chosen), moments(signed(PIXELS[chosen])))
    assert torch.equal(found.labels, IMAGES.labels) and found.class_names == IMAGES.class_names
    assert len(found.moments) == N and found.moments.shape == (N, 6, 4, 6)
    assert sorted(p.name for p in cache.iterdir()) == [
        "manifest.json",
        *(f"shard-0000{i}.safetensors" for i in range(5)),
    ]


def test_bf16_halves_the_file_and_rounds(tmp_path, cache):
    write(tmp_path / "half", plan=plan(dtype="bf16"))
    chosen = torch.arange(N)
    got, exact = (latents.load(folder).rows(chosen) for folder in (tmp_path / "half", cache))
    assert torch.equal(got, exact.bfloat16().float())
    size = [(folder / "shard-00000.safetensors").stat().st_size for folder in (tmp_path / "half", cache)]
    assert abs(size[1] - size[0] - 2 * SHARD * 6 * 4 * 6 * 2) < 64  # two bytes less for each of both moments


def test_statistics_are_those_of_the_draws(cache):
    manifest = latents.read_manifest(cache)
    mean = signed(PIXELS).double()
    variance = mean.var((0, 2, 3), correction=0) + (mean / 2).exp().mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(manifest.mean).double(), mean.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(manifest.std).double(), variance.sqrt(), atol=1e-6, rtol=0)


def test_unlabelled_images_without_mirror_images(tmp_path):
    write(tmp_path / "c", images=ImageSet(PIXELS, None, ()), plan=plan(flip=False, class_names=()))
    found = latents.load(tmp_path / "c")
    assert found.labels is None and torch.equal(found.rows(torch.tensor([3])), moments(signed(PIXELS[3:4])))
    with pytest.raises(KeyError):
        found.rows(torch.tensor([3]), torch.tensor([True]))


class Interrupted(Exception):
    pass


def test_after_a_crash_finished_shards_are_not_made_again(tmp_path, cache):
    folder, calls = tmp_path / "again", []

    def counted(x, stop_at=None):
        calls.append(len(x))
        if stop_at is not None and sum(calls) > stop_at:
            raise Interrupted
        return moments(x)

    with pytest.raises(Interrupted):
        write(folder, moments=lambda x: counted(x, stop_at=2 * 2 * SHARD + 3))  # in the third shard
    assert (folder / "plan.json").exists() and not (folder / "manifest.json").exists()
    assert sorted(p.name for p in folder.glob("*.safetensors")) == [
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    with pytest.raises(ValueError, match="has no manifest.json; `fluvial encode` has not finished there"):
        latents.load(folder)
    calls.clear()
    write(folder, moments=counted)
    assert sum(calls) == 2 * (N - 2 * SHARD)  # each image and its mirror image
    assert (folder / "manifest.json").read_text() == (cache / "manifest.json").read_text()
    calls.clear()
    write(folder, moments=counted)
    assert calls == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_any_number_of_processes_write_the_same_cache(tmp_path, cache, order):
    results = [write(tmp_path / "many", rank=rank, world=3) for rank in order]
    assert results[:2] == [None, None] and results[2] is not None
    for file in cache.iterdir():
        assert (tmp_path / "many" / file.name).read_bytes() == file.read_bytes()


def test_verify_finds_what_is_missing_cut_or_altered(cache):
    assert latents.verify(cache) == []
    files = [cache / f"shard-0000{i}.safetensors" for i in range(4)]
    whole = files[3].read_bytes()
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-1])
    files[3].write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    wrong = latents.verify(cache)
    assert len(wrong) == 3
    for line, reason in zip(
        wrong, ("00001.*is missing", r"00002.*bytes long, it was written with", "00003.*altered"), strict=True
    ):
        assert pytest.importorskip("re").search(reason, line)
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing; .* encode again with the same command"):
        latents.load(cache)
    files[3].unlink()  # the altered one, as the error of the command says
    write(cache)
    assert latents.verify(cache) == [] and len(latents.load(cache).moments) == N


def test_another_plan_is_refused_with_both_values(cache):
    with pytest.raises(
        ValueError, match="holds other latents: image_size is 6 there and 8 here, dtype is fp32 there and bf16 here"
    ):
        write(cache, plan=plan(image_size=8, dtype="bf16"))
    write(cache, plan=plan(autoencoder="the same elsewhere", source="moved"))
    with pytest.raises(ValueError, match="digest is x there and z here"):
        write(cache, plan=plan(digest="z"))
    (cache.parent / "mine").mkdir()
    (cache.parent / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty and holds no latents"):
        write(cache.parent / "mine")


def sealed(values):
    """As `fluvial encode` would have written them."""
    values = {key: value for key, value in values.items() if key != "checksum"}
    return json.dumps({**values, "checksum": json_checksum(values)})


def test_manifests_that_cannot_be_read(cache):
    whole = json.loads((cache / "manifest.json").read_text())
    record = whole["shards"][0]
    for text, reason in (
        (json.dumps({**whole, "format": 3}), "has format 3, this version of fluvial reads 2; update fluvial"),
        (json.dumps({**whole, "format": 1}), "has format 1, this version of fluvial reads 2; encode again, to another"),
        (json.dumps({**whole, "mean": [0.0] * 3}), "is damaged .*its content is not what was written"),
        (sealed({"format": 2}), "is damaged .*required field missing"),
        (sealed({**whole, "images": 22}), "images is 22, and the shards have 23"),
        (sealed({**whole, "images": "many"}), "is damaged .*many.* @ .*images"),
        (sealed({**whole, "mean": [0.0, float("nan"), 0.0]}), "mean must be 3 finite numbers, got .*nan"),
        (sealed({**whole, "std": [1.0]}), r"std must be 3 finite numbers, got \[1.0\]"),
        (sealed({**whole, "shards": whole["shards"][::-1]}), "shards must be shard-00000.* to .*, got shard-00004"),
        (sealed({**whole, "plan": {**whole["plan"], "images": 10**12}}), "shards must be shard-00000"),
        (sealed({**whole, "plan": {**whole["plan"], "shard": 0}}), "must be at least 1: {'shard': 0}"),
        (sealed({**whole, "shards": [{**record, "file": "../../x"}, *whole["shards"][1:]]}), r"got \.\./\.\./x"),
        (json.dumps([1]), "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("{", "is damaged"),
    ):
        (cache / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            latents.load(cache)
    (cache / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is damaged"):
        latents.load(cache)
    (cache / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no manifest.json$"):
        latents.load(cache)


def read_all(folder):
    """Everything that training may read of a cache, and its statistics."""
    found = latents.load(folder)
    every = torch.arange(len(found.moments))
    return [found.rows(every), found.rows(every, torch.ones(len(every), dtype=torch.bool)), found.labels], (
        found.class_names,
        found.digest,
        found.moments.manifest,
    )


@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.safetensors"])
def test_no_flipped_bit_is_read(tmp_path, name):
    write(tmp_path / "c", plan=plan(dtype="bf16", shard=12))
    tensors, rest = read_all(tmp_path / "c")
    whole, refused = (tmp_path / "c" / name).read_bytes(), 0
    bits = range(0, 8 * len(whole), 37 if len(whole) < 2000 else 211)
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "c" / name).write_bytes(flipped)
        try:
            found, told = read_all(tmp_path / "c")
        except ValueError as error:
            refused += 1
            assert name in str(error)
        else:  # a space in the JSON for another
            assert told == rest and all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))
    assert refused == len(bits) if "shard" in name else refused > 0.9 * len(bits)


def test_shards_that_were_exchanged_renamed_or_added_are_named(tmp_path, cache):
    files = [cache / f"shard-0000{i}.safetensors" for i in range(5)]
    a, b = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(b)
    files[1].write_bytes(a)
    with pytest.raises(ValueError, match="shard-00000.safetensors is another shard, or was altered"):
        latents.load(cache)
    files[0].write_bytes(a)
    write(tmp_path / "other", images=ImageSet(255 - PIXELS, IMAGES.labels, IMAGES.class_names))
    files[1].write_bytes((tmp_path / "other" / files[1].name).read_bytes())  # of other images, and the same labels
    with pytest.raises(ValueError, match="shard-00001.safetensors is another shard"):
        latents.load(cache)
    files[1].write_bytes(b)
    files[4].rename(cache / "shard-00005.safetensors")
    wrong = ["shard-00004.safetensors is missing", "shard-00005.safetensors is not of this cache"]
    assert latents.verify(cache) == wrong
    with pytest.raises(ValueError, match="; ".join(wrong)):
        latents.load(cache)


def test_an_altered_image_is_refused_when_it_is_read(cache):
    file = cache / "shard-00003.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1  # the mirror image of the last
    file.write_bytes(whole)
    found, none, all_flipped = latents.load(cache), torch.zeros(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool)
    found.rows(torch.arange(N), none)
    found.rows(torch.arange(19), all_flipped[:19])
    with pytest.raises(ValueError, match="shard-00003.safetensors was altered: moments_flip of its image 4"):
        found.rows(torch.arange(N), all_flipped)


def test_moments_that_are_not_finite_are_not_stored(tmp_path):
    def odd(x):
        found = moments(x)
        found[(x == signed(PIXELS[7])).flatten(1).all(1), 0, 0, 0] = torch.inf
        return found

    with pytest.raises(ValueError, match="gives moments that are not finite for image 7"):
        write(tmp_path / "c", moments=odd)
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 1


def test_a_damaged_record_costs_its_shard(tmp_path, cache):
    with pytest.raises(Interrupted):
        write(tmp_path / "c", moments=interrupting(4 * SHARD + 3))
    record = tmp_path / "c" / "shard-00000.json"
    for damage in ({"images": "many"}, {"sums": [[0.0] * 3] * 2}, {"file": "shard-00001.safetensors"}, None):
        whole = json.loads(record.read_text())
        text = "[" if damage is None else json.dumps({**whole, **damage})
        record.write_text(sealed(json.loads(text)) if damage and "sums" not in damage else text)
        with pytest.raises(Interrupted):
            write(tmp_path / "c", moments=interrupting(2 * SHARD + 1))
    write(tmp_path / "c")
    for file in cache.iterdir():
        assert (tmp_path / "c" / file.name).read_bytes() == file.read_bytes()


def interrupting(after):
    """Moments, until so many images have been seen."""
    seen = []

    def interrupted(x):
        seen.append(len(x))
        if sum(seen) > after:
            raise Interrupted
        return moments(x)

    return interrupted


def test_a_full_disk_keeps_what_was_finished(tmp_path, monkeypatch):
    def full(path, *rest):
        if "00002" in path.name:
            path.write_bytes(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_tensors(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="write .*00002.*No space left.*are kept"):
        patch.setattr(latents, "write_tensors", full)
        write(tmp_path / "c")
    assert not list((tmp_path / "c").glob(".*"))
    assert write(tmp_path / "c").images == N and latents.verify(tmp_path / "c") == []
    assert not list((tmp_path / "c").glob(".*"))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "c").iterdir()}
    assert len(modes) == 1  # whoever may read the manifest may read the shards


def test_only_what_encode_wrote_is_a_cache(cache, tmp_path, monkeypatch):
    assert is_cache(str(cache)) and not is_cache(str(tmp_path))
    monkeypatch.chdir(cache)
    assert is_cache(".") and not is_cache("")
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "my web app"}))
    assert not is_cache(str(tmp_path))


def test_a_file_that_may_grow_no_further_is_an_error_too(tmp_path):
    with small_files(3000), pytest.raises(ValueError, match="cannot write .*shard-00000"):
        write(tmp_path / "c")
    assert write(tmp_path / "c").images == N


def test_unreadable_images_are_left_out_and_named(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    for i in (0, 1, 5):  # the whole first shard, and one of the third
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"")
    images = load(DataConfig(path=str(tmp_path / "photos"), size=4), "train", scan=False)
    settings = {"images": images, "plan": plan(images=8, shard=2, class_names=())}
    with pytest.raises(ValueError, match="2 unreadable images: .*0.png.*unreadable skip"):
        write(tmp_path / "c", **settings)
    manifest = write(tmp_path / "c", **settings, skip_unreadable=True)
    assert manifest.images == 5 and [s.images for s in manifest.shards] == [0, 2, 1, 2]
    assert [line.split(":")[0].rpartition("/")[2] for line in manifest.skipped] == ["0.png", "1.png", "5.png"]
    red = latents.load(tmp_path / "c").rows(torch.arange(5))[:, 0, 0, 0]
    assert ((red + 1) * 127.5).round().tolist() == [2, 3, 4, 6, 7]
    assert latents.verify(tmp_path / "c") == []
