"""IDX files as bytes, written from the description of the format alone."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def header(*sizes: int, code: int = 0x08) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, code, len(sizes), *sizes)


def idx_bytes(values: np.ndarray) -> bytes:
    return header(*values.shape) + values.tobytes()


def write_fashion(folder: Path, *, train: int = 240, test: int = 40, gzipped: bool = True) -> Path:
    """Four small files in the format of Fashion-MNIST; the first pixel of an image is its label."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = labels
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            name = f"{part}-{kind}-ubyte"
            if gzipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
            else:
                (folder / name).write_bytes(content)
    return folder
