"""Decoding: against Pillow step by step, and against arithmetic where that is simple."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_diffusion.data.decode import Decoder, crop_box, open_image, with_channels
from image_diffusion.data.source import RESIZE_FILTERS, CorruptImageError, ImageDataError

SIZES = st.integers(1, 40)


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES)
def test_the_centre_crop_is_the_largest_square_in_the_middle(width, height):
    left, upper, right, lower = crop_box(width, height, "center")
    assert right - left == lower - upper == min(width, height)
    assert 0 <= (width - right) - left <= 1  # margins alike, the odd pixel right and below
    assert 0 <= (height - lower) - upper <= 1


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, SIZES)
def test_a_crop_in_pixels(width, height, side):
    if side > min(width, height):
        with pytest.raises(ImageDataError, match=f"{width}x{height}, which is smaller than crop={side}"):
            crop_box(width, height, side)
        return
    left, upper, right, lower = crop_box(width, height, side)
    assert (right - left, lower - upper) == (side, side)
    assert abs((width - right) - left) <= 1
    assert abs((height - lower) - upper) <= 1


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, SIZES, st.sampled_from(["center", None]), st.sampled_from(RESIZE_FILTERS), st.sampled_from([1, 3]))
def test_decoding_is_what_pillow_does_step_by_step(width, height, size, crop, resize_filter, channels):
    pixels = np.random.default_rng(width * 41 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoded = Decoder(size, channels, crop, resize_filter)(buffer.getvalue())
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if crop == "center":
        side = min(width, height)
        left, upper = (width - side) // 2, (height - side) // 2
        image = image.crop((left, upper, left + side, upper + side))
    image = image.resize((size, size), Image.Resampling[resize_filter.upper()])
    expected = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, expected)


def test_shrinking_by_the_box_filter_averages_blocks(noise, encoded):
    pixels = noise(12, 12)
    blocks = pixels.reshape(4, 3, 4, 3, 3).mean((1, 3)).transpose(2, 0, 1)
    # Pillow rounds twice: after the rows and after the columns.
    assert np.abs(Decoder(4, 3, None, "box")(encoded(pixels)) - blocks).max() <= 1


@pytest.mark.parametrize("resize_filter", RESIZE_FILTERS)
def test_shrinking_does_not_alias(resize_filter, encoded):
    """A chequerboard of single pixels becomes grey; picking pixels would leave black and white."""
    board = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
    small = Decoder(8, 1, None, resize_filter)(encoded(board))
    assert np.abs(small[0, 1:-1, 1:-1].astype(int) - 127.5).max() < 4


def test_a_crop_in_pixels_is_the_middle(noise, encoded):
    pixels = noise(9, 12)
    assert np.array_equal(Decoder(4, 3, 4)(encoded(pixels)), pixels[2:6, 4:8].transpose(2, 0, 1))


def test_grey_to_rgb_and_back(noise, encoded):
    grey = noise(5, 5, 1)
    assert np.array_equal(Decoder(5, 3)(encoded(grey)), np.stack([grey] * 3))
    colour = noise(5, 5)
    luma = (colour @ np.array([0.299, 0.587, 0.114]))[None]
    assert np.abs(Decoder(5, 1)(encoded(colour)) - luma).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_lies_over_white(mode, channels, encoded):
    """Half-transparent black is half grey, hidden colours do not shine through."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 1, 3], rgba[1] = 128, (200, 200, 200, 255)
    rgba[0, 0, :3] = 90
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "P")
        image.putpalette([90, 90, 90, 0, 0, 0, 200, 200, 200])
        image.info["transparency"] = bytes([0, 128, 255])
    else:
        image = image.convert(mode)
    decoded = Decoder(2, channels)(encoded(image))
    assert np.abs(decoded - np.array([[255, 127], [200, 200]])).max() <= 1


def test_a_transparent_colour_of_an_opaque_mode_is_white(encoded):
    image = Image.fromarray(np.array([[10, 20]], np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=20)
    assert Decoder(1, 1, None)(buffer.getvalue()).shape == (1, 1, 1)
    assert np.asarray(with_channels(open_image(buffer.getvalue()), 1)).tolist() == [[10, 255]]


def test_sixteen_bits_keep_the_upper_eight(encoded):
    wide = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    image = open_image(encoded(wide))
    assert np.asarray(with_channels(image, 1)).tolist() == [[0, 0, 1, 156, 255]]


def test_floating_point_is_refused(encoded):
    with pytest.raises(ImageDataError, match="floating-point pixels"):
        Decoder(2, 1)(encoded(np.zeros((2, 2), np.float32), "TIFF"))


def test_the_exif_orientation_is_followed(noise):
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    turned = np.rot90(pixels, -1)
    assert np.array_equal(np.asarray(open_image(buffer.getvalue())), turned)


def test_files_and_arrays_are_decoded_like_bytes(tmp_path, noise, encoded):
    pixels = noise(6, 6)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    results = [Decoder(3, 3)(entry) for entry in (encoded(pixels), tmp_path / "a.png", pixels)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_broken_images_are_one_kind_of_error(tmp_path, noise, encoded):
    whole = encoded(noise(32, 32))
    photo = encoded(noise(32, 32), "JPEG")
    broken = [
        b"",
        b"text",
        whole[: len(whole) // 2],
        photo[: len(photo) // 2],
        whole[:40] + b"x" * 60,
        tmp_path / "no.png",
    ]
    for entry in broken:
        with pytest.raises(CorruptImageError):
            Decoder(8, 3)(entry)


def test_enlarging_is_told_once(noise, encoded):
    decoder = Decoder(9, 3)
    with pytest.warns(UserWarning, match="one of 8x8 to image_size=9"):
        assert decoder(encoded(noise(8, 8))).shape == (3, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder(encoded(noise(8, 8)))
        Decoder(8, 3)(encoded(noise(8, 8)))
        Decoder(7, 3)(encoded(noise(8, 8)))


def test_what_the_settings_do_not_allow_is_no_broken_image(noise, encoded):
    with pytest.raises(ImageDataError, match="8x8, where the first image is 9x9: set image_size") as size:
        Decoder(9, 3, resize=False)(encoded(noise(8, 8)))
    with pytest.raises(ImageDataError, match="has colour") as colour:
        Decoder(8, 1, strict_grey=True)(encoded(noise(8, 8)))
    assert not any(isinstance(error.value, CorruptImageError) for error in (size, colour))
