"""Decoding of images that may be attacks, to bytes of the size of a model's input.

Small images are decoded in this process. The time and memory of a large one depend on its file, so
it is decoded by a process with limits, `robustkd.data.images.watched`.
"""

from __future__ import annotations

import io
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from robustkd.data.images import pixels
from robustkd.data.images.pixels import (
    MAX_BYTES,
    MAX_PIXELS,
    Channels,
    LargeError,
    Stream,
    UndecodableError,
)

__all__ = ["MAX_PIXELS", "Channels", "Stream", "UndecodableError", "decode", "dimensions"]

_SMALL_BYTES = 1 << 21


def decode(
    stream: Stream,
    *,
    size: int,
    channels: Channels,
    crop: float = 1.0,
    resize: str = "centred-square",
    interpolation: str = "bilinear",
) -> UInt8[np.ndarray, "channels {size} {size}"]:
    """Decode the centre of an image to bytes.

    The orientation in the EXIF data is applied. Values of 16 bits are scaled to 8 bits, not
    clipped. Transparent images are drawn on white. An image that already has the size is not
    resampled.

    Args:
        stream: The encoded image; its format is recognised by its content.
        size: Height and width of the result in pixels.
        channels: 3 for red, green and blue; 1 for luminance.
        crop: Share of the shorter side to keep, in (0, 1], or of both sides with ``squash``.
        resize: One of `robustkd.core.types.RESIZES`; ``squash`` does not keep the proportions.
        interpolation: One of `robustkd.core.types.INTERPOLATIONS`.

    Raises:
        UndecodableError: If the image is damaged or too large, has an unsupported format, or
            takes too long.
        InputError: If no process for decoding large images can be started.
    """
    length = _length(stream)
    squash, resample = resize == "squash", int(Image.Resampling[interpolation.upper()])
    if length <= _SMALL_BYTES:
        try:
            return pixels.unpack(
                stream,
                size=size,
                channels=channels,
                crop=crop,
                watched=False,
                squash=squash,
                resample=resample,
            )
        except LargeError:
            stream.seek(0)
    from robustkd.data.images import watched

    return watched.unpack(
        stream.read(length),
        size=size,
        channels=channels,
        crop=crop,
        squash=squash,
        resample=resample,
    )


def dimensions(stream: Stream) -> tuple[int, int]:
    """Return the width and height in the header, before any rotation.

    Raises:
        UndecodableError: If the image is damaged or too large, or has an unsupported format.
    """
    length = _length(stream)
    if length <= _SMALL_BYTES:
        return pixels.shape(stream)
    from robustkd.data.images import watched

    return watched.shape(stream.read(length))


def _length(stream: Stream) -> int:
    if isinstance(stream, io.BytesIO):
        length = stream.getbuffer().nbytes
    else:
        length = os.fstat(stream.fileno()).st_size
    if length > MAX_BYTES:
        raise UndecodableError(f"more than {MAX_BYTES:,} bytes")
    return length
