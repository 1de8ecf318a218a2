"""One encoded image, which may be an attack, to the bytes of the size that a model wants."""

from __future__ import annotations

import io
import math
import warnings
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

Channels: TypeAlias = Literal[1, 3]
Stream: TypeAlias = io.BufferedReader | io.BytesIO

MAX_PIXELS = 1 << 26
"""Most pixels that are ever unpacked (8,192 x 8,192, at most 256 MiB); the header says how many."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's other readers are rarely needed, and one of them starts a PostScript interpreter."""
_WORD, _BYTE = 65535, 255


class UndecodableError(Exception):
    """An image is not what it should be; its text is a short reason without the file's name."""


def decode(
    stream: Stream, *, size: int, channels: Channels, crop: float = 1.0
) -> UInt8[np.ndarray, "channels {size} {size}"]:
    """The centred square of an image, as bytes.

    The orientation that the camera noted is applied. Values of 16 bits are scaled to 8, never
    clipped. What is transparent is shown on white. An image of just the right size is not
    resampled, so its pixels are those of the file.

    Args:
        stream: The encoded image; the content tells the format, not a name.
        size: Height and width of the result in pixels.
        channels: 3 for red, green and blue; 1 for luminance.
        crop: Share of the shorter side that is kept, in (0, 1].

    Raises:
        UndecodableError: It is damaged, too large, or of another format.
    """
    # A damaged image makes Pillow raise almost anything (struct.error, SyntaxError, KeyError, ...)
    # and warn about much that no user can mend.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(stream) as image:
                upright = ImageOps.exif_transpose(image)
                square = _square(_eight_bit(upright, channels), size, crop)
                pixels = np.asarray(square)
    except UndecodableError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableError(reason) from error
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def dimensions(stream: Stream) -> tuple[int, int]:
    """Width and height that the header declares, before any rotation.

    Raises:
        UndecodableError: It is damaged, too large, or of another format.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(stream) as image:
                return image.size
    except UndecodableError:
        raise
    except Exception as error:
        raise UndecodableError(type(error).__name__) from error


def _open(stream: Stream) -> Image.Image:
    try:
        image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise UndecodableError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"more than {MAX_PIXELS:,} pixels") from error
    if math.prod(image.size) > MAX_PIXELS:
        raise UndecodableError(f"{image.width}x{image.height}: more than {MAX_PIXELS:,} pixels")
    return image


def _eight_bit(image: Image.Image, channels: Channels) -> Image.Image:
    """The image in mode L or RGB, whatever it was."""
    mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _scaled(image)
    if image.has_transparency_data:
        # Colours under transparent pixels are what nobody sees, so no model should.
        shown = image.convert("RGBA")
        paper = Image.new("RGBA", shown.size, "white")
        image = Image.alpha_composite(paper, shown)
    return image.convert(mode)


def _scaled(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits as 8; Pillow's own conversion would make most of them white."""
    if image.mode == "F":
        raise UndecodableError("pixels are floats, whose range is unknown")
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WORD:
        raise UndecodableError(f"pixels reach from {low} to {high}, beyond 16 bits")
    return Image.fromarray(((values * _BYTE + _WORD // 2) // _WORD).astype(np.uint8))


def _square(image: Image.Image, size: int, crop: float) -> Image.Image:
    """Crop first and resample then: a strip of 1 x 60,000,000 pixels never becomes a large one."""
    side = max(1, round(min(image.size) * crop))
    left, top = ((length - side) // 2 for length in image.size)
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
