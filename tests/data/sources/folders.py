"""What several tests of folders share."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustkd.core.errors import InputError
from robustkd.core.types import Split
from robustkd.data import Pictures, Reading, load_folder, split_text

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def names(data: Pictures, split: Split) -> list[str]:
    return [data.parts[split].name(row) for row in range(data.size(split))]


def written(data: Pictures) -> dict[str, object]:
    return json.loads("".join(split_text(data)))


def refused(path: Path, message: str, **reading: object) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_folder(path, Reading(**reading))
