"""One encoded image, which may be an attack, to the bytes of the size that a model wants.

Small images are decoded here. A large one costs time and memory that its file can choose, so it is
decoded by a process that has limits, `robustkd.data.images.watched`.
"""

from __future__ import annotations

import io
import os

import numpy as np
from jaxtyping import UInt8

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
        UndecodableError: It is damaged, too large, of another format, or takes too long.
        InputError: There can be no process for decoding a large one.
    """
    length = _length(stream)
    if length <= _SMALL_BYTES:
        try:
            return pixels.unpack(stream, size=size, channels=channels, crop=crop, watched=False)
        except LargeError:
            stream.seek(0)
    from robustkd.data.images import watched

    return watched.unpack(stream.read(length), size=size, channels=channels, crop=crop)


def dimensions(stream: Stream) -> tuple[int, int]:
    """Width and height that the header declares, before any rotation.

    Raises:
        UndecodableError: It is damaged, too large, or of another format.
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
