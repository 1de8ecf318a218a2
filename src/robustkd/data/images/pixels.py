"""Decoding of images by Pillow within limits, for images that may be attacks.

This file imports nothing of the package, so that a child process can run it without torch.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

Channels: TypeAlias = Literal[1, 3]
Stream: TypeAlias = io.BufferedReader | io.BytesIO

MAX_BYTES = 1 << 26
"""Largest file in bytes."""
MAX_PIXELS = 1 << 26
"""Largest number of pixels according to the header (8,192 x 8,192)."""
MAX_SAMPLES = 3 * MAX_PIXELS
"""Largest number of pixels times channels; values of 16 bits count twice."""
MAX_SCANS = 100
"""Largest number of scans of a JPEG, each of which processes the whole image; 20 are many."""
MAX_SLOW_PIXELS = 1 << 20
"""Largest number of pixels for formats that Pillow decodes in Python."""
SMALL = 1 << 24
"""Largest cost, in processed pixels, of an image that is decoded without a child process."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats; Pillow's other readers are rarely needed, and one runs PostScript."""
_WORD, _BYTE = 65535, 255
_SLOW = ("bmp_rle", "ppm", "ppm_plain")
_SLOWER = 100
_MOST_AREA = 2
"""Largest area of all tiles, as a multiple of the image's; each channel may have its own."""
_PER_TILE = 1000
"""Cost of a tile of any size, in processed pixels."""
_ROWS = 64
_NARROW = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "I;16": 2, "I;16B": 2, "I;16L": 2, "RGB": 3}


class UndecodableError(Exception):
    """An image cannot be decoded; the message is a short reason without the file name."""


class LargeError(Exception):
    """An image is within the limits, but must be decoded in a child process.

    This holds for large images, and for compressed TIFFs of any size, because their decoder writes
    to standard error.
    """


def unpack(
    stream: Stream,
    *,
    size: int,
    channels: Channels,
    crop: float,
    watched: bool,
    squash: bool = False,
    resample: int = Image.Resampling.BILINEAR,
) -> UInt8[np.ndarray, "channels {size} {size}"]:
    """Decode the centre of an image; see `robustkd.data.images.decode.decode`.

    Args:
        stream: The encoded image.
        size: Height and width of the result in pixels.
        channels: 3 for red, green and blue; 1 for luminance.
        crop: Share of the shorter side to keep, in (0, 1].
        watched: If True, time and memory are limited, so that a large image may be decoded.
        squash: If True, keep that share of both sides, and resample to a square.
        resample: Number of Pillow's filter.

    Raises:
        UndecodableError: If the image is damaged or too large, or has an unsupported format.
        LargeError: If the image is large and ``watched`` is False.
    """
    with _told(), _open(stream, watched=watched) as image:
        ImageOps.exif_transpose(image, in_place=True)
        square = _resized(
            _eight_bit(image, channels), size, crop, squash, Image.Resampling(resample)
        )
        pixels = np.asarray(square)
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def shape(stream: Stream) -> tuple[int, int]:
    """Return the width and height in the header, before any rotation.

    Raises:
        UndecodableError: If the image is damaged or too large, or has an unsupported format.
    """
    with _told(), _open(stream, watched=True) as image:
        return image.size


@contextmanager
def _told() -> Iterator[None]:
    # For a damaged image, Pillow raises almost any error (struct.error, SyntaxError, KeyError, ...)
    # and emits warnings that users cannot act on.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UndecodableError, LargeError):
        raise
    except MemoryError as error:
        raise UndecodableError("it takes too much memory") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableError(reason) from error


def _open(stream: Stream, *, watched: bool) -> Image.Image:
    try:
        image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise UndecodableError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"more than {MAX_PIXELS:,} pixels") from error
    cost = _cost(image, stream)
    noisy = any(tile[0] == "libtiff" for tile in getattr(image, "tile", ()))
    if (cost > SMALL or noisy) and not watched:
        raise LargeError
    return image


def _cost(image: Image.Image, stream: Stream) -> int:
    """Return the number of pixels that the decoder processes; raise an error above a limit."""
    pixels = math.prod(image.size)
    if pixels > MAX_PIXELS:
        raise UndecodableError(f"{image.width}x{image.height}: more than {MAX_PIXELS:,} pixels")
    channels = 4 if image.has_transparency_data else _NARROW.get(image.mode, 4)
    if pixels * channels > MAX_SAMPLES:
        raise UndecodableError(
            f"{image.width}x{image.height} of {channels} bytes: more than {MAX_SAMPLES:,} bytes"
        )
    tiles = getattr(image, "tile", ())
    if any(tile[0] in _SLOW for tile in tiles):
        if pixels > MAX_SLOW_PIXELS:
            raise UndecodableError(
                f"{image.width}x{image.height}: more than {MAX_SLOW_PIXELS:,} pixels in a form "
                "that is slow to decode"
            )
        return pixels * _SLOWER
    # A TIFF can name the same strips any number of times, each of which is decoded.
    area = sum(_area(tile.extents) for tile in tiles if tile.extents is not None)
    if area > _MOST_AREA * pixels * len(image.getbands()):
        raise UndecodableError(
            f"{image.width}x{image.height} in {len(tiles):,} parts of {area:,} pixels in total: "
            "the same part is given many times"
        )
    # Not only for the format JPEG: files of several images (MPO) consist of JPEGs.
    scans = _scans(stream) if any(tile[0] == "jpeg" for tile in tiles) else 1
    if scans > MAX_SCANS:
        raise UndecodableError(f"{scans:,} scans; expected at most {MAX_SCANS}")
    return max(pixels * max(1, scans), area + _PER_TILE * max(0, len(tiles) - 1))


def _area(extents: tuple[int, int, int, int]) -> int:
    left, top, right, bottom = extents
    return max(0, right - left) * max(0, bottom - top)


def _scans(stream: Stream) -> int:
    before = stream.tell()
    stream.seek(0)
    # A scan begins with these bytes, which otherwise occur only in previews.
    scans = stream.read().count(b"\xff\xda")
    stream.seek(before)
    return scans


def _eight_bit(image: Image.Image, channels: Channels) -> Image.Image:
    """Convert an image of any mode to L or RGB."""
    mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _scaled(image)
    if image.has_transparency_data:
        # The colours of transparent pixels are invisible, so a model must not receive them.
        shown = image if image.mode == "RGBA" else image.convert("RGBA")
        paper = Image.new("RGBA", shown.size, "white")
        image = Image.alpha_composite(paper, shown)
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits to 8; Pillow's own conversion would clip them to white."""
    if image.mode == "F":
        raise UndecodableError("pixels are floats, whose range is unknown")
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WORD:
        raise UndecodableError(f"pixels reach from {low} to {high}, beyond 16 bits")
    scaled = np.empty(values.shape, dtype=np.uint8)
    for first in range(0, len(values), _ROWS):
        rows = slice(first, first + _ROWS)
        scaled[rows] = (values[rows].astype(np.int64) * _BYTE + _WORD // 2) // _WORD
    return Image.fromarray(scaled)


def _resized(
    image: Image.Image, size: int, crop: float, squash: bool, resample: Image.Resampling
) -> Image.Image:
    """Crop before resampling, so that a strip of 1 x 60,000,000 pixels is never enlarged."""
    sides = image.size if squash else (min(image.size),) * 2
    width, height = (max(1, round(side * crop)) for side in sides)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    if (width, height) == (size, size):
        return image.crop(box)
    return image.resize((size, size), resample, box=box)
