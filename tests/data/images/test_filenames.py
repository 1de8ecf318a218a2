"""Names on disk are the names in memory, for every process that reads them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd.core.errors import InputError
from robustkd.data.images.filenames import Names, SortedNames
from robustkd.data.images.listing import Folder, list_files
from tests.marks import slow_but

# Whatever a file system can hold: any bytes but zero and the slash.
NAME = st.binary(min_size=1, max_size=9).map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b"\n").replace(b"/", b"\xff"))
)


@given(folders=st.lists(st.lists(NAME, max_size=200), max_size=5), parent=NAME)
@settings(max_examples=60, deadline=None)
def test_a_list_of_any_names(folders, parent):
    names, expected, prefix = Names(), [], f"{parent}/"
    for folder in folders:
        assert names.extend(folder, prefix=prefix) == len(folder)
        expected += [prefix + name for name in folder]
        # What was added can be read between two additions.
        assert [names[row] for row in range(len(names))] == expected
    assert list(names.read(0, len(names))) == expected
    for row in (-1, len(names)):
        with pytest.raises(IndexError, match=f"^row {row} of {len(expected)} names$"):
            names[row]


@given(names=st.lists(NAME, max_size=300), at_once=st.sampled_from([64, 128, 4096]))
@settings(max_examples=60, deadline=None)
def test_sorting_in_pieces_is_sorting(names, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustkd.data.images.filenames._SORTED_AT_ONCE", at_once)
        found = SortedNames(iter(names))
        assert len(found) == len(names)
        assert list(found) == sorted(names)
        assert list(found) == sorted(names)


def tell(names: Names, rows: list[int], pipe) -> None:
    pipe.send([names[row] for row in rows])


@pytest.mark.parametrize("method", slow_but(("fork",), ("fork", "spawn", "forkserver")))
def test_two_processes_can_read_at_once(method):
    names = Names()
    names.extend(f"{number:05d}" for number in range(5000))
    context = multiprocessing.get_context(method)
    rows = [list(range(start, 5000, 7)) for start in range(2)]
    pipes, workers = [], []
    for some in rows:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=tell, args=(names, some, sender))
        worker.start()
        # Only the worker holds it now, so that its death would be seen.
        sender.close()
        pipes.append(receiver)
        workers.append(worker)
    assert [names[row] for row in rows[0]] == [f"{row:05d}" for row in rows[0]]
    for some, pipe, worker in zip(rows, pipes, workers, strict=True):
        assert pipe.recv() == [f"{row:05d}" for row in some]
        pipe.close()
        worker.join()


def test_only_worker_processes_receive_the_names():
    with pytest.raises(RuntimeError, match="should only be shared between processes"):
        pickle.dumps(Names())


def test_the_file_is_anonymous_and_closed_with_the_last_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    names = Names()
    names.extend(["a"])
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == before + 1
    del names
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


def test_a_missing_folder_is_reported_in_one_line(tmp_path, monkeypatch):
    advice = "; check the folder for temporary files, or set TMPDIR to another folder"
    missing = tmp_path / "missing"
    monkeypatch.setattr(tempfile, "tempdir", str(missing))
    message = (
        f"{missing}: the names of the images cannot be kept in a temporary file there (No such "
        f"file or directory){advice}"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Names()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_reported_in_one_line(monkeypatch):
    full = partial(Path("/dev/full").open, "wb", buffering=0)
    monkeypatch.setattr("robustkd.data.images.filenames.TemporaryFile", lambda **_: full())
    message = (
        f"{tempfile.gettempdir()}: the names of the images cannot be kept in a temporary file "
        "there (No space left on device); free space in the folder for temporary files, or set "
        "TMPDIR to another folder"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Names().extend(["a"])


@pytest.mark.parametrize(
    ("classes", "size"), [(2, 1), (128, 1), (129, 2), (32_768, 2), (32_769, 4)]
)
def test_labels_take_the_smallest_type_that_holds_all_classes(tmp_path, classes, size):
    folders = [Folder("a", ["x", "y"], 0), Folder("b", ["z"], [classes - 1])]
    listing = list_files(tmp_path, folders, classes=classes)
    assert listing.labels.tolist() == [0, 0, classes - 1]
    assert listing.labels.dtype.itemsize == size
    assert [listing.name(row) for row in range(3)] == ["a/x", "a/y", "b/z"]
