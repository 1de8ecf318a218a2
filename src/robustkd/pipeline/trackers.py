"""TensorBoard event files, written from the records of a training."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustkd.core.folders import Folder, refusal

_OURS = re.compile(r"events\.out\.tfevents\.\d+\.robustkd")


class Events:
    """Writer of one event file that contains every epoch once, even if the run was resumed.

    TensorBoard's own writer works in a thread and cannot report that the disk is full. This class
    writes the same format synchronously.

    Args:
        folder: Folder of the file. The first call of :meth:`show` creates the file and removes
            older files of this class.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""
        self._shown = 0

    def show(self, records: Sequence[Mapping[str, float]], times: Sequence[float]) -> None:
        """Write the records that are not in the file yet.

        Args:
            records: One record per epoch. Its values are shown as ``train/NAME``, the accuracy on
                validation images as ``val/acc`` and the learning rate as ``lr``.
            times: Time at which each epoch ended, in seconds since 1970.

        Raises:
            WriteError: If the file cannot be written; its content stays as it was.
        """
        name = self._name or f"events.out.tfevents.{time.time_ns() // 1000}.robustkd"
        try:
            with (
                Folder.at(self._folder.parent) as parent,
                parent.inside(self._folder.name, make=True) as folder,
            ):
                if self._name:
                    _append(folder, name, _scalars(records[self._shown :], times[self._shown :]))
                else:
                    _begin(folder, name, _version() + _scalars(records, times))
        except OSError as error:
            raise refusal(self._folder / name, error) from error
        self._name, self._shown = name, len(records)


def _begin(folder: Folder, name: str, content: bytes) -> None:
    """Write a new file and remove those of earlier processes."""
    older = [found for found in folder.names() if _OURS.fullmatch(found)]
    with folder.writing(name) as file:
        file.write(content)
    for found in older:
        folder.remove(found)


def _append(folder: Folder, name: str, content: bytes) -> None:
    """Append to a file; on an error, the file keeps its old content."""
    descriptor = folder.append(name)
    try:
        size = os.fstat(descriptor).st_size
        try:
            # If the disk becomes full, only a part may have been written.
            while content:
                content = content[os.write(descriptor, content) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _version() -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    event = Event(wall_time=time.time(), file_version="brain.Event:2")
    return _framed(event.SerializeToString())


def tag(name: str) -> str:
    """Return the name under which TensorBoard shows a value of a record."""
    return {"validation": "val/acc", "lr": "lr"}.get(name, f"train/{name}")


def _scalars(records: Sequence[Mapping[str, float]], times: Sequence[float]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from torch.utils.tensorboard.summary import scalar

    events = (
        Event(wall_time=ended, step=int(record["epoch"]), summary=scalar(tag(name), value))
        for record, ended in zip(records, times, strict=True)
        for name, value in record.items()
        if name != "epoch"
    )
    return b"".join(_framed(event.SerializeToString()) for event in events)


def _framed(event: bytes) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event)
    return buffer.getvalue()
