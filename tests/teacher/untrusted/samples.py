"""Valid files, and tools to take them apart and to reassemble them incorrectly."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from robustkd import data
from robustkd.models import Spec, build, pixel_statistics
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

SPEC = Spec("wrn-10-1", classes=10, image_shape=(1, 16, 16))


def weights(**changes: Tensor | None) -> dict[str, Tensor]:
    """A plain state dict of wrn-10-1; None takes a key away, dots are written as ``__``."""
    state = dict(build(SPEC, seed=0).network.state_dict())
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


def saved(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    """What torch.save wrote before PyTorch 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def legacy_parts(file: bytes) -> list[bytes]:
    """The five pickles of a file in the legacy format, and what follows them."""
    head, parts, begin = io.BytesIO(file), [], 0
    for _ in range(5):
        for _ in pickletools.genops(head):
            pass
        parts.append(file[begin : head.tell()])
        begin = head.tell()
    return [*parts, file[begin:]]


def members(archive: bytes) -> dict[str, bytes]:
    """The members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(
    content: Mapping[str, bytes] | Iterable[tuple[str | zipfile.ZipInfo, bytes]],
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip archive of these members, repeated names and odd ones included."""
    pairs = content.items() if isinstance(content, Mapping) else content
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, data in pairs:
            archive.writestr(name, data)
    return buffer.getvalue()


def checkpoint(program: bytes, **storages: bytes) -> bytes:
    """A checkpoint around a hand-written pickle; ``_0`` is the member ``data/0``."""
    data = {f"archive/data/{name[1:]}": values for name, values in storages.items()}
    notes = {"archive/byteorder": b"little", "archive/version": b"3\n"}
    return zipped({"archive/data.pkl": program, **notes, **data})


NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def tensor_program(
    *,
    length: int = 4,
    start: int = 0,
    shape: bytes = b"K\x04\x85",
    strides: bytes = b"K\x01\x85",
    rest: bytes = b"\x89" + NO_HOOKS,
) -> bytes:
    """The pickle of ``{"w": a view of storage 0}``; shape and strides are pickled tuples.

    ``rest`` are the arguments behind them: requires_grad, and the hooks.
    """
    storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    number = b"J" + struct.pack("<i", length)
    return (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n"
        + storage
        + number
        + b"tQJ"
        + struct.pack("<i", start)
        + shape
        + strides
        + rest
        + b"tRs."
    )


def safetensors(header: Mapping[str, object] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(*shape: int, dtype: str = "F32", begin: int = 0, end: int) -> dict[str, object]:
    """A tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


class Payload:
    """Something whose unpickling calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def touching(canary: Path) -> Payload:
    """A payload that leaves a file behind when it runs."""
    return Payload(os.system, f"touch '{canary}'")


def text_pickle(canary: Path) -> bytes:
    """The same in protocol 0, which has no mark at its beginning."""
    return pickle.dumps(touching(canary), protocol=0)


def trained() -> dict[str, Tensor]:
    """A plain state dict of wrn-10-1 that knows the digits."""
    clean = data.load("digits", train=300, validation=60, test=50)
    mean, std = pixel_statistics(clean)
    model = build(replace(SPEC, mean=mean, std=std), seed=1)
    fit(Supervised(model), clean, epochs=5, batch_size=32)
    return dict(model.network.state_dict())
