"""Torch checkpoints in zip format: ``data.pkl`` describes the tensors, ``data/N`` has the values.

torch's own reader is never called: neither its unpickler, whose ``weights_only`` mode has been
broken before (CVE-2025-32434, CVE-2026-24747), nor its archive reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BufferedIOBase

from robustkd.teacher.untrusted import read_pickle
from robustkd.teacher.untrusted.contents import WIDTHS, Contents, Refusal, Stored, checked, quoted
from robustkd.teacher.untrusted.read_archive import Member, read_members, verify
from robustkd.teacher.untrusted.values import TensorRef
from robustkd.teacher.untrusted.wrappers import unwrap

_LITTLE = b"little"
# Members that begin with a dot are internal to torch and are never read.
_MEMBER = re.compile(r"data\.pkl|byteorder|version|data/[0-9]+|\..*")


def read_checkpoint(file: BufferedIOBase, size: int, *, values: bool = True) -> Contents:
    """Locate the tensors of a checkpoint of ``size`` bytes.

    Args:
        file: The checkpoint.
        size: Number of bytes.
        values: If True, also compare the values with their checksums.

    Raises:
        Refusal: If anything differs from what torch.save writes.
    """
    members = read_members(file)
    root = next(name for name in members if name.endswith("/data.pkl")).partition("/")[0]
    _check_members(members, root)
    _check_byte_order(file, members.get(f"{root}/byteorder"))
    pickle = _bytes(file, members[f"{root}/data.pkl"], most=read_pickle.LARGEST)
    read_pickle.scan(pickle)
    tensors, wrappers, ignored = unwrap(read_pickle.run(pickle))
    # Without values, there is nothing to verify.
    verified = set[str]() if values else set(members)
    stored = tuple(
        _stored(name, tensor, _member(file, tensor, members, root, verified))
        for name, tensor in tensors.items()
    )
    contents = Contents("torch zip", stored, wrappers=wrappers, ignored=ignored)
    return checked(contents, file_size=size)


def _check_members(members: Mapping[str, Member], root: str) -> None:
    """Raise an error for a member that torch.save does not write, such as a second pickle."""
    for name in members:
        top, _, inner = name.partition("/")
        if top != root or not _MEMBER.fullmatch(inner):
            raise Refusal(f"has a member that torch.save does not write: {quoted(name)}")


def _check_byte_order(file: BufferedIOBase, member: Member | None) -> None:
    if member is not None and _bytes(file, member, most=len(_LITTLE)) != _LITTLE:
        raise Refusal("was saved on a big-endian machine; save it as safetensors")


def _bytes(file: BufferedIOBase, member: Member, *, most: int) -> bytes:
    if member.size > most:
        raise Refusal(f"has {member.size} bytes in {quoted(member.name)}; expected at most {most}")
    verify(file, member)
    file.seek(member.offset)
    return file.read(member.size)


def _member(
    file: BufferedIOBase,
    tensor: TensorRef,
    members: Mapping[str, Member],
    root: str,
    verified: set[str],
) -> Member:
    """Return the member with a tensor's values; each member's checksum is verified once."""
    name = f"{root}/data/{tensor.storage.key}"
    if name not in members:
        raise Refusal(f"lacks the values of a tensor: no member {quoted(name)}")
    if name not in verified:
        verify(file, members[name])
        verified.add(name)
    return members[name]


def _stored(name: str, tensor: TensorRef, member: Member) -> Stored:
    width, held = WIDTHS[tensor.storage.dtype], tensor.storage.length
    if held * width != member.size:
        raise Refusal(
            f"says that {quoted(member.name)} has {held * width} bytes; it has {member.size}"
        )
    offset = member.offset + tensor.start * width
    stored = Stored(name, tensor.storage.dtype, tensor.shape, tensor.strides, offset)
    # The second condition is for strides with which values are read more than once.
    if tensor.start * width + stored.span > member.size or stored.size > member.size:
        raise Refusal(f"gives {quoted(name)} a shape that is larger than its storage")
    return stored
