"""Members of the zip archive of a torch checkpoint, and the positions of their bytes.

torch.save stores every member uncompressed, one after the other, with its checksum. Nothing else
is accepted, so that no archive can expand to more than its own size, and no two readers can
disagree on its contents (:mod:`~robustkd.teacher.untrusted.zip_layout`). Members are never
extracted; names that lead outside are refused nevertheless, since they are never accidental.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase

from robustkd.teacher.untrusted.contents import Refusal, quoted
from robustkd.teacher.untrusted.zip_layout import (
    SIZES_BEHIND,
    UTF_8,
    Entry,
    read_directory,
    tiled,
)

_CHUNK = 1 << 20
_HEAD, _LONGEST = 30, 300
"""Bytes of a member before its name, and of the longest name that is looked at."""


@dataclass(frozen=True, slots=True)
class Member:
    """An uncompressed member.

    Attributes:
        name: Full name.
        offset: Position of its first byte in the file.
        size: Number of bytes.
        crc: CRC-32 as stored in the archive.
    """

    name: str
    offset: int
    size: int
    crc: int


def read_members(file: BufferedIOBase) -> Mapping[str, Member]:
    """Return all members by name; compressed, overlapping or oddly named members are refused.

    Raises:
        Refusal: If the archive differs from those that torch.save writes.
    """
    try:
        entries, directory = read_directory(file)
    except Refusal as refusal:
        # Ordinary tools add fields that torch.save does not write.
        raise (_no_checkpoint() if _packs_files(file) else refusal) from refusal
    _check_kind([entry.name for entry in entries])
    for entry in entries:
        _check_entry(entry)
    _check_names(entries)
    places = tiled(file, entries, directory)
    return {
        entry.name: Member(entry.name, place, entry.size, entry.crc)
        for entry, place in zip(entries, places, strict=True)
    }


def verify(file: BufferedIOBase, member: Member) -> None:
    """Compare a member's bytes with its checksum.

    Raises:
        Refusal: If they differ.
    """
    crc = 0
    for chunk in _chunks(file, member):
        crc = zlib.crc32(chunk, crc)
    if crc != member.crc:
        raise Refusal(
            f"has a wrong checksum in {quoted(member.name)}; it is damaged, or saved without "
            "checksums (compute_crc32=False): save it again"
        )


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
    """Recognise other formats that are zip archives."""
    inner = {name.partition("/")[2] for name in names}
    if {"config.json", "model.weights.h5"} <= set(names):
        raise Refusal("is a Keras model (.keras); if you trust it, save its weights as safetensors")
    if any(name.endswith(".npy") for name in names):
        raise Refusal("is an archive of NumPy arrays (.npz); save the weights as safetensors")
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        raise Refusal("is an exported program (.pt2), which holds code; save its state dict")
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise Refusal("is a TorchScript archive, which holds code; save its state dict")
    if "data.pkl" not in inner:
        raise _no_checkpoint()


def _no_checkpoint() -> Refusal:
    return Refusal(
        "is a zip archive without data.pkl, and therefore not a torch checkpoint; if the weights "
        "are in it, unpack it first"
    )


def _packs_files(file: BufferedIOBase) -> bool:
    """Return whether the first member is a file or folder by itself, unlike those of torch.save."""
    file.seek(0)
    head = file.read(_HEAD + _LONGEST)
    length = int.from_bytes(head[_HEAD - 4 : _HEAD - 2], "little")
    name = head[_HEAD : _HEAD + length]
    plain = name.isascii() and name.decode("latin-1").isprintable()
    return 0 < length == len(name) and plain and b"/" not in name[:-1]


def _check_entry(entry: Entry) -> None:
    name = entry.name
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or name.startswith("/") or {"", "."} & set(parts):
        raise Refusal(f"has a member with the invalid name {quoted(name)}")
    if ".." in parts or name[1:2] == ":":
        raise Refusal(f"has a member whose name leads elsewhere: {quoted(name)}")
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        raise Refusal(f"has a member that is not a plain file: {quoted(name)}")
    if entry.flags & 1:
        raise Refusal(f"has an encrypted member: {quoted(name)}")
    if entry.flags & ~(SIZES_BEHIND | UTF_8):
        raise Refusal(f"has the unsupported flag bits {entry.flags:#06x} at {quoted(name)}")
    if entry.method or entry.stored != entry.size:
        raise Refusal(
            f"has a compressed member, {quoted(name)} of {entry.size} bytes unpacked; "
            "torch.save does not compress"
        )


def _check_names(entries: Sequence[Entry]) -> None:
    """Raise an error for two names that differ only in case."""
    found: set[str] = set()
    for entry in entries:
        folded = entry.name.casefold()
        if folded in found:
            raise Refusal(f"has two members named {quoted(entry.name)}")
        found.add(folded)
