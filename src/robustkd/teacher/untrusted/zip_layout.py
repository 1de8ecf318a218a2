"""The layout of a zip archive, in the one encoding that torch.save writes.

The zip format says most things twice, and its readers differ in which of the two they believe: a
file could show us other weights than PyTorch. So an archive is read here from its end to its
beginning, every fact that stands in two places must be the same in both, and the parts must tile
the file: each member begins where the one before it ended, the directory begins where the last
one ended, and nothing comes before, between or behind them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase

from robustkd.teacher.untrusted.contents import Refusal, quoted

MOST_MEMBERS = 40_000
SIZES_BEHIND, UTF_8 = 0x0008, 0x0800
"""The flags that torch.save sets: the sizes stand behind the member; its name is in UTF-8."""
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LONGEST_COMMENT = 0xFFFF
_TOO_LARGE = 0xFFFFFFFF
_AGAIN = "give the file that torch.save wrote"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the directory says of a member.

    Attributes:
        name: Its whole name.
        raw_name: The name's bytes.
        common: Version, flags, method, time and date, which the local header must repeat.
        crc: CRC-32 of its bytes.
        stored: Its bytes as they lie in the archive.
        size: Its bytes once unpacked.
        mode: Its kind and permissions, as of Unix; 0 where they are not said.
        offset: Position in the file of its local header.
    """

    name: str
    raw_name: bytes
    common: tuple[int, int, int, int, int]
    crc: int
    stored: int
    size: int
    mode: int
    offset: int

    @property
    def flags(self) -> int:
        """Its flag bits."""
        return self.common[1]

    @property
    def method(self) -> int:
        """How it is compressed; 0 for not at all."""
        return self.common[2]

    def extra(self, *, stored: int | None = None, offset: bool = True) -> bytes:
        """The only extra field that it may have in the directory: numbers that need 64 bits."""
        numbers = []
        if self.size >= _TOO_LARGE:
            numbers += [self.size, self.stored if stored is None else stored]
        if self.offset >= _TOO_LARGE and offset:
            numbers.append(self.offset)
        if not numbers:
            return b""
        return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def read_directory(file: BufferedIOBase) -> tuple[list[Entry], int]:
    """All entries in their order, and where the directory begins.

    Raises:
        Refusal: If the directory or the end behind it is not as torch.save writes it.
    """
    count, start, length = _read_end(file)
    file.seek(start)
    directory = file.read(length)
    entries, place = [], 0
    for _ in range(count):
        entry, place = _entry(directory, place)
        entries.append(entry)
    if place != length:
        raise Refusal(f"has a directory of {length} bytes, of which {place} are read; {_AGAIN}")
    return entries, start


def _read_end(file: BufferedIOBase) -> tuple[int, int, int]:
    """How many members there are, where the directory begins, and its length."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    if b"PK\x05\x06" not in tail or size < _END.size:
        raise Refusal("is a damaged or cut off zip archive")
    mark, disk, first, here, count, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise Refusal("goes on behind its zip archive; it is damaged, or made to mislead")
    stop, said = size - _END.size, (count, length, start)
    if tail[: -_END.size][-_LOCATOR.size :].startswith(b"PK\x06\x07"):
        stop, (count, length, start) = _read_end64(file, stop)
    clamped = (min(count, 0xFFFF), min(length, _TOO_LARGE), min(start, _TOO_LARGE))
    if (disk, first) != (0, 0) or here != said[0] or said != clamped:
        raise Refusal(f"describes its directory in two ways that differ; {_AGAIN}")
    if count > MOST_MEMBERS:
        raise Refusal(f"has {count} members; expected at most {MOST_MEMBERS}")
    if start + length != stop:
        raise Refusal(f"has its directory elsewhere than it says; {_AGAIN}")
    return count, start, length


def _read_end64(file: BufferedIOBase, end: int) -> tuple[int, tuple[int, int, int]]:
    """The same numbers with 64 bits, and where they begin; ``end`` is where the end begins."""
    place = end - _LOCATOR.size - _END64.size
    file.seek(max(place, 0))
    block = file.read(_END64.size + _LOCATOR.size)
    if place < 0 or block[_END64.size :] != _LOCATOR.pack(b"PK\x06\x07", 0, place, 1):
        raise Refusal(f"points at a second directory; {_AGAIN}")
    mark, rest, _, _, disk, first, here, count, length, start = _END64.unpack_from(block)
    if (mark, rest, disk, first, here) != (b"PK\x06\x06", _END64.size - 12, 0, 0, count):
        raise Refusal(f"describes its directory in two ways that differ; {_AGAIN}")
    return place, (count, length, start)


def _entry(directory: bytes, place: int) -> tuple[Entry, int]:
    """The entry at a place in the directory, and the place behind it."""
    if len(directory) < place + _CENTRAL.size:
        raise Refusal(f"has a directory of fewer members than it counts; {_AGAIN}")
    mark, _, *common, crc, stored, size, named, extra, comment, disk, _, attributes, offset = (
        _CENTRAL.unpack_from(directory, place)
    )
    place += _CENTRAL.size
    raw_name = directory[place : place + named]
    found = directory[place + named : place + named + extra]
    if mark != b"PK\x01\x02" or len(raw_name) < named or len(found) < extra:
        raise Refusal(f"has a directory of fewer members than it counts; {_AGAIN}")
    name = _name(raw_name, common[1])
    if comment or disk:
        raise Refusal(f"has a comment or a further disk at {quoted(name)}; {_AGAIN}")
    size, stored, offset, left = _widened(found, size, stored, offset)
    entry = Entry(name, raw_name, tuple(common), crc, stored, size, attributes >> 16, offset)
    if left or found != entry.extra():
        raise Refusal(f"has extra fields in its directory at {quoted(name)}; {_AGAIN}")
    return entry, place + named + extra


def _widened(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int, bytes]:
    """Size, stored size and offset; the 64-bit ones where 32 bits are too few; and what is left."""
    numbers = extra[4:] if extra[:2] == b"\x01\0" else b""
    found = []
    for number in (size, stored, offset):
        if number == _TOO_LARGE and len(numbers) >= 8:
            number, numbers = int.from_bytes(numbers[:8], "little"), numbers[8:]
        found.append(number)
    return found[0], found[1], found[2], numbers


def _name(raw: bytes, flags: int) -> str:
    encoding = "utf-8" if flags & UTF_8 else "ascii"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        shown = quoted(raw.decode("latin-1"))
        raise Refusal(f"has a member whose name is not {encoding}: {shown}") from error


def tiled(file: BufferedIOBase, entries: Sequence[Entry], directory: int) -> list[int]:
    """Where each member's bytes begin, once members and directory tile the file.

    Args:
        file: The archive.
        entries: Of stored members, which have as many bytes in the archive as unpacked.
        directory: Where the directory begins.

    Raises:
        Refusal: If there is a gap or an overlap, or a local header differs from the directory.
    """
    places, reached = [], 0
    for entry in entries:
        if entry.offset > reached:
            raise Refusal(f"has bytes before its member {quoted(entry.name)}; {_AGAIN}")
        if entry.offset < reached:
            raise Refusal(f"has a member that overlaps another: {quoted(entry.name)}")
        begin = _skip_header(file, entry)
        reached = begin + entry.stored
        if reached > directory:
            raise Refusal(f"has a member that overlaps the next: {quoted(entry.name)}")
        if entry.flags & SIZES_BEHIND:
            reached += _skip_sizes(file, entry, reached)
        places.append(begin)
    if reached != directory:
        raise Refusal(f"has bytes between its last member and its directory; {_AGAIN}")
    return places


def _skip_header(file: BufferedIOBase, entry: Entry) -> int:
    """Where the bytes behind a local header begin, which must say what the directory says."""
    file.seek(entry.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        raise Refusal(f"ends before its member {quoted(entry.name)}; it is cut off")
    *_, named, extra_size = map(int, _LOCAL.unpack(header)[1:])
    numbers = (entry.crc, min(entry.stored, _TOO_LARGE), min(entry.size, _TOO_LARGE))
    if entry.flags & SIZES_BEHIND:
        numbers = (0, 0, 0)
    said = _LOCAL.pack(b"PK\x03\x04", *entry.common, *numbers, len(entry.raw_name), extra_size)
    if header != said or file.read(named) != entry.raw_name:
        raise Refusal(f"describes its member {quoted(entry.name)} in two ways that differ")
    _check_extra(file.read(extra_size), entry)
    return entry.offset + _LOCAL.size + named + extra_size


def _check_extra(extra: bytes, entry: Entry) -> None:
    """A local header's extra fields: numbers of 64 bits where they are needed, then padding."""
    # torch.save does not know the stored size yet; Python's zipfile leaves the offset out.
    streamed = 0 if entry.flags & SIZES_BEHIND else None
    wide = {entry.extra(stored=streamed), entry.extra(stored=streamed, offset=False)}
    for numbers in wide:
        padding = extra.removeprefix(numbers)
        if extra.startswith(numbers) and padding in (b"", _padding(len(padding))):
            return
    raise Refusal(f"has extra fields at its member {quoted(entry.name)}; {_AGAIN}")


def _padding(length: int) -> bytes:
    """With which torch.save brings a member's bytes to a multiple of 64, or of another number."""
    return b"FB" + max(length - 4, 0).to_bytes(2, "little") + b"Z" * (length - 4)


def _skip_sizes(file: BufferedIOBase, entry: Entry, place: int) -> int:
    """Length of what stands behind a member's bytes: its checksum and sizes once more."""
    width = "Q" if entry.extra() else "I"
    said = struct.pack(f"<4sI2{width}", b"PK\x07\x08", entry.crc, entry.stored, entry.size)
    file.seek(place)
    if file.read(len(said)) != said:
        raise Refusal(f"describes its member {quoted(entry.name)} in two ways that differ")
    return len(said)
