"""A grid whose data is a folder of images."""

from __future__ import annotations

import numpy as np
import yaml
from PIL import Image

_GRID = {
    "data": {"path": "shades"},
    "pairs": [["wrn-10-1", "wrn-10-1"]],
    "attacks": {"badnets": None},
    "methods": ["no-teacher"],
    "seeds": [0],
    "teaching": {"epochs": 1, "batch_size": 8},
    "training": {"epochs": 1, "batch_size": 8},
}


def test_files_that_are_left_out_are_told_before_the_first_cell(robustkd, tmp_path):
    for split in ("train", "val", "test"):
        for name, shade in (("dark", 20), ("light", 200)):
            place = tmp_path / "shades" / split / name
            place.mkdir(parents=True)
            for k in range(8):
                Image.fromarray(np.full((8, 8, 3), shade + k, np.uint8)).save(place / f"{k}.png")
    (tmp_path / "shades" / "train" / "dark" / "new.avif").write_bytes(b"not read")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(_GRID))
    said = robustkd("bench", "grid.yaml")
    assert said.code == 0
    first, *others = said.err.splitlines()
    assert first.startswith("data: left out of shades-")
    assert first.endswith("this format is not read: 1 .avif; convert to PNG or JPEG")
    assert "left out" not in "".join(others)
