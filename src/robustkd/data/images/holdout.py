"""Held-out splits, for data sets that lack a split: chosen by a seed and written to a file.

Images in the file stay in their split if other images are added to the folder later; added images
are used for training.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Int32, UInt8

from robustkd.core.errors import InputError
from robustkd.data.images.listing import Encoded, shown
from robustkd.data.images.scan import read_text, reason
from robustkd.data.labelled import class_sizes, random_ranks, slices

HeldOut: TypeAlias = Literal["validation", "test"]
Rows: TypeAlias = Int32[np.ndarray, " _"]

SHARE = 0.1
"""Share of each class that is held out for a missing split; at least one image."""
SEED = 0

_MOST_BYTES = 1 << 28
_BESIDE_NAMES = 1 << 16
_BYTES_A_NAME = 1 << 10
_SIGNS_BESIDE_NAMES = 16


@dataclass(frozen=True, eq=False)
class Cut:
    """A split of the training images.

    Attributes:
        train: Rows that remain, in increasing order.
        held_out: Rows of the held-out splits, in increasing order.
    """

    train: Rows = field(repr=False)
    held_out: Mapping[HeldOut, Rows] = field(repr=False)


def cut(files: Encoded, missing: Sequence[HeldOut], classes: Sequence[str], where: str) -> Cut:
    """Hold out a fixed random tenth of every class for each of the ``missing`` splits.

    Args:
        files: All training images.
        missing: Splits to hold out, without repetition.
        classes: Names of the classes.
        where: Description of the training images, for messages.

    Raises:
        InputError: If a class has too few images to be in every split.
    """
    labels = files.labels
    found = class_sizes(labels, classes=len(classes))
    least = 1 + len(missing)
    rarest = int(found.argmin())
    if found[rarest] < least:
        few = "1 image" if found[rarest] == 1 else f"{found[rarest]} images"
        raise InputError(
            f"{shown(where)}: class {classes[rarest]!r} has {few}, expected "
            f"at least {least} to cut {' and '.join(missing) or 'nothing'} from them; add images "
            "or folders for these splits"
        )
    each = (found.astype(np.float32) * np.float32(SHARE)).round().clip(min=1)
    turn = np.empty(len(labels), dtype=np.uint8)
    for rows, rank in random_ranks(labels, seed=SEED):
        turn[rows] = np.minimum(rank // each[labels[rows]], len(missing))
    train = _rows_of(turn, len(missing))
    return Cut(train, {name: _rows_of(turn, k) for k, name in enumerate(missing)})


def as_json(made: Cut, files: Encoded) -> Iterator[str]:
    """Yield the names of held-out images as JSON text, line by line."""
    yield f'{{\n "format": 1,\n "seed": {SEED},\n "share": {SHARE}'
    for split, rows in made.held_out.items():
        yield f',\n "{split}": ['
        for i, row in enumerate(rows):
            yield f"{',' if i else ''}\n  {json.dumps(files.name(int(row)))}"
        yield "\n ]"
    yield "\n}\n"


class MissingImagesError(InputError):
    """A split names images that are not there.

    Args:
        message: The message.
        some: Whether other images that it names are there.
    """

    def __init__(self, message: str, *, some: bool) -> None:
        super().__init__(message)
        self.some = some


def read_split(path: Path, files: Encoded, missing: Collection[HeldOut]) -> Cut:
    """Read a split that `as_json` wrote, for the same images and possibly more.

    Args:
        path: The JSON file.
        files: All training images.
        missing: Splits that the file must contain.

    Raises:
        MissingImagesError: If the file names images that do not exist.
        InputError: If the file cannot be read, or is not a split of this kind of data.
    """
    content = _content(path, images=len(files.labels))
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
            raise InputError(
                f"{shown(path)}: {split} is not a list of names; use the file of a run"
            )
        split_of |= dict.fromkeys(names, split)
        listed += len(names)
    if len(split_of) != listed:
        raise InputError(f"{shown(path)} names an image twice; use the file of a run")
    rows: dict[str, array[int]] = {name: array("i") for name in ("train", *held)}
    for row in range(len(files.labels)):
        rows[split_of.pop(files.name(row), "train")].append(row)
    if split_of:
        raise MissingImagesError(
            f"{shown(path)} names {len(split_of)} images that are not there, the first "
            f"{min(split_of)!r}; use the file of a run on this data",
            some=len(split_of) < listed,
        )
    found = {name: np.asarray(part) for name, part in rows.items()}
    return Cut(found["train"], {name: found[name] for name in held})


def _content(path: Path, *, images: int) -> dict[str, object]:
    try:
        most = min(_MOST_BYTES, _BESIDE_NAMES + images * _BYTES_A_NAME)
        text = read_text(path, most=most)
        _check_signs(text, most=images + _SIGNS_BESIDE_NAMES)
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{shown(path)} cannot be read as a split ({reason(error)}); use the "
            "split.json of a run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise InputError(f"{shown(path)} is not a split; use the split.json of a run")
    return content


def _check_signs(text: str, *, most: int) -> None:
    """Raise an error for JSON with more values than images, which could take far more memory.

    Raises:
        ValueError: If there are more.
    """
    # Without escapes, every second part between quotation marks is outside of a string.
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') <= 2 * most:
        outside = "".join(bare.split('"')[::2])
        if sum(map(outside.count, "[{,")) <= most:
            return
    raise ValueError("it lists more than the images that there are")


def _rows_of(turn: UInt8[np.ndarray, " n"], wanted: int) -> Rows:
    """Return the rows for which ``turn`` is ``wanted``."""
    rows = np.empty(np.count_nonzero(turn == wanted), dtype=np.int32)
    filled = 0
    for part in slices(len(turn)):
        found = part.start + np.flatnonzero(turn[part] == wanted)
        rows[filled : filled + len(found)] = found
        filled += len(found)
    return rows
