"""Torch checkpoints in the format before PyTorch 1.6.

Newer versions write it with ``_use_new_zipfile_serialization=False``. A file consists of five
pickles, one after the other (a magic number, the version, the machine, the saved
value, and the list of storages), and then the storages: eight bytes with the number of values,
then the values. Only what ``torch.save`` writes on little-endian machines is accepted.
"""

from __future__ import annotations

from io import BufferedIOBase, BytesIO

from robustkd.teacher.untrusted import read_pickle
from robustkd.teacher.untrusted.candidates import candidates
from robustkd.teacher.untrusted.contents import WIDTHS, Contents, Refusal, quoted
from robustkd.teacher.untrusted.read_archive import Member
from robustkd.teacher.untrusted.read_checkpoint import located
from robustkd.teacher.untrusted.values import StorageRef

FORMAT = "torch legacy"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT = 8


def read_legacy(
    file: BufferedIOBase,
    size: int,
    *,
    choice: int | None = None,  # noqa: ARG001 (there are no checksums)
) -> list[Contents]:
    """Locate the tensors of each state dict in a checkpoint of ``size`` bytes.

    Args:
        file: The checkpoint.
        size: Number of bytes.
        choice: Ignored, because the format has no checksums.

    Raises:
        Refusal: If anything differs from what torch.save writes.
    """
    head = BytesIO(file.read(min(size, read_pickle.LARGEST)))
    magic, version, machine = (_plain(head) for _ in range(3))
    if magic != _MAGIC or version != _VERSION or not isinstance(machine, dict):
        raise Refusal("does not begin as a checkpoint in the legacy format; it is damaged")
    if machine.get("little_endian") is not True:
        raise Refusal("was saved on a big-endian machine; save it as safetensors")
    pickle = _next(head)
    read_pickle.scan(pickle)
    saved = read_pickle.run(pickle, legacy=True)
    keys = _plain(head)
    places = _places(file, saved.storages(), keys, begin=head.tell(), size=size)
    found = candidates(saved.result())
    contents, _ = located(found, lambda storage: places[storage.key], FORMAT, size)
    return contents


def _plain(head: BytesIO) -> object:
    """Return the value of the next pickle, which contains neither tensors nor objects."""
    pickle = _next(head)
    read_pickle.scan(pickle)
    return read_pickle.run(pickle).result()


def _next(head: BytesIO) -> bytes:
    """Return the next pickle, and move the position of the file to its end."""
    begin = head.tell()
    try:
        for number, _ in enumerate(read_pickle.instructions(head)):
            if number == read_pickle.MOST_OPERATIONS:
                raise Refusal(f"has more than {read_pickle.MOST_OPERATIONS} pickle instructions")
    except (ValueError, IndexError):
        # The caller checks the rest of the file, and reports a forbidden name rather than damage.
        head.seek(0, 2)
    return head.getbuffer()[begin : head.tell()].tobytes()


def _places(
    file: BufferedIOBase, storages: dict[str, StorageRef], keys: object, *, begin: int, size: int
) -> dict[str, Member]:
    """Return the positions of the storages, which must fill the rest of the file."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refusal("has an invalid list of storages; it is damaged")
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise Refusal("lists other storages than its tensors have; it is damaged")
    places: dict[str, Member] = {}
    for key in keys:
        file.seek(begin)
        count = int.from_bytes(file.read(_COUNT), "little")
        held = storages[key].length
        if count != held:
            raise Refusal(f"says that storage {quoted(key)} has {held} values; it has {count}")
        length = held * WIDTHS[storages[key].dtype]
        places[key] = Member(key, begin + _COUNT, length, 0)
        begin += _COUNT + length
        if begin > size:
            raise Refusal(f"ends within the storage {quoted(key)}; it is cut off")
    if begin != size:
        raise Refusal("continues after its storages")
    return places
