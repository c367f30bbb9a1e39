"""Edits of the studio without a browser: what is read, what is refused, and what the command and Python draw again."""

import asyncio
import shlex
import struct
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import fluvial
from fluvial import cli, recipes
from fluvial.studio import editing as edits
from fluvial.studio.editing import Editing, abilities, as_command, as_python, fitted, from_query, to_query
from fluvial.studio.given import (
    MOST_BYTES,
    MOST_REQUEST,
    Given,
    UploadLimit,
    check_header,
    given,
    image_file,
    mask_file,
    mask_of,
    uploaded,
)
from fluvial.studio.work import Job, Stopped


@pytest.fixture(scope="module")
def samplers(tmp_path_factory):
    """A sampler of each method, trained for three steps."""
    root = tmp_path_factory.mktemp("editing")
    found = {}
    for name in ("sit", "arflow", "flowar"):
        run = recipes.smoke(recipes.get(f"digits-{name}"))
        train = replace(run.train, steps=3, batch=10, validate_every=0, sample_every=0)
        found[name] = fluvial.train(replace(run, train=train), root / name, device="cpu")
    return found


def job():
    return Job("test", lambda job: None)


def png(size, **options):
    content = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(content, "png", **options)
    return content.getvalue()


def huge_png(width, height):
    """A PNG whose header tells of these sides, and which holds nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


CASES = [
    ("sit", {"kind": "inpaint", "label": "3", "copies": 3, "seed": 5}),
    ("sit", {"kind": "inpaint", "label": "none", "steps": 6, "solver": "euler", "weight": 1.0}),
    ("sit", {"kind": "redraw", "label": "7", "at": 0.35, "weight": 2.5}),
    ("sit", {"kind": "invert", "label": "2", "copies": 2}),
    ("flowar", {"kind": "vary", "label": "4", "keep": 2, "copies": 12}),
    ("flowar", {"kind": "grow", "label": "4", "copies": 2, "agree": True}),
    ("flowar", {"kind": "inpaint", "label": "4", "copies": 2}),
    ("arflow", {"kind": "context", "label": "none", "copies": 5}),
    ("arflow", {"kind": "context", "label": "5", "copies": 3, "steps": 4}),
]


@pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_the_command_and_python_draw_the_picture_again(samplers, name, settings, tmp_path, monkeypatch):
    sampler = samplers[name]
    editing = fitted(Editing(run=name, **settings), abilities(sampler))
    images = given(sampler, editing, [("one.png", png((20, 14)))], job())
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:] = True
    done = edits.draw(sampler, editing, images, mask if editing.kind == "inpaint" else None, job())
    several = editing.kind == "context"
    monkeypatch.chdir(tmp_path)
    (tmp_path / ("examples.npz" if several else "image.png")).write_bytes(image_file(images, several=several))
    (tmp_path / "mask.png").write_bytes(mask_file(mask))
    words = shlex.split(as_command(editing, sampler.folder.path))
    assert words[0] == "fluvial" and cli.main(words[1:]) == 0
    assert (tmp_path / "edit" / "grid.png").read_bytes() == done.png
    program = as_python(editing, sampler.folder.path, images.shape[1], out="again")
    exec(program, {})
    assert (tmp_path / "again" / "grid.png").read_bytes() == done.png
    if editing.kind == "inpaint":
        assert (done.samples.images == images)[
            ..., torch.from_numpy(~mask)
        ].all() and "known pixels are equal" in done.told


def test_kinds_that_a_method_cannot_do_are_refused_with_the_reason(samplers):
    refused = {name: abilities(sampler).refused for name, sampler in samplers.items()}
    assert {name: set(found) for name, found in refused.items()} == {
        "sit": {"vary", "grow", "context"},
        "arflow": {"vary", "grow"},
        "flowar": {"invert", "context"},
    }
    for name, sampler in samplers.items():  # and the library refuses these alone
        for kind in edits.KINDS:
            editing = fitted(Editing(kind=kind, copies=1, label="1"), abilities(sampler))
            images = given(sampler, editing, [], job())
            mask = np.eye(8, dtype=bool) if kind == "inpaint" else None
            if kind in refused[name]:
                with pytest.raises(ValueError):
                    edits.draw(sampler, editing, images, mask, job())
            else:
                assert edits.draw(sampler, editing, images, mask, job()).png.startswith(b"\x89PNG")


def test_a_file_is_read_as_the_command_reads_it(samplers, tmp_path):
    from fluvial.cli.edit import _read

    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    content = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (30, 20), np.uint16)).save(content, "png")
    for name, made in (("turned.png", png((30, 20), exif=exif)), ("16.png", content.getvalue())):
        (tmp_path / name).write_bytes(made)
        assert torch.equal(uploaded(made, name, samplers["sit"], 8)[0], _read(tmp_path / name, 1, 8))


def test_what_is_no_image_or_too_large_is_refused(samplers):
    sampler, whole = samplers["sit"], png((40, 40))
    for content, told in (
        (b"these are words", "Pillow cannot identify it as an image"),
        (b"", "it is empty"),
        (whole[: len(whole) // 2], "cannot be decoded"),
        (huge_png(20_000, 10_000), "20,000 x 10,000 pixels, and at most 50 million are taken"),
        (huge_png(8_000, 7_000), "8,000 x 7,000 pixels"),
        (huge_png(2**31 - 1, 2**31 - 1), "at most 50 million"),
        (b"BM" + bytes(MOST_BYTES), "20 MB, and may have 20"),
    ):
        with pytest.raises(ValueError, match=told) as refused:
            uploaded(content, "a name.png", sampler, 8)
        assert str(refused.value).startswith("a name.png")


def test_other_formats_are_measured_by_their_headers():
    content = BytesIO()
    Image.new("1", (9_000, 6_000)).save(content, "tiff", compression="group4")
    with pytest.raises(ValueError, match="9,000 x 6,000 pixels"):
        check_header(content.getvalue(), "large.tif")
    content = BytesIO()
    Image.new("1", (20_000, 10_000)).save(content, "tiff", compression="group4")
    assert len(content.getvalue()) < 10**5
    with pytest.raises(ValueError, match="at most 50 million"):
        check_header(content.getvalue(), "larger.tif")


def test_masks_are_lengths_of_runs():
    mask = np.random.default_rng(0).random((8, 8)) > 0.5
    flat, runs, value = mask.ravel(), [0], False
    for painted in flat:
        if painted != value:
            runs.append(0)
            value = painted
        runs[-1] += 1
    assert (mask_of(runs, 8) == mask).all()
    for wrong in (None, "64", [63], [65], [-1, 65], [64.0], [1] * 65 + [-1], {"0": 64}):
        assert mask_of(wrong, 8) is None
    written = np.asarray(Image.open(BytesIO(mask_file(mask))))
    assert ((written >= 128) == mask).all()


def test_a_link_has_the_settings():
    editing = Editing(run="a", kind="grow", label="cat", agree=True, steps=7, weight=1.25, sample=3, side=4, copies=2)
    assert from_query(to_query(editing)) == editing
    assert (
        from_query({"kind": "paint", "copies": "17", "at": "nan", "steps": "0", "weight": "inf", "seed": "-1"})
        == Editing()
    )
    assert from_query({"keep": "two", "elsewhere": "1", "sample": f"{2**40}"}) == Editing()


def test_an_edit_ends_when_it_is_stopped(samplers):
    for name, sampler in samplers.items():
        editing = fitted(Editing(run=name, kind="redraw", steps=1000), abilities(sampler))
        images = given(sampler, editing, [], job())
        stopped = job()
        stopped.stop()
        with pytest.raises(Stopped):
            edits.draw(sampler, editing, images, None, stopped)
        with pytest.raises(Stopped):
            given(sampler, editing, [], stopped)
        assert not any(part._forward_pre_hooks for part in sampler.model.modules())


def test_images_are_made_again_only_when_they_change(samplers):
    kept, sampler = Given(), samplers["flowar"]
    editing = fitted(Editing(kind="vary"), abilities(sampler))
    first = kept.images(sampler, editing, [], job())
    assert kept.images(sampler, replace(editing, seed=4, kind="redraw"), [], job()) is first
    for changed in ({"sample": 1}, {"of": "5"}, {"kind": "grow"}):
        assert kept.images(sampler, replace(editing, **changed), [], job()) is not first
    assert kept.images(sampler, replace(editing, kind="grow"), [], job()).shape[-1] == editing.side == 4


def test_uploads_are_refused_before_they_are_read():
    sent, passed = [], []

    async def inner(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        sent.append(message)

    def ask(path, *headers):
        scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
        asyncio.run(UploadLimit(inner)(scope, None, send))

    upload = "/_nicegui/client/a/upload/1"
    ask(upload, (b"content-length", b"%d" % (MOST_REQUEST + 1)))
    ask(upload)
    assert [message.get("status") for message in sent] == [413, None] * 2 and not passed
    ask(upload, (b"content-length", b"1000"))
    ask("/other")
    assert passed == [upload, "/other"]
