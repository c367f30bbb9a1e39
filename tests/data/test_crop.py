import io
import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch.nn import functional as F

from fluvial.data import crop
from fluvial.data.crop import UnreadableImage, centre_crop, decode, kind, random_crop, square, to_array, upright


def noise(width, height):
    """Far enough from 0 and 255 that no filter overshoots."""
    return Image.fromarray(np.random.default_rng(0).integers(80, 176, (height, width, 3), dtype=np.uint8))


def resized(image, height, width, mode):
    x = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float()
    return F.interpolate(x, (height, width), mode=mode, antialias=True, align_corners=False)[0].clamp(0, 255).numpy()


def test_a_large_image_is_halved_with_a_box_until_it_fits():
    image = noise(64, 64)
    means = np.asarray(image, dtype=float)
    for _ in range(2):  # 64 -> 32 -> 16, each rounded to 8 bits
        means = np.floor(means.reshape(len(means) // 2, 2, -1, 2, 3).mean((1, 3)) + 0.5)
    assert np.abs(np.asarray(centre_crop(image, 16)) - means).max() <= 2  # Pillow rounds after each direction


def test_what_is_not_twice_the_size_is_resized_bicubically():
    expected = resized(image := noise(75, 50), 32, 48, "bicubic")
    got = to_array(centre_crop(image, 32)).astype(float)
    assert got.shape == (3, 32, 32) and np.abs(got - expected[:, :, 8:40]).max() <= 1  # to the rounding of 8 bits


def test_a_centre_crop_is_the_middle():
    columns = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (32, 1)))
    assert np.asarray(centre_crop(columns, 32))[0].tolist() == list(range(14, 46))
    assert np.asarray(centre_crop(columns.transpose(Image.Transpose.TRANSPOSE), 32))[:, 0].tolist() == list(
        range(14, 46)
    )


@pytest.mark.parametrize(("corner", "left", "top"), [((0.0, 0.0), 0, 0), ((0.5, 0.0), 11, 0), ((0.999, 0.999), 22, 4)])
def test_a_random_crop_starts_at_its_corner(corner, left, top):
    expected = resized(image := noise(135, 90), 36, 54, "bilinear")  # 36 = 1.125 x 32
    got = to_array(random_crop(image, 32, corner)).astype(float)
    assert np.abs(got - expected[:, top : top + 32, left : left + 32]).max() <= 1


def test_padding_keeps_every_pixel_in_the_middle_of_black():
    image = noise(6, 4)
    padded = np.asarray(square(image, 10, "pad"))
    assert (
        np.array_equal(padded[3:7, 2:8], np.asarray(image))
        and padded.astype(int).sum() == np.asarray(image).astype(int).sum()
    )
    with pytest.raises(UnreadableImage, match="12 x 4 pixels do not fit into 10 x 10"):
        square(noise(12, 4), 10, "pad")


def saved(image, name="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def read(source, channels=3):
    return decode(source, "it", lambda image: (kind(image), to_array(upright(image, channels)).astype(int)))


def test_exif_turns_the_image():
    image = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise by a quarter
    source = saved(image, exif=exif)
    assert decode(source, "it", crop.is_rotated) and not decode(saved(image), "it", crop.is_rotated)
    assert np.array_equal(read(source)[1], np.rot90(np.moveaxis(np.asarray(image), -1, 0), -1, (1, 2)))


def test_transparent_pixels_lie_on_white():
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    pixels[0, 1] = (255, 0, 0, 51)  # a fifth of red
    found, array = read(saved(Image.fromarray(pixels)))
    assert found == "alpha"
    assert array[:, 0, 0].tolist() == [255, 0, 0] and array[:, 0, 1].tolist() == [255, 204, 204]
    assert array[:, 1].tolist() == [[255, 255]] * 3


def test_palettes_grey_and_cmyk_become_rgb():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    rgb = np.moveaxis(np.asarray(image).astype(int), -1, 0)
    found, array = read(saved(image.convert("P", palette=Image.Palette.ADAPTIVE)))
    assert found == "palette" and np.array_equal(array, rgb)
    found, array = read(saved(image.convert("CMYK"), "TIFF"))
    assert found == "CMYK" and np.array_equal(array, rgb)
    grey = Image.fromarray(np.array([[7, 200]], dtype=np.uint8))
    found, array = read(saved(grey))
    assert found == "grey" and array.tolist() == [[[7, 200]]] * 3
    assert read(saved(grey), channels=1)[1].tolist() == [[[7, 200]]]
    deep = Image.fromarray(np.array([[0x07FF, 0xC801]], dtype=np.uint16))
    found, array = read(saved(deep))
    assert found == "grey" and array[0].tolist() == [[7, 200]]  # the high byte of sixteen bits


def test_what_cannot_be_used_is_named_with_the_reason():
    whole = saved(noise(64, 64), "JPEG")
    for source, reason in (
        (whole[: len(whole) // 2], "truncated"),
        (b"not an image", "cannot identify"),
        (b"", "cannot"),
    ):
        with pytest.raises(UnreadableImage, match=reason) as error:
            read(source)
        assert error.value.name == "it"
    with pytest.raises(UnreadableImage, match="it: 32-bit pixels"):
        read(saved(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"))
    with pytest.raises(UnreadableImage, match="1 x 1 pixels are too few for 256 x 256"):
        decode(saved(noise(1, 1)), "it", lambda image: square(image, 256, "centre"))


def test_a_photo_of_forty_megapixels_is_read():
    source = saved(Image.new("RGB", (8000, 5000), (10, 20, 30)), "JPEG")
    array = decode(source, "it", lambda image: to_array(square(upright(image, 3), 64, "centre")))
    assert array.shape == (3, 64, 64) and np.abs(array.astype(int).mean((1, 2)) - (10, 20, 30)).max() <= 2


def test_odd_exif_does_not_keep_an_image_from_being_turned():
    """Tags whose values have not the type of the tag: Pillow reads them, and cannot write them again."""
    image = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112], exif[0x0100] = 6, 5
    whole = saved(image, "PNG", exif=exif)
    at = whole.index(b"eXIf") + 4
    tiff = bytearray(exif.tobytes()[6:] if exif.tobytes()[:4] == b"Exif" else exif.tobytes())
    entry = tiff.index((0x0100).to_bytes(2, "little" if tiff[:2] == b"II" else "big"), 8)
    order = "little" if tiff[:2] == b"II" else "big"
    tiff[entry + 2 : entry + 4] = (9).to_bytes(2, order)  # of type signed long,
    tiff[entry + 8 : entry + 12] = (-5).to_bytes(4, order, signed=True)  # below zero
    length = int.from_bytes(whole[at - 8 : at - 4])
    chunk = b"eXIf" + bytes(tiff)
    source = whole[: at - 8] + len(tiff).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + whole[at + length + 4 :]
    with pytest.raises(Exception), Image.open(io.BytesIO(source)) as opened:  # noqa: B017 - whatever Pillow raises
        ImageOps.exif_transpose(opened)
    assert np.array_equal(read(source)[1], np.rot90(np.moveaxis(np.asarray(image), -1, 0), -1, (1, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
def test_every_orientation_is_as_pillow_turns_it(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = saved(noise(6, 4), form, exif=exif)
    with Image.open(io.BytesIO(source)) as opened:
        expected = np.moveaxis(np.asarray(ImageOps.exif_transpose(opened)), -1, 0)
    assert np.array_equal(read(source)[1], expected)


def test_a_png_is_read_without_a_text_too_large_for_pillow():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    text.add_text("note", "b" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    source = saved(image := noise(6, 4), pnginfo=text, exif=exif)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"), Image.open(io.BytesIO(source)) as opened:
        opened.load()
    assert np.array_equal(read(source)[1], np.moveaxis(np.asarray(image)[::-1, ::-1], -1, 0))
    with pytest.raises(UnreadableImage, match="truncated|broken"):
        read(source[: source.index(b"IDAT") + 20])


MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa", "La")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", [*MODES, "I;16", "I;16B"])
def test_every_mode_of_pixels_becomes_grey_or_rgb(mode, channels):
    array = to_array(upright(Image.new(mode, (5, 3)), channels))
    assert array.shape == (channels, 3, 5) and array.dtype == np.uint8


def test_lab_becomes_the_same_grey_as_its_rgb():
    lab = Image.merge("LAB", [Image.new("L", (5, 3), value) for value in (140, 150, 110)])
    assert np.array_equal(to_array(upright(lab, 1))[0], np.asarray(lab.convert("RGB").convert("L")))
    assert 100 < to_array(upright(lab, 1)).mean() < 160


def test_sixteen_bits_of_a_pgm_are_grey():
    source = b"P5 2 1 65535\n" + np.array([0x07FF, 0xC801], ">u2").tobytes()
    found, array = read(source, channels=1)
    assert found == "grey" and array.tolist() == [[[7, 200]]]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    array = read(saved(frames[0], form, save_all=True, append_images=frames[1:]))[1]
    assert array.shape == (3, 8, 8) and array.max() < 8


def test_an_image_beyond_pillows_limit_says_how_large_it_is():
    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = (30_000).to_bytes(4) + (40_000).to_bytes(4) + bytes((8, 2, 0, 0, 0))
    source = crop.PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableImage, match="it: .*1200000000 pixels.*exceeds limit.*make the image smaller"):
        read(source)


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("pipe", "is a pipe, not a file"),
        ("zero", "is a device, not a file"),
        ("gone", "is a link to .*nowhere, which is not there"),
        ("absent", "is not there"),
        ("empty", r"cannot be decoded \(it is empty\)"),
        ("folder", "is a folder, not a file"),
    ):
        with pytest.raises(UnreadableImage, match=f"it: {reason}"):
            read(tmp_path / f"{name}.png")
    with pytest.raises(UnreadableImage, match="is a device"):
        crop.content(tmp_path / "zero.png")


def test_a_file_that_shrinks_while_it_is_read_is_unreadable(tmp_path):
    """Pillow maps a file that it opens itself, and what is gone from it then ends the process."""
    file = tmp_path / "a.bmp"
    image = Image.new("L", (2000, 2000), 7)
    image.save(file)

    def late(opened):
        os.truncate(file, 100)
        return np.asarray(opened).mean()

    assert decode(file, "it", late) == 7
    with pytest.raises(UnreadableImage, match="it: cannot be decoded"):
        read(file)


def test_a_script_that_is_called_an_image_is_not_run():
    source = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnreadableImage, match="cannot identify it as an image"):
        read(source)


def numbers(*shape):
    return np.random.default_rng(0).integers(0, 256, shape)


def test_numbers_become_the_image_that_they_are():
    grey, colour = numbers(5, 7), numbers(5, 7, 3)
    for array in (grey, grey[..., None], grey[None], grey.astype(np.uint8), grey[None].astype(np.int16)):
        assert np.array_equal(read(array, 1)[1][0], grey)
    for array in (colour, np.moveaxis(colour, -1, 0), colour.astype(np.uint8)):
        assert np.array_equal(read(array)[1], np.moveaxis(colour, -1, 0))
    clear = np.concatenate([colour, np.full((5, 7, 1), 255)], -1)
    assert np.array_equal(read(clear)[1], np.moveaxis(colour, -1, 0))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4)), "type float64; wanted whole numbers"),
        (numbers(4, 4) + 1 - numbers(4, 4).min() + 255, "numbers from 256 to"),
        (numbers(4, 4) - 300, "wanted whole numbers in 0 ... 255"),
        (numbers(16), r"of shape \(16,\)"),
        (numbers(5, 7, 2), r"of shape \(5, 7, 2\)"),
        (numbers(2, 5, 7, 3), r"of shape \(2, 5, 7, 3\)"),
        (numbers(0, 7), r"of shape \(0, 7\)"),
        (np.array([[1, None]]), "type object"),
    ],
)
def test_numbers_that_are_no_image_say_why(array, reason):
    with pytest.raises(UnreadableImage, match=reason):
        read(array)
