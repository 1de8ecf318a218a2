"""Folders in the form of a data set of the Hugging Face hub."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.images.image_files import picture


def encoded(pixels: np.ndarray) -> bytes:
    """Return the pixels as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_hub(
    folder: Path,
    sizes: dict[str, int],
    classes: tuple[str, ...] = ("ant", "bee"),
    *,
    by_shade: bool = False,
) -> Path:
    """Write one Parquet file per split; image number i of split k is `picture(100 * k + i)`.

    Args:
        folder: Folder for the files; it is created if it is missing.
        sizes: Number of images of each split.
        classes: Names of the classes; the images of a split cycle through them.
        by_shade: Give each class its own brightness, so that a network can learn the classes.
    """
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=list(classes))}
    )
    for k, (split, n) in enumerate(sizes.items()):
        kinds = [i % len(classes) for i in range(n)]
        images = []
        for i, kind in enumerate(kinds):
            shade = 255 * (2 * kind + 1) // (2 * len(classes)) if by_shade else None
            images.append({"bytes": encoded(picture(100 * k + i, 12, shade)), "path": None})
        table = datasets.Dataset.from_dict({"image": images, "kind": kinds}, features=features)
        folder.mkdir(exist_ok=True)
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder
