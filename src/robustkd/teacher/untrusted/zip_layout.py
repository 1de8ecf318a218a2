"""Parser of the layout of zip archives, for the one encoding that torch.save writes.

The zip format stores most properties twice, and readers differ in which of the two they use, so a
file could contain other weights for this package than for PyTorch. Therefore both copies must be
equal, and the parts must tile the file: each member begins where the previous one ends, the
directory begins where the last member ends, and there are no bytes before, between or after them.
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
"""Flags that torch.save sets: the sizes follow the member, and its name is in UTF-8."""
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
    """Directory entry of a member.

    Attributes:
        name: Full name.
        raw_name: Bytes of the name.
        common: Version, flags, method, time and date, which the local header must repeat.
        crc: CRC-32 of the content.
        stored: Size in the archive.
        size: Size after unpacking.
        mode: Unix type and permissions; 0 if there are none.
        offset: Position of the local header in the file.
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
        """Flag bits."""
        return self.common[1]

    @property
    def method(self) -> int:
        """Compression method; 0 for none."""
        return self.common[2]

    def extra(self, *, stored: int | None = None, offset: bool = True) -> bytes:
        """Return the only extra field that is allowed in the directory: numbers of 64 bits."""
        numbers = []
        if self.size >= _TOO_LARGE:
            numbers += [self.size, self.stored if stored is None else stored]
        if self.offset >= _TOO_LARGE and offset:
            numbers.append(self.offset)
        if not numbers:
            return b""
        return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def read_directory(file: BufferedIOBase) -> tuple[list[Entry], int]:
    """Return all entries in their order, and the position of the directory.

    Raises:
        Refusal: If the directory or the end record differs from those of torch.save.
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
    """Return the number of members, and position and length of the directory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    if b"PK\x05\x06" not in tail or size < _END.size:
        raise Refusal("is a damaged or cut off zip archive")
    mark, disk, first, here, count, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise Refusal("has bytes after its zip archive; it is damaged or malicious")
    stop, said = size - _END.size, (count, length, start)
    if tail[: -_END.size][-_LOCATOR.size :].startswith(b"PK\x06\x07"):
        stop, (count, length, start) = _read_end64(file, stop)
    clamped = (min(count, 0xFFFF), min(length, _TOO_LARGE), min(start, _TOO_LARGE))
    if (disk, first) != (0, 0) or here != said[0] or said != clamped:
        raise Refusal(f"describes its directory in two ways that differ; {_AGAIN}")
    if count > MOST_MEMBERS:
        raise Refusal(f"has {count} members; expected at most {MOST_MEMBERS}")
    if start + length != stop:
        raise Refusal(f"has its directory at another position than it declares; {_AGAIN}")
    return count, start, length


def _read_end64(file: BufferedIOBase, end: int) -> tuple[int, tuple[int, int, int]]:
    """Return the position of the 64-bit end record before ``end``, and its numbers."""
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
    """Return the entry at a position in the directory, and the position after it."""
    if len(directory) < place + _CENTRAL.size:
        raise Refusal(f"has fewer members in its directory than it declares; {_AGAIN}")
    mark, _, *common, crc, stored, size, named, extra, comment, disk, _, attributes, offset = (
        _CENTRAL.unpack_from(directory, place)
    )
    place += _CENTRAL.size
    raw_name = directory[place : place + named]
    found = directory[place + named : place + named + extra]
    if mark != b"PK\x01\x02" or len(raw_name) < named or len(found) < extra:
        raise Refusal(f"has fewer members in its directory than it declares; {_AGAIN}")
    name = _name(raw_name, common[1])
    if comment or disk:
        raise Refusal(f"has a comment or a further disk at {quoted(name)}; {_AGAIN}")
    # For example, PyTorch does not read a storage that is marked as a folder.
    if attributes & 0xFFFF:
        raise Refusal(f"has file attributes at {quoted(name)}; {_AGAIN}")
    size, stored, offset, left = _widened(found, size, stored, offset)
    entry = Entry(name, raw_name, tuple(common), crc, stored, size, attributes >> 16, offset)
    if left or found != entry.extra():
        raise Refusal(f"has extra fields in its directory at {quoted(name)}; {_AGAIN}")
    return entry, place + named + extra


def _widened(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int, bytes]:
    """Return size, stored size and offset, of 64 bits if needed, and the rest of the extras."""
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
    """Check that members and directory tile the file; return the position of each content.

    Args:
        file: The archive.
        entries: Entries of uncompressed members.
        directory: Position of the directory.

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
    """Check that a local header equals the directory entry; return the position after it."""
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
    """Check the extra fields of a local header: numbers of 64 bits if needed, then padding."""
    # The stored size is not known to torch.save yet; Python's zipfile omits the offset.
    streamed = 0 if entry.flags & SIZES_BEHIND else None
    wide = {entry.extra(stored=streamed), entry.extra(stored=streamed, offset=False)}
    for numbers in wide:
        padding = extra.removeprefix(numbers)
        if extra.startswith(numbers) and padding in (b"", _padding(len(padding))):
            return
    raise Refusal(f"has extra fields at its member {quoted(entry.name)}; {_AGAIN}")


def _padding(length: int) -> bytes:
    """Return the padding with which torch.save aligns the content of a member."""
    return b"FB" + max(length - 4, 0).to_bytes(2, "little") + b"Z" * (length - 4)


def _skip_sizes(file: BufferedIOBase, entry: Entry, place: int) -> int:
    """Check the data descriptor that follows a member's content, and return its length."""
    width = "Q" if entry.extra() else "I"
    said = struct.pack(f"<4sI2{width}", b"PK\x07\x08", entry.crc, entry.stored, entry.size)
    file.seek(place)
    if file.read(len(said)) != said:
        raise Refusal(f"describes its member {quoted(entry.name)} in two ways that differ")
    return len(said)
