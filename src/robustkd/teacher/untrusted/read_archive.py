"""The members of a torch checkpoint's zip archive, and where their bytes lie.

torch.save stores every member uncompressed, one after the other, with its checksum. Nothing else
is accepted, so that no archive can unfold to more than its own size, and no two readers can
disagree on what is in it. Members are never extracted: names are checked all the same, because a
name that points elsewhere is no accident.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import pairwise

from robustkd.teacher.untrusted.contents import Refusal, quoted

MOST_MEMBERS = 40_000
_LOCAL = struct.Struct("<4s5H3I2H")
_ALLOWED_FLAGS = 0x0808  # sizes behind the member, names in UTF-8: what torch.save sets
_END, _NO_COMMENT = b"PK\x05\x06", b"\0\0"
_END_SIZE = 22
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A stored member.

    Attributes:
        name: Its whole name.
        offset: Position in the file of its first byte.
        size: Its bytes.
        crc: Their CRC-32, as the archive says.
    """

    name: str
    offset: int
    size: int
    crc: int


def read_members(file: BufferedIOBase) -> Mapping[str, Member]:
    """All members by name, none of them compressed, overlapping or oddly named.

    Raises:
        Refusal: If the archive is not as torch.save writes it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries, directory = archive.infolist(), archive.start_dir
        file.seek(-_END_SIZE, os.SEEK_END)
        end = file.read()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise Refusal("is a damaged or cut off zip archive") from error
    if len(entries) > MOST_MEMBERS:
        raise Refusal(f"has {len(entries)} members; expected at most {MOST_MEMBERS}")
    if not end.startswith(_END) or not end.endswith(_NO_COMMENT):
        raise Refusal("goes on behind its zip archive; it is damaged, or made to mislead")
    _check_kind([entry.orig_filename for entry in entries])
    for entry in entries:
        _check_entry(entry)
    entries.sort(key=lambda entry: entry.header_offset)
    # An offset may be below 0, if the archive seems to have lost its beginning.
    if entries and entries[0].header_offset:
        raise Refusal("has bytes before its first member, or has lost some; it is damaged")
    members = [_locate(file, entry) for entry in entries]
    _check_order(entries, members, directory)
    return _by_name(members)


def verify(file: BufferedIOBase, member: Member) -> None:
    """Compare a member's bytes with its checksum.

    Raises:
        Refusal: If they differ.
    """
    crc = 0
    for chunk in _chunks(file, member):
        crc = zlib.crc32(chunk, crc)
    if crc != member.crc:
        raise Refusal(f"has a wrong checksum in {quoted(member.name)}; it is damaged")


def _chunks(file: BufferedIOBase, member: Member) -> Iterator[bytes]:
    file.seek(member.offset)
    left = member.size
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise Refusal(f"ends within {quoted(member.name)}; it is cut off")
        left -= len(chunk)
        yield chunk


def _check_kind(names: Sequence[str]) -> None:
    """Tell other formats apart that are zip archives as well."""
    inner = {name.partition("/")[2] for name in names}
    if any(name.endswith(".npy") for name in names):
        raise Refusal("is an archive of NumPy arrays (.npz); save the weights as safetensors")
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        raise Refusal("is an exported program (.pt2), which holds code; save its state dict")
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise Refusal("is a TorchScript archive, which holds code; save its state dict")
    if "data.pkl" not in inner:
        raise Refusal("is a zip archive without data.pkl, so no torch checkpoint")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    # The name before zipfile cuts it at a zero byte.
    name = entry.orig_filename
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or name.startswith("/") or {"", "."} & set(parts):
        raise Refusal(f"has a member with the odd name {quoted(name)}")
    if ".." in parts or name[1:2] == ":":
        raise Refusal(f"has a member whose name leads elsewhere: {quoted(name)}")
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise Refusal(f"has a member that is not a plain file: {quoted(name)}")
    if entry.flag_bits & 1:
        raise Refusal(f"has an encrypted member: {quoted(name)}")
    if entry.flag_bits & ~_ALLOWED_FLAGS:
        raise Refusal(f"has the odd flag bits {entry.flag_bits:#06x} at {quoted(name)}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise Refusal(
            f"has a compressed member, {quoted(name)} of {entry.file_size} bytes unpacked; "
            "torch.save compresses nothing"
        )


def _locate(file: BufferedIOBase, entry: zipfile.ZipInfo) -> Member:
    """Find the bytes behind a local header that must say the same as the directory."""
    name = entry.orig_filename
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        raise Refusal(f"ends before its member {quoted(name)}; it is cut off")
    mark, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack(header)
    raw_name = file.read(name_size)
    if (mark, flags, method) != (b"PK\x03\x04", entry.flag_bits, entry.compress_type) or (
        raw_name != name.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    ):
        raise Refusal(f"describes its member {quoted(name)} in two ways that differ")
    offset = entry.header_offset + _LOCAL.size + name_size + extra_size
    return Member(name, offset, entry.file_size, entry.CRC)


def _check_order(
    entries: Sequence[zipfile.ZipInfo], members: Sequence[Member], directory: int
) -> None:
    ends = [member.offset + member.size for member in members]
    for end, (member, following) in zip(ends, pairwise([*entries, None]), strict=True):
        limit = directory if following is None else following.header_offset
        if end > limit and member is not None:
            raise Refusal(f"has a member that overlaps the next: {quoted(member.orig_filename)}")


def _by_name(members: Sequence[Member]) -> Mapping[str, Member]:
    found: dict[str, Member] = {}
    for member in members:
        if member.name in found:
            raise Refusal(f"has two members named {quoted(member.name)}")
        found[member.name] = member
    return found
