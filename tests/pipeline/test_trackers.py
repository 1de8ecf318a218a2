"""TensorBoard shows each epoch once, also after a run was resumed."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from robustkd.core.errors import WriteError
from robustkd.pipeline.trackers import Events

RECORDS = [
    {"epoch": k + 1.0, "loss": 1 / (k + 1), "lr": 0.1 / (k + 1), "validation": k / 4}
    for k in range(4)
]
TIMES = [1e9, 1e9 + 10, 1e9 + 20, 1e9 + 1000]
TAGS = {"loss": "train/loss", "lr": "lr", "validation": "val/acc"}


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in tags}


def expected(n: int) -> dict[str, list[tuple[int, float]]]:
    return {
        tag: [(k + 1, round(record[name], 6)) for k, record in enumerate(RECORDS[:n])]
        for name, tag in TAGS.items()
    }


def test_epochs_come_one_by_one(tmp_path):
    events = Events(tmp_path / "tensorboard")
    for n in range(1, 5):
        events.show(RECORDS[:n], TIMES[:n])
        assert shown(tmp_path / "tensorboard") == expected(n)


def test_a_resumed_run_shows_no_epoch_twice(tmp_path):
    before = Events(tmp_path)
    before.show(RECORDS[:2], TIMES[:2])
    # Killed before its checkpoint: the third epoch is done again.
    before.show(RECORDS[:3], TIMES[:3])
    after = Events(tmp_path)
    after.show(RECORDS[:3], TIMES[:3])
    after.show(RECORDS, TIMES)
    assert shown(tmp_path) == expected(4)
    assert len(list(tmp_path.iterdir())) == 1


def test_epochs_keep_their_times_when_a_run_is_resumed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Events(tmp_path).show(RECORDS[:2], TIMES[:2])
    Events(tmp_path).show(RECORDS, TIMES)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.wall_time for event in found.Scalars("lr")] == TIMES


def test_a_full_disk_leaves_whole_events(tmp_path):
    events = Events(tmp_path)
    events.show(RECORDS[:2], TIMES[:2])
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        message = f"{file} cannot be written: File too large; raise the limit (ulimit -f)"
        with pytest.raises(WriteError, match=f"^{re.escape(message)}$"):
            events.show(RECORDS[:3], TIMES[:3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.stat().st_size == size
    events.show(RECORDS, TIMES)
    assert shown(tmp_path) == expected(4)
