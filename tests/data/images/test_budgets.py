"""Images that need excessive resources are refused by their header or decoded under limits."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import re
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import pytest
from PIL import Image, ImageFile

from robustkd.core.errors import InputError
from robustkd.data import Reading, load_folder
from robustkd.data.images import decode as decoding
from robustkd.data.images import pixels, watched
from robustkd.data.images.decode import UndecodableError, decode, dimensions
from tests.data.images.image_files import (
    many_scans,
    one_colour_webp,
    picture,
    png,
    repeated_strips,
    write_classes,
)

SIDE = 8192
SMALL = Image.fromarray(picture(0, 64))


def pgm(side: int, highest: int) -> bytes:
    return b"P5 %d %d %d\n" % (side, side, highest) + bytes(side * side)


def with_chunks(count: int) -> bytes:
    """A PNG with many empty chunks of no known kind before its pixels."""
    whole, name = png(8, 8, bytes(8 * 25)), b"abCd"
    chunk = struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name))
    return whole[:33] + chunk * count + whole[33:]


@contextmanager
def no_collection() -> Iterator[None]:
    """Switch the garbage collector off, and check that no further process is left at the end."""
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        yield
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


def read(content: bytes) -> np.ndarray:
    return decode(io.BytesIO(content), size=8, channels=3)


@pytest.fixture
def unwatched(monkeypatch):
    def start(*_: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(watched, "_ask", start)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (many_scans(SMALL, 12_000), "12,000 scans; expected at most 100"),
        (many_scans(SMALL, 12_000, several=True), "12,000 scans; expected at most 100"),
        (
            repeated_strips(2048, 16_000),
            "2048x2048 in 16,000 parts of 33,554,432,000 pixels in total: the same part is given "
            "many times",
        ),
        (pgm(2000, 254), "2000x2000: more than 1,048,576 pixels in a form that is slow to decode"),
        (
            png(8000, 8000, bytes(100), kind=6),
            "8000x8000 of 4 bytes: more than 201,326,592 bytes",
        ),
        (bytes((1 << 26) + 1), "more than 67,108,864 bytes"),
    ],
    ids=["scans", "scans of several images", "strips", "odd maxval", "channels", "bytes"],
)
def test_images_with_absurd_headers_are_refused(content, reason):
    started = time.process_time()
    with pytest.raises(UndecodableError, match=f"^{re.escape(reason)}$"):
        read(content)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("planes", [1, 2])
def test_images_in_many_strips_are_decoded(planes, unwatched):
    """TIFFs in strips of one row, with the channels of a pixel together or in one plane each."""
    pixels = picture(0, 64)
    whole = pixels if planes == 1 else pixels.transpose(2, 0, 1)
    rows = whole.reshape(-1, 64 * (3 if planes == 1 else 1))
    size = rows.shape[1]
    table = 8 + pixels.size
    sizes = table + 4 * len(rows)
    bits = sizes + 4 * len(rows)
    tags = [(256, 1, 64), (257, 1, 64), (258, 3, bits), (259, 1, 1), (262, 1, 2)]
    tags += [(273, len(rows), table), (277, 1, 3), (278, 1, 1), (279, len(rows), sizes)]
    tags += [(284, 1, planes)]
    content = b"II*\0" + struct.pack("<I", bits + 12) + rows.tobytes()
    content += b"".join(struct.pack("<I", 8 + size * row) for row in range(len(rows)))
    content += struct.pack("<I", size) * len(rows) + struct.pack("<III", 8, 8, 8)
    content += struct.pack("<H", len(tags))
    content += b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in tags)
    found = decode(io.BytesIO(content + bytes(4)), size=64, channels=3)
    assert (found == pixels.transpose(2, 0, 1)).all()


def test_a_sparse_file_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.write(png(8, 8, bytes(8 * 25))[:33] + struct.pack(">I", 2**31 - 1) + b"abCd")
        file.truncate(8 << 30)
    with path.open("rb") as file, pytest.raises(UndecodableError, match=r"^more than 67,108,864 b"):
        decode(file, size=8, channels=3)
    with path.open("rb") as file, pytest.raises(UndecodableError, match=r"^more than 67,108,864 b"):
        dimensions(file)


@pytest.mark.parametrize(
    ("content", "shade"),
    [
        (one_colour_webp(SIDE), 255),
        (png(SIDE, SIDE, bytes(SIDE * (1 + 2 * SIDE)), bits=16, kind=0), 0),
        (png(SIDE, SIDE, bytes(SIDE * (1 + 3 * SIDE))), 0),
        (pgm(600, 254), 0),
    ],
    ids=["34 bytes", "16 bits", "colour", "odd maxval"],
)
def test_a_large_image_is_decoded_in_another_process(content, shade, monkeypatch):
    def here(*_: object) -> None:
        pytest.fail("the image was decoded in this process")

    monkeypatch.setattr(Image.Image, "load", here)
    monkeypatch.setattr(ImageFile.ImageFile, "load", here)
    started = time.process_time()
    assert (read(content) == shade).all()
    assert time.process_time() - started < 1


@pytest.mark.parametrize(("channels", "squash", "resample"), [(1, False, 2), (3, True, 3)])
def test_a_large_image_is_decoded_to_the_same_pixels(channels, squash, resample, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(picture(1, 90)[:60]).save(stream, "PNG", exif=exif)
    choice = {"size": 40, "channels": channels, "crop": 0.875}
    choice |= {"squash": squash, "resample": resample}
    here = pixels.unpack(stream, watched=False, **choice)
    there = watched.unpack(stream.getvalue(), **choice)
    assert np.array_equal(here, there)
    monkeypatch.setattr(decoding, "_SMALL_BYTES", 10)
    assert dimensions(io.BytesIO(stream.getvalue())) == (90, 60)


def test_a_small_image_starts_no_process(unwatched):
    assert read(png(2048, 2048, bytes(2048 * (1 + 3 * 2048)))).shape == (3, 8, 8)


def fresh(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    """A process of its own for this test."""
    monkeypatch.setattr(watched, "_children", {})
    for name, value in limits.items():
        monkeypatch.setattr(watched, name, value)


def test_an_image_that_takes_too_long_is_damaged_and_the_next_one_is_read(monkeypatch):
    fresh(monkeypatch, MOST_SECONDS=1)
    with pytest.raises(UndecodableError, match=r"^it takes more than 1 seconds$"):
        read(with_chunks(1_500_000))
    assert (read(pgm(600, 254)) == 0).all()
    watched._end_own(os.getpid())


def test_an_image_that_takes_too_much_memory_is_damaged(monkeypatch):
    fresh(monkeypatch, MOST_MEMORY=300 << 20)
    with pytest.raises(UndecodableError, match=r"^it takes too much memory$"):
        read(png(SIDE, SIDE, bytes(SIDE * (1 + 3 * SIDE))))
    watched._end_own(os.getpid())


@pytest.mark.parametrize(
    ("sign", "kind", "message"),
    [
        (signal.SIGKILL, InputError, "the process that decodes large images was killed from out"),
        (signal.SIGSEGV, UndecodableError, r"it crashes the decoder \(signal 11\)$"),
    ],
)
def test_the_signal_decides_whether_image_or_system_is_blamed(sign, kind, message, monkeypatch):
    fresh(monkeypatch)
    assert watched.shape(png(9, 8, bytes(9))) == (9, 8)
    os.kill(watched._children[os.getpid()].process.pid, sign)
    with pytest.raises(kind, match=f"^{message}"):
        watched.shape(png(8, 8, bytes(9)))
    assert watched.shape(png(8, 9, bytes(9))) == (8, 9)
    watched._end_own(os.getpid())


def test_a_process_that_cannot_be_started_is_reported_in_one_line(monkeypatch):
    fresh(monkeypatch)
    monkeypatch.setattr(watched.sys, "executable", "/nowhere/python")
    message = r"^no process for decoding large images can be started: No such file or directory$"
    with pytest.raises(InputError, match=message):
        read(pgm(600, 254))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refused_image_of_a_folder_is_reported_as_damaged(workers, tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 30, "b": 30})
    (folder / "a" / "000.png").write_bytes(many_scans(SMALL, 101))
    data = load_folder(folder, Reading(image_size=16, workers=workers))
    message = r"\(101 scans; expected at most 100\); expected at most 1%: replace or remove them$"
    splits = ("train", "validation", "test")
    with pytest.raises(InputError, match=message):
        list(chain.from_iterable(data.batches(split, batch_size=4) for split in splits))


@contextmanager
def forked() -> Iterator[None]:
    """Let processes be forked, so that they have what is patched here."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


def test_a_worker_that_fails_is_reported_in_one_line(tmp_path, monkeypatch):
    folder = write_classes(tmp_path / "data", {"a": 30, "b": 30})
    for path in folder.glob("a/*.png"):
        path.write_bytes(pgm(600, 254))
    fresh(monkeypatch)
    monkeypatch.setattr(watched.sys, "executable", "/nowhere/python")
    data = load_folder(folder, Reading(image_size=16, workers=2))
    message = r"^no process for decoding large images can be started: No such file or directory$"
    with forked(), no_collection(), pytest.raises(InputError, match=message) as caught:
        list(data.batches("train", batch_size=4))
    assert caught.value.__cause__ is None


def test_too_many_damaged_images_end_the_worker_processes_at_once(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 30, "b": 30})
    for path in folder.glob("a/*.png"):
        path.write_bytes(b"damaged")
    data = load_folder(folder, Reading(image_size=16, workers=2))
    with no_collection(), pytest.raises(InputError, match=r"cannot be decoded") as caught:
        list(data.batches("train", batch_size=4))
    assert caught.value.__traceback__  # The error and its frames were held to the end.


def test_ignored_signals_of_children_do_not_matter(monkeypatch):
    """A shell or a scheduler may start a command with SIGCHLD ignored."""
    fresh(monkeypatch, MOST_SECONDS=1)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(UndecodableError, match=r"^it takes too long, or crashes the decoder$"):
            read(with_chunks(1_500_000))
        assert (read(pgm(600, 254)) == 0).all()
        watched._end_own(os.getpid())
    finally:
        signal.signal(signal.SIGCHLD, before)
