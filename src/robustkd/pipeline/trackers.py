"""TensorBoard's event files, written from the records of a training."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustkd.core.files import refusal, whole


class Events:
    """One event file that shows every epoch once, however often the run was resumed.

    TensorBoard's own writer works in a thread, which cannot say that the disk is full; here its
    record format is written at once.

    Args:
        folder: Where the file is made, with the first records; older ones of the folder go then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._shown = 0

    def show(self, records: Sequence[Mapping[str, float]]) -> None:
        """Bring the file up to all the records that there are.

        Raises:
            WriteError: If it cannot be written; it keeps what it had.
        """
        if self._path is None:
            path = self._folder / f"events.out.tfevents.{time.time_ns() // 1000}.robustkd"
            self._begin(path, _version() + _scalars(records))
            self._path = path
        else:
            _append(self._path, _scalars(records[self._shown :]))
        self._shown = len(records)

    def _begin(self, path: Path, content: bytes) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            older = list(self._folder.iterdir())
            with whole(path) as partial:
                partial.write_bytes(content)
            for file in older:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(path, error) from error


def _append(path: Path, content: bytes) -> None:
    """Add to a file, or leave it as it was."""
    size = None
    try:
        size = path.stat().st_size
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        if size is not None:
            os.truncate(path, size)
        raise refusal(path, error) from error


def _version() -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _framed(Event(wall_time=time.time(), file_version="brain.Event:2"))


def _scalars(records: Sequence[Mapping[str, float]]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from torch.utils.tensorboard.summary import scalar

    now = time.time()
    events = (
        Event(wall_time=now, step=int(record["epoch"]), summary=scalar(name, value))  # type: ignore[no-untyped-call]
        for record in records
        for name, value in record.items()
        if name != "epoch"
    )
    return b"".join(map(_framed, events))


def _framed(event: object) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())  # type: ignore[attr-defined]
    return buffer.getvalue()
