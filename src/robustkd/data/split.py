"""Splits that a data set does not bring: cut once, by a seed, and written down by name.

A file that is written down stays in its split whatever is added to the folder later; what is added
is for training.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Int64

from robustkd.data.labelled import random_ranks
from robustkd.data.listing import Encoded, shown
from robustkd.errors import InputError

HeldOut: TypeAlias = Literal["validation", "test"]
Rows: TypeAlias = Int64[np.ndarray, " _"]

SHARE = 0.1
"""Share of each class that a split gets which is cut from the training images, at least one."""
SEED = 0

_MOST_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Cut:
    """Which training images are held out, and for what.

    Attributes:
        train: Rows that stay, in rising order.
        held_out: Rows of the splits that were cut, in rising order.
    """

    train: Rows = field(repr=False)
    held_out: Mapping[HeldOut, Rows] = field(repr=False)


def cut(files: Encoded, missing: Sequence[HeldOut], classes: Sequence[str], where: str) -> Cut:
    """Hold out a fixed random tenth of every class for each of the ``missing`` splits.

    Args:
        files: All training images.
        missing: The splits to cut, none twice.
        classes: Names of the classes.
        where: What to call the training images in a message.

    Raises:
        InputError: A class has too few images to be in every split.
    """
    labels = torch.from_numpy(np.asarray(files.labels, dtype=np.int64))
    found = labels.bincount(minlength=len(classes))
    least = 1 + len(missing)
    rarest = int(found.argmin())
    if found[rarest] < least:
        raise InputError(
            f"{shown(where)}: class {classes[rarest]!r} has {int(found[rarest])} images, expected "
            f"at least {least} to cut {' and '.join(missing) or 'nothing'} from them; add images "
            "or folders for these splits"
        )
    rows, rank, members = random_ranks(labels, seed=SEED)
    each = (members * SHARE).round().clamp(min=1)
    turn = (rank / each).floor()
    parts = {name: rows[turn == k] for k, name in enumerate(missing)}
    rest = rows[turn >= len(missing)]
    return Cut(_rising(rest), {name: _rising(part) for name, part in parts.items()})


def as_json(made: Cut, files: Encoded) -> dict[str, Any]:
    """The split by the names of what is held out, in JSON values."""
    named: dict[str, Any] = {
        name: [files.name(int(row)) for row in rows] for name, rows in made.held_out.items()
    }
    return {"format": 1, "seed": SEED, "share": SHARE, **named}


def read_split(path: Path, files: Encoded, missing: Collection[HeldOut]) -> Cut:
    """The split that `as_json` wrote, for the same images and perhaps more.

    Args:
        path: The JSON file.
        files: All training images.
        missing: The splits that it must name.

    Raises:
        InputError: It cannot be read, is no such file, or names images that are not there.
    """
    content = _content(path)
    held: dict[HeldOut, Any] = {
        name: content[name] for name in get_args(HeldOut) if name in content
    }
    if set(held) != set(missing):
        raise InputError(
            f"{shown(path)} splits off {' and '.join(held) or 'nothing'}, but this data needs "
            f"{' and '.join(missing) or 'nothing'}; use the file of a run on this data"
        )
    split_of: dict[str, HeldOut] = {}
    listed = 0
    for split, names in held.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{shown(path)}: {split} is no list of names; use the file of a run")
        split_of |= dict.fromkeys(names, split)
        listed += len(names)
    if len(split_of) != listed:
        raise InputError(f"{shown(path)} names an image twice; use the file of a run")
    rows: dict[str, array[int]] = {name: array("q") for name in ("train", *held)}
    for row in range(len(files.labels)):
        rows[split_of.pop(files.name(row), "train")].append(row)
    if split_of:
        raise InputError(
            f"{shown(path)} names {len(split_of)} images that are not there, the first "
            f"{min(split_of)!r}; use the file of a run on this data"
        )
    found = {name: np.array(part, dtype=np.int64) for name, part in rows.items()}
    return Cut(found["train"], {name: found[name] for name in held})


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{shown(path)} cannot be read as a split ({' '.join(str(error).split())}); use the "
            "split.json of a run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise InputError(f"{shown(path)} is no split; use the split.json of a run")
    return content


def _rising(rows: torch.Tensor) -> Rows:
    return rows.sort().values.numpy()
