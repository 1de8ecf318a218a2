"""TensorBoard's event files, written from the records of a training."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustkd.core.files import refusal, whole
from robustkd.core.folders import check_real_folder, is_regular, open_for_append

_OURS = re.compile(r"events\.out\.tfevents\.\d+\.robustkd")


class Events:
    """One event file that shows every epoch once, however often the run was resumed.

    TensorBoard's own writer works in a thread, which cannot say that the disk is full; here its
    record format is written at once.

    Args:
        folder: Where the file is made, with the first records. Older files of this class in it are
            removed then.
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
            check_real_folder(self._folder)
            older = [name for name in os.listdir(self._folder) if _OURS.fullmatch(name)]
            with whole(path) as partial:
                partial.write_bytes(content)
            for name in older:
                if is_regular(self._folder / name):
                    (self._folder / name).unlink()
        except OSError as error:
            raise refusal(path, error) from error


def _append(path: Path, content: bytes) -> None:
    """Add to a file, or leave it as it was."""
    try:
        with os.fdopen(open_for_append(path), "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
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
