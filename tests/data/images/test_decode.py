"""Images of every kind are decoded to the pixels that a person sees; others are refused."""

from __future__ import annotations

import io
import re
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from robustkd.core.types import INTERPOLATIONS
from robustkd.data.images.decode import MAX_PIXELS, UndecodableError, decode, dimensions
from tests.data.images.image_files import picture, png


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def rgb(pixels: np.ndarray) -> np.ndarray:
    """Bytes as the decoder returns them."""
    return pixels.transpose(2, 0, 1)


PIXELS = picture(0, 12)
PLAIN = Image.fromarray(PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_an_image_of_the_right_size_is_returned_byte_for_byte(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(encoded(PLAIN, kind, **options), size=12, channels=3)
    assert found.flags.c_contiguous
    assert np.array_equal(found, rgb(PIXELS))


def test_grey_is_equal_in_all_channels_and_exact_in_one():
    grey = Image.fromarray(PIXELS[:, :, 0])
    assert np.array_equal(decode(encoded(grey), size=12, channels=1)[0], PIXELS[:, :, 0])
    assert (decode(encoded(grey), size=12, channels=3) == PIXELS[:, :, 0]).all()


def test_colour_becomes_luminance():
    weights = np.array([0.299, 0.587, 0.114])
    found = decode(encoded(PLAIN), size=12, channels=1)[0]
    assert np.abs(found - PIXELS @ weights).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(mode):
    alpha = picture(1, 12)[:, :, 0]
    alpha[:6], alpha[6] = 255, 0
    image = PLAIN.convert(mode)
    image.putalpha(Image.fromarray(alpha))
    opaque = np.asarray(image.convert("RGB")).astype(float)
    share = alpha[:, :, None] / 255
    found = decode(encoded(image), size=12, channels=3).transpose(1, 2, 0)
    assert np.abs(found - (opaque * share + 255 * (1 - share))).max() <= 1
    assert np.array_equal(found[:6], opaque[:6])
    assert (found[6] == 255).all()


def test_palettes_are_resolved_and_transparent_entries_become_white():
    image = PLAIN.quantize(16)
    expected = np.asarray(image.convert("RGB"))
    for kind in ("PNG", "GIF"):
        assert np.array_equal(decode(encoded(image, kind), size=12, channels=3), rgb(expected))
    shown = decode(encoded(image, transparency=3), size=12, channels=3).transpose(1, 2, 0)
    hidden = np.asarray(image) == 3
    assert hidden.any()
    assert (shown[hidden] == 255).all()
    assert np.array_equal(shown[~hidden], expected[~hidden])


def test_one_bit_is_black_and_white():
    bits = PIXELS[:, :, 0] > 127
    found = decode(encoded(Image.fromarray(bits)), size=12, channels=1)[0]
    assert np.array_equal(found, np.where(bits, 255, 0))


WORDS = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)


def pgm(words: np.ndarray) -> bytes:
    return b"P5 12 12 65535\n" + words.astype(">u2").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_is_scaled_and_not_clipped(kind, channels):
    image = Image.fromarray(WORDS)
    stream = io.BytesIO(pgm(WORDS)) if kind == "PGM" else encoded(image, kind)
    found = decode(stream, size=12, channels=channels)
    assert np.array_equal(found[0], np.round(WORDS / 65535 * 255))
    assert (found == found[0]).all()


def test_colour_of_16_bits_is_scaled_and_not_clipped():
    words = np.random.default_rng(0).integers(0, 65536, (12, 12, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in words)
    found = decode(io.BytesIO(png(12, 12, rows, bits=16)), size=12, channels=3)
    assert np.abs(found.transpose(1, 2, 0) - words / 65535 * 255).max() <= 1


def test_cmyk_is_converted_as_it_is_printed():
    stream = encoded(Image.new("CMYK", (12, 12), (255, 0, 0, 0)), "JPEG", quality=100)
    red, green, blue = decode(stream, size=12, channels=3).reshape(3, -1).mean(1)
    assert red < 5
    assert min(green, blue) > 250


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_of_the_camera_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(PLAIN, exif=exif), size=12, channels=3)
    assert np.array_equal(found, rgb(UPRIGHT[orientation](PIXELS)))


def test_the_centred_square_is_kept():
    wide = np.zeros((12, 30, 3), dtype=np.uint8)
    wide[:, 9:21] = PIXELS
    for pixels in (wide, wide.swapaxes(0, 1)):
        expected = PIXELS if pixels is wide else PIXELS.swapaxes(0, 1)
        found = decode(encoded(Image.fromarray(pixels)), size=12, channels=3)
        assert np.array_equal(found, rgb(expected))


def test_a_share_of_the_square_is_kept():
    image = Image.fromarray(picture(0, 16))
    found = decode(encoded(image), size=12, channels=3, crop=0.75)
    assert np.array_equal(found, rgb(picture(0, 16)[2:14, 2:14]))


@pytest.mark.parametrize("height", [30, 46])
def test_resampling_is_torchvision_s(height):
    image = Image.fromarray(picture(3, 46)[:height, :30])
    preprocessing = v2.Compose([v2.Resize(15), v2.CenterCrop(15), v2.PILToTensor()])
    found = decode(encoded(image), size=15, channels=3).astype(int)
    # What is cropped away first does not blur into the border; and one of two passes is rounded.
    difference = np.abs(found - preprocessing(image).numpy())[:, 1:-1]
    assert difference.max() <= (height > 30)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_crops_and_filters_are_those_of_timm(mode, interpolation):
    image = Image.fromarray(picture(3, 96)[:64])
    theirs = create_transform(
        input_size=(3, 24, 24),
        crop_pct=0.75,
        crop_mode=mode,
        interpolation=interpolation,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        is_training=False,
    )
    resize = "squash" if mode == "squash" else "centred-square"
    found = decode(
        encoded(image), size=24, channels=3, crop=0.75, resize=resize, interpolation=interpolation
    )
    # As above; filters of several pixels reach further into what is cropped away.
    difference = np.abs(found.astype(int) - theirs(image).numpy())[:, 3:-3, 3:-3]
    assert difference.max() < 1.1


def test_squashing_keeps_the_same_share_of_both_sides():
    image = Image.fromarray(picture(0, 32)[:16])
    found = decode(encoded(image), size=16, channels=3, crop=0.5, resize="squash")
    expected = image.resize((16, 16), Image.Resampling.BILINEAR, box=(8, 4, 24, 12))
    assert np.array_equal(found, rgb(np.asarray(expected)))


def test_dimensions_are_read_from_the_header():
    assert dimensions(encoded(PLAIN.resize((5, 9)))) == (5, 9)


def refused(content: bytes, message: str) -> None:
    for call in (
        lambda stream: decode(stream, size=12, channels=3),
        dimensions,
    ):
        with pytest.raises(UndecodableError, match=f"^{message}"):
            call(io.BytesIO(content))


def test_files_that_are_not_images_are_refused():
    for content in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        refused(content, "not an image of a known format$")


def test_a_bomb_is_refused_by_its_header():
    side = 50_000
    content = png(side, side, bytes(1000))
    tracemalloc.start()
    refused(content, f"(50000x50000: )?more than {MAX_PIXELS:,} pixels$")
    below = png(9_000, 9_000, bytes(1000))
    refused(below, re.escape(f"9000x9000: more than {MAX_PIXELS:,} pixels"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


def test_a_long_strip_takes_no_more_memory_than_its_pixels():
    strip = Image.new("L", (1, 1 << 20), 7)
    found = decode(encoded(strip), size=32, channels=3)
    assert (found == 7).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_an_image_cut_off_anywhere_is_refused_or_whole(kind):
    image = PLAIN.quantize(8) if kind == "GIF" else PLAIN
    content = encoded(image, kind).getvalue()
    whole = decode(io.BytesIO(content), size=12, channels=3)
    reasons = []
    for length in range(0, len(content), max(1, len(content) // 60)):
        try:
            found = decode(io.BytesIO(content[:length]), size=12, channels=3)
        except UndecodableError as error:
            reasons.append(str(error))
        else:
            assert np.array_equal(found, whole)
    assert len(reasons) > 10
    assert all(reason and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_mutated_images_raise_only_our_errors(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = PLAIN.quantize(8) if kind == "GIF" else PLAIN
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    content = np.frombuffer(encoded(image, kind, **options).getvalue(), dtype=np.uint8)
    noise = np.random.default_rng(0)
    for _ in range(150):
        mutated = content.copy()
        mutated[noise.integers(len(mutated), size=4)] = noise.integers(256, size=4)
        try:
            found = decode(io.BytesIO(mutated.tobytes()), size=12, channels=3)
        except UndecodableError:
            continue
        assert found.shape == (3, 12, 12)


def test_values_of_unknown_range_are_refused():
    floats = Image.fromarray(np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(UndecodableError, match=r"^pixels are floats, whose range is unknown$"):
        decode(encoded(floats, "TIFF"), size=4, channels=1)
    large = Image.fromarray(np.array([[0, 70_000]], dtype=np.int32))
    message = r"^pixels reach from 0 to 70000, beyond 16 bits$"
    with pytest.raises(UndecodableError, match=message):
        decode(encoded(large, "TIFF"), size=1, channels=1)


def test_torch_can_take_the_bytes():
    assert torch.from_numpy(decode(encoded(PLAIN), size=12, channels=3)).is_contiguous()
