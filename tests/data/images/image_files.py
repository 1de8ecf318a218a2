"""Small images and folders of them, written with Pillow or from a format's description alone."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 16, shade: int | None = None) -> np.ndarray:
    """Colour noise, about a shade where one is given, so that a tiny network can tell classes."""
    noise = np.random.default_rng(seed)
    if shade is None:
        return noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.clip(shade + noise.integers(-30, 31, (size, size, 3)), 0, 255).astype(np.uint8)


def write_classes(
    folder: Path, counts: Mapping[str, int], *, size: int = 16, seed: int = 0
) -> Path:
    """PNGs in one folder per class; the classes differ in brightness, all images in noise."""
    for k, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        shade = round(255 * (k + 0.5) / len(counts))
        for i in range(count):
            pixels = picture(seed + 1000 * k + i, size, shade)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


def write_splits(root: Path, counts: Mapping[str, Mapping[str, int]], *, size: int = 16) -> Path:
    """`write_classes` for each split, with images that no other split has."""
    for k, (split, classes) in enumerate(counts.items()):
        write_classes(root / split, classes, size=size, seed=100_000 * k)
    return root


def png(width: int, height: int, rows: bytes, *, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG of any declared size, from its description; ``rows`` are unfiltered scanlines."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def many_scans(image: Image.Image, scans: int, *, several: bool = False) -> bytes:
    """A progressive JPEG whose last scan is repeated, each time through the whole image.

    Args:
        image: The image.
        scans: Number of scans.
        several: Whether it is followed by a small image (MPO), whose scans count as well.
    """
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.new("L", (8, 8))]} if several else {}
    image.save(stream, "MPO" if several else "JPEG", progressive=True, **more)
    content = stream.getvalue()
    end = content.index(b"\xff\xd9")
    last = content.rindex(b"\xff\xda", 0, end)
    again = scans - content.count(b"\xff\xda")
    return content[:end] + content[last:end] * again + content[end:]


def repeated_strips(side: int, strips: int) -> bytes:
    """An uncompressed TIFF of black and white whose strips are the same half of the image."""
    data = b"\xaa" * (side // 8 * (side // 2))
    table = 8 + len(data)
    tags = [(256, 1, side), (257, 1, side), (258, 1, 1), (259, 1, 1), (262, 1, 1)]
    tags += [(273, strips, table), (277, 1, 1), (278, 1, side // 2), (279, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    head = b"II*\0" + struct.pack("<I", table + 4 * strips)
    return head + data + struct.pack("<I", 8) * strips + directory


def one_colour_webp(side: int) -> bytes:
    """A lossless WebP of one colour: every code has a single symbol, so no pixel takes a bit."""
    bits, length = 0x2F, 8
    for value, width in ((side - 1, 14), (side - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)):
        bits, length = bits | value << length, length + width
    for symbol in (255, 255, 255, 255, 0):
        for value, width in ((1, 1), (0, 1), (1, 1), (symbol, 8)):
            bits, length = bits | value << length, length + width
    body = bits.to_bytes(-(-length // 8), "little")
    body += b"\0" * (len(body) % 2)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
