import io

import numpy as np
import pytest
import torch
from PIL import Image
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
