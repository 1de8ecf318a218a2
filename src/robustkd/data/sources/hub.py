"""Data sets of the Hugging Face hub, as ``hf:NAME@REVISION``; needs ``pip install robustkd[hf]``.

The revision is part of the name because a name alone means something else tomorrow. The images are
taken as they are encoded and decoded by `robustkd.data.images.decode`, like those of a folder. A
data set that is a script is refused: versions of the library below 4, which would run it, are not
accepted.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from robustkd.core.errors import InputError, UsageError
from robustkd.core.names import unfit
from robustkd.data.images.compose import compose
from robustkd.data.images.holdout import HeldOut
from robustkd.data.images.listing import shown
from robustkd.data.images.options import Reading
from robustkd.data.images.streamed import Pictures

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"

_FORMATS = ("parquet", "arrow")
"""Tables; the library's other readers unpack archives, or load tensors, of a stranger's choice."""
_MOST_ROWS = 1 << 24
_LEAST_BYTES = 32
"""No encoded image is smaller."""
_ROWS_BESIDE = 1000
_NAME = re.compile(r"hf:(?P<name>[^@]+)@(?P<revision>[^@]+)")
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_SPELLINGS: Mapping[str, HeldOut] = {
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True, eq=False)
class HubImages:
    """The images of one split; Arrow maps them from disk, so they take no memory."""

    split: str
    table: datasets.Dataset = field(repr=False)
    column: str
    labels: Int64[np.ndarray, " n"] = field(repr=False)

    def open(self, row: int) -> io.BytesIO:
        """The encoded bytes of an image."""
        content = self.table[row][self.column]["bytes"]
        # Without bytes there is a path, and a stranger's path is not ours to open.
        if not isinstance(content, bytes):
            raise OSError("the data set holds no bytes for it")
        return io.BytesIO(content)

    def name(self, row: int) -> str:
        """Split and number."""
        return f"{self.split}/{row}"


def load_hub(name: str, reading: Reading | None = None) -> Pictures:
    """A data set of the Hugging Face hub with one column of images and one of classes.

    A split that it lacks is a fixed random tenth of every class of its training images.

    Args:
        name: ``hf:NAME@REVISION``, e.g. ``hf:user/flowers@1f0c2b7`` with a commit, tag or branch.
        reading: How images are read; ``classes`` is not offered, as the data set brings its order.

    Raises:
        UsageError: The name has another form, or the extra is not installed.
        InputError: It cannot be had, or has not the columns and splits that are needed.
    """
    form = _NAME.fullmatch(name)
    if form is None:
        raise UsageError(
            f"{name!r}: expected hf:NAME@REVISION, e.g. hf:user/flowers@1f0c2b7 with the commit "
            "of the version that you mean"
        )
    reading = reading or Reading()
    reading.check_unused(
        PREFIX + "...", ("image_size", "channels", "crop", "flip", "streaming", "split")
    )
    splits = _fetch(form["name"], form["revision"])
    if "train" not in splits:
        raise InputError(f"{shown(name)} has no split train, only {', '.join(splits) or 'none'}")
    image, label = _columns(name, splits["train"].features)
    classes = tuple(splits["train"].features[label].names)
    for odd, expected in ((found, unfit(found)) for found in classes):
        if expected is not None:
            raise InputError(
                f"{shown(name)}: the class name {shown(repr(odd))} cannot be shown, expected "
                f"{expected}; use another data set"
            )
    found = {part: _images(part, table, image, label) for part, table in splits.items()}
    given: dict[HeldOut, HubImages] = {
        split: found[part] for part, split in _SPELLINGS.items() if part in found
    }
    return compose(form["name"], classes, found["train"], given, reading)


def _fetch(name: str, revision: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{PREFIX}{name} needs the package datasets, which is not installed; "
            "pip install 'robustkd[hf]'"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise UsageError(
            f"datasets {datasets.__version__} runs scripts of data sets; pip install 'datasets>=4'"
        )
    try:
        builder = _builder(name, revision)
        if builder.name not in _FORMATS:
            raise ValueError(f"stored as {builder.name}, expected {' or '.join(_FORMATS)}")
        builder.download_and_prepare(dl_manager=_checking(builder))
        found: Mapping[str, Any] = builder.as_dataset()
        _check_rows(sum(map(len, found.values())))
    # It raises its own and other libraries' errors, of no common kind.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{PREFIX}{shown(name)}@{shown(revision)} cannot be had: {shown(reason)}"
        ) from error
    return found


def _checking(builder: datasets.DatasetBuilder) -> datasets.DownloadManager:
    """The library's downloads, of which tables are looked at before they are unfolded."""
    import datasets

    # The library has no type information.
    class Checking(datasets.DownloadManager):  # type: ignore[misc]
        def download(self, url_or_urls: object) -> object:
            found = super().download(url_or_urls)
            if builder.name == "parquet":
                _check_tables(_paths(found))
            return found

    return Checking(
        dataset_name=builder.dataset_name,
        download_config=datasets.DownloadConfig(
            use_etag=False, token=builder.token, storage_options=builder.storage_options
        ),
        data_dir=builder.config.data_dir,
        base_path=builder.base_path,
    )


def _paths(found: object) -> Iterator[str]:
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, list | tuple):
        for part in found:
            yield from _paths(part)
    else:
        yield str(found)


def _check_tables(paths: Iterable[str]) -> None:
    """Refuse Parquet files of far more rows than images can be in their bytes.

    Raises:
        ValueError: There are more.
    """
    from pyarrow import parquet

    rows = 0
    for path in paths:
        with open(path, "rb") as file:
            count = parquet.read_metadata(file).num_rows
            rows += count
            if count > _ROWS_BESIDE + os.fstat(file.fileno()).st_size // _LEAST_BYTES:
                raise ValueError(
                    f"a file has {count:,} rows in {os.fstat(file.fileno()).st_size:,} bytes, "
                    "fewer than images take"
                )
        _check_rows(rows)


def _check_rows(rows: int) -> None:
    if rows > _MOST_ROWS:
        raise ValueError(f"it has {rows:,} rows or more, expected at most {_MOST_ROWS:,}")


def _builder(name: str, revision: str) -> datasets.DatasetBuilder:
    """The library's reader of a data set of the hub, never of a folder on this machine.

    Raises:
        ValueError: The name is not one of the hub, or there is something of that name here, which
            the library would take instead and without a look at the revision.
    """
    import datasets

    if _ON_THE_HUB.fullmatch(name) is None:
        raise ValueError("the hub's names are NAME or USER/NAME; give a folder without hf:")
    if os.path.lexists(name):
        raise ValueError("the working directory has a folder of that name; start from another one")
    found: datasets.DatasetBuilder = datasets.load_dataset_builder(name, revision=revision)
    return found


def _columns(name: str, features: Mapping[str, object]) -> tuple[str, str]:
    """Names of the only column of images and of the only column of classes."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    chosen = []
    for kind in ("Image", "ClassLabel"):
        columns = [column for column, found in kinds.items() if found == kind]
        if len(columns) != 1:
            raise InputError(
                f"{shown(name)} has {len(columns)} columns of kind {kind}, expected 1; its "
                f"columns are {', '.join(map(shown, kinds))}"
            )
        chosen += columns
    return chosen[0], chosen[1]


def _images(part: str, table: datasets.Dataset, image: str, label: str) -> HubImages:
    from datasets import Image

    labels = np.asarray(table[label], dtype=np.int64)
    encoded = table.select_columns([image]).cast_column(image, Image(decode=False))
    return HubImages(part, encoded, image, labels)
