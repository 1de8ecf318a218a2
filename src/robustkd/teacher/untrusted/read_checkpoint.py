"""Torch checkpoints in zip format: ``data.pkl`` describes the tensors, ``data/N`` has the values.

torch's own reader is never called: neither its unpickler, whose ``weights_only`` mode has been
broken before (CVE-2025-32434, CVE-2026-24747), nor its archive reader.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import BufferedIOBase

from robustkd.teacher.untrusted import read_pickle
from robustkd.teacher.untrusted.candidates import Candidate, candidates
from robustkd.teacher.untrusted.contents import WIDTHS, Contents, Refusal, Stored, checked, quoted
from robustkd.teacher.untrusted.read_archive import Member, read_members, verify
from robustkd.teacher.untrusted.values import StorageRef, TensorRef

_LITTLE = b"little"
# Members that begin with a dot are internal to torch and are never read.
_MEMBER = re.compile(r"data\.pkl|byteorder|version|data/[0-9]+|\..*")


def read_checkpoint(
    file: BufferedIOBase, size: int, *, choice: int | None = None
) -> list[Contents]:
    """Locate the tensors of each state dict in a checkpoint of ``size`` bytes.

    Args:
        file: The checkpoint.
        size: Number of bytes.
        choice: Number of the state dict whose values are compared with their checksums; None to
            skip this comparison.

    Raises:
        Refusal: If anything differs from what torch.save writes.
    """
    members = read_members(file)
    root = next(name for name in members if name.endswith("/data.pkl")).partition("/")[0]
    _check_members(members, root)
    _check_byte_order(file, members.get(f"{root}/byteorder"))
    described = members[f"{root}/data.pkl"]
    if described.size > read_pickle.LARGEST:
        raise Refusal(
            f"has {described.size} bytes in {quoted(described.name)}; expected at most "
            f"{read_pickle.LARGEST}: save the state dict alone, with tensors instead of arrays of "
            "NumPy or other objects"
        )
    pickle = _bytes(file, described, most=read_pickle.LARGEST)
    read_pickle.scan(pickle)
    found = candidates(read_pickle.run(pickle).result())

    def place(storage: StorageRef) -> Member:
        name = f"{root}/data/{storage.key}"
        if name not in members:
            raise Refusal(f"lacks the values of a tensor: no member {quoted(name)}")
        return members[name]

    contents, kept = located(found, place, "torch zip", size)
    if choice is not None and choice < len(kept):
        keys = {tensor.storage.key: tensor.storage for tensor in kept[choice].tensors.values()}
        for storage in keys.values():
            verify(file, place(storage))
    return contents


def located(
    found: Sequence[Candidate],
    place: Callable[[StorageRef], Member],
    kind: str,
    size: int,
) -> tuple[list[Contents], list[Candidate]]:
    """Locate the tensors of candidates, and leave out those that cannot be read.

    Args:
        found: State dicts in the file.
        place: Function that returns the position of a storage.
        kind: Format of the file.
        size: Bytes of the file.

    Raises:
        Refusal: If no candidate can be read; the reason is that of the first.
    """
    contents: list[Contents] = []
    kept: list[Candidate] = []
    refusals: list[Refusal] = []
    for candidate in found:
        try:
            stored = tuple(
                _stored(name, tensor, place(tensor.storage))
                for name, tensor in candidate.tensors.items()
            )
            made = Contents(
                kind, stored, wrappers=candidate.keys, ignored=candidate.ignored, ordered=True
            )
            contents.append(checked(made, file_size=size))
            kept.append(candidate)
        except Refusal as refusal:
            refusals.append(refusal)
    if not contents:
        raise refusals[0]
    return contents, kept


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
