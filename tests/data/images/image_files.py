"""Small images and folders of them, written with Pillow or from a format's description alone."""

from __future__ import annotations

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
    """PNGs in one folder a class; the classes differ in brightness, all images in noise."""
    for k, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
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
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
