"""Data sets of the Hugging Face hub, as ``hf:NAME@REVISION``; needs ``pip install robustkd[hf]``.

The revision is required because the content of a name can change. Encoded images are decoded by
`robustkd.data.images.decode`, like those of a folder. Data sets that are scripts are refused:
versions of the library below 4, which would run them, are not accepted.
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
from robustkd.core.known_names import HUB
from robustkd.core.names import unfit
from robustkd.data.images.compose import compose
from robustkd.data.images.holdout import HeldOut
from robustkd.data.images.listing import shown
from robustkd.data.images.options import Reading
from robustkd.data.images.streamed import Pictures

if TYPE_CHECKING:
    import datasets

_FORMATS = ("parquet", "arrow")
"""Accepted table formats; the library's other readers unpack archives or load tensors."""
_MOST_ROWS = 1 << 24
_LEAST_BYTES = 32
"""Smallest size of an encoded image in bytes."""
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
    """Images of one split, which Arrow maps from disk, so that they take no memory."""

    split: str
    table: datasets.Dataset = field(repr=False)
    column: str
    labels: Int64[np.ndarray, " n"] = field(repr=False)

    def open(self, row: int) -> io.BytesIO:
        """The encoded bytes of an image."""
        content = self.table[row][self.column]["bytes"]
        # An entry without bytes has a path, which is untrusted and not opened.
        if not isinstance(content, bytes):
            raise OSError("the data set holds no bytes for it")
        return io.BytesIO(content)

    def name(self, row: int) -> str:
        """Return split and row."""
        return f"{self.split}/{row}"


def load_hub(name: str, reading: Reading | None = None) -> Pictures:
    """A data set of the Hugging Face hub with one column of images and one of classes.

    A missing split is a fixed random tenth of every class of the training images.

    Args:
        name: ``hf:NAME@REVISION``, e.g. ``hf:user/flowers@1f0c2b7`` with a commit, tag or branch.
        reading: How images are read; ``classes`` is not supported, since the data set has an order.

    Raises:
        UsageError: If the name has another form, or the extra is not installed.
        InputError: If the data set cannot be loaded, or lacks the necessary columns or splits.
    """
    form = _NAME.fullmatch(name)
    if form is None:
        raise UsageError(
            f"{name!r}: expected hf:NAME@REVISION, e.g. hf:user/flowers@1f0c2b7 with the commit "
            "of the version that you mean"
        )
    reading = reading or Reading()
    reading.check_unused(
        HUB + "...", ("image_size", "channels", "crop", "flip", "streaming", "split")
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
            f"{HUB}{name} needs the package datasets, which is not installed; "
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
    # Its own errors and those of other libraries have no common base class.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{HUB}{shown(name)}@{shown(revision)} cannot be loaded: {shown(reason)}"
        ) from error
    return found


def _checking(builder: datasets.DatasetBuilder) -> datasets.DownloadManager:
    """Return a download manager that checks tables before they are read."""
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
    """Raise an error for a Parquet file with more rows than images fit into its bytes.

    Raises:
        ValueError: If there are more.
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
    """Return the library's reader of a data set of the hub, never of a local folder.

    Raises:
        ValueError: If the name is not one of the hub, or there is a local folder of that name,
            which the library would use instead, ignoring the revision.
    """
    import datasets

    if _ON_THE_HUB.fullmatch(name) is None:
        raise ValueError("the hub's names are NAME or USER/NAME; give a folder without hf:")
    if os.path.lexists(name):
        raise ValueError("the working directory has a folder of that name; start from another one")
    found: datasets.DatasetBuilder = datasets.load_dataset_builder(name, revision=revision)
    return found


def _columns(name: str, features: Mapping[str, object]) -> tuple[str, str]:
    """Return the names of the only column of images and of the only column of classes."""
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
