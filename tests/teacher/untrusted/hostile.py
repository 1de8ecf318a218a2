"""Every kind of hostile teacher file that we know: how to make it, and how it is refused.

One table: the tests run over it, and ``tools/hostile_table.py`` writes the rows of
``docs/results/hostile-files.md`` from it.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save

from robustkd.teacher.untrusted import sandbox
from tests.teacher.untrusted.samples import (
    Payload,
    checkpoint,
    entry,
    legacy,
    legacy_parts,
    members,
    safetensors,
    saved,
    tensor_program,
    text_pickle,
    touching,
    weights,
    zipped,
)


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        make: Puts it at a path; its second argument is the canary that no payload may touch.
        says: A part of the one line in which it is refused.
        name: Its name.
        around: What happens while it is read.
    """

    make: Callable[[Path, Path], object]
    says: str
    name: str = "teacher.pt"
    around: Callable[[Path], AbstractContextManager[object]] = nullcontext


def _bytes(content: bytes | Callable[[], bytes], says: str, **others: object) -> Case:
    def make(path: Path, _: Path) -> None:
        path.write_bytes(content() if callable(content) else content)

    return Case(make, says, **others)


def _payload(content: Callable[[Path], bytes], says: str, **others: object) -> Case:
    return Case(lambda path, canary: path.write_bytes(content(canary)), says, **others)


def _saved(content: Callable[[Path], object], says: str) -> Case:
    return _payload(lambda canary: saved(content(canary)), says)


def _made(make: Callable[[Path], object], says: str) -> Case:
    """Something that is no file of bytes, or nothing at all."""
    return Case(lambda path, _: make(path), says)


def _legacy(part: int, canary: Path) -> bytes:
    """A file in the legacy format with a payload in one of its pickles, and nothing else wrong."""
    parts = legacy_parts(legacy(weights()))
    parts[part] = pickle.dumps([touching(canary)], protocol=2)
    return b"".join(parts)


def _legacy_but(part: int, change: Callable[[bytes], bytes]) -> bytes:
    parts = legacy_parts(legacy({"w": torch.arange(4.0)}))
    parts[part] = change(parts[part])
    return b"".join(parts)


def _cut_pickle(canary: Path) -> bytes:
    program = pickle.dumps([touching(canary), "x" * 100], protocol=2)
    return checkpoint(program[:-50])


_CODE = "names code that no state dict needs"
_NO_SENSE = "has an invalid pickle: "
_TOO_LARGE = "bytes; expected at most 72104448 for its architecture: save the state dict alone"
_RAW = "is a raw pickle"

PICKLES = {
    "pickle calls os.system": _saved(
        lambda canary: {"state_dict": weights(), "x": touching(canary)}, f"{_CODE} ('posix.system')"
    ),
    "pickle calls builtins.eval": _saved(
        lambda canary: {"x": Payload(eval, f"open({str(canary)!r}, 'w')")},
        f"{_CODE} ('__builtin__.eval')",
    ),
    "pickle calls builtins.getattr": _saved(
        lambda _: {"x": Payload(getattr, "", "join")}, f"{_CODE} ('__builtin__.getattr')"
    ),
    "pickle calls pip.main": _bytes(
        checkpoint(b"\x80\x02cpip\nmain\n]X\x04\0\0\0helpa\x85R."), f"{_CODE} ('pip.main')"
    ),
    "protocol 0 posix.system named .bin": _payload(text_pickle, _RAW, name="teacher.bin"),
    "protocol 0 posix.system named .safetensors": _payload(
        text_pickle, _RAW, name="teacher.safetensors"
    ),
    "raw pickle of protocol 4": _payload(lambda c: pickle.dumps(touching(c), protocol=4), _RAW),
    "legacy torch.save of a payload": _payload(
        lambda c: legacy({"w": touching(c)}), f"{_CODE} ('posix.system')"
    ),
    "legacy, payload as its state dict": _payload(partial(_legacy, 3), f"{_CODE} ('posix.system')"),
    "legacy, payload in its notes on the machine": _payload(
        partial(_legacy, 2), f"{_CODE} ('posix.system')"
    ),
    "legacy, payload in its list of storages": _payload(
        partial(_legacy, 4), f"{_CODE} ('posix.system')"
    ),
    "legacy, payload before a truncated tail": _payload(
        lambda c: _legacy(3, c)[:-100], f"{_CODE} ('posix.system')"
    ),
    "legacy, payload behind its end": _payload(
        lambda c: legacy(weights()) + pickle.dumps(touching(c)), "continues after its storages"
    ),
    "legacy, list of storages without one": _bytes(
        lambda: _legacy_but(4, lambda _: b"\x80\x02]."), "lists other storages than its tensors"
    ),
    "legacy, storage of another length": _bytes(
        lambda: _legacy_but(5, lambda part: b"\5" + part[1:]), "has 4 values; it has 5"
    ),
    "legacy, storage of 2^63 values": _bytes(
        lambda: _legacy_but(5, lambda part: b"\0" * 7 + b"\x80" + part[8:]),
        "has 4 values; it has 9223372036854775808",
    ),
    "legacy, cut off": _bytes(lambda: legacy(weights())[:-1], "it is cut off"),
    "legacy, big-endian": _bytes(
        lambda: _legacy_but(2, lambda part: part.replace(b"\x88", b"\x89")),
        "was saved on a big-endian machine",
    ),
    "legacy, a million instructions": _bytes(
        lambda: _legacy_but(3, lambda _: b"\x80\x02" + b"}0" * 600_000 + b"}."),
        "has more than 1000000 pickle instructions",
    ),
    "raw pickle with the magic number behind": _payload(
        lambda c: pickle.dumps(touching(c), protocol=2) + legacy(weights()), _RAW
    ),
    "payload before a truncated tail": _payload(_cut_pickle, f"{_CODE} ('posix.system')"),
    "name on the stack (STACK_GLOBAL)": _bytes(
        checkpoint(b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
        f"{_CODE} ('os.system')",
    ),
    "text in an encoding that must be loaded": _bytes(
        checkpoint(b"\x80\x02Vx\n."),
        "has pickle instructions that torch.save does not write (UNICODE)",
    ),
    "pickle nested in a storage": _payload(
        lambda canary: checkpoint(tensor_program(), _0=pickle.dumps(touching(canary))),
        "says that 'archive/data/0' has 16 bytes; it has ",
    ),
    "second pickle under another name": _payload(
        lambda canary: zipped(
            members(saved(weights())) | {"archive/more.pkl": pickle.dumps(touching(canary))}
        ),
        "has a member that torch.save does not write: 'archive/more.pkl'",
    ),
    "second pickle behind the first": _payload(
        lambda canary: checkpoint(b"\x80\x02}." + pickle.dumps(touching(canary), protocol=2)),
        "has a pickle that continues after its end",
    ),
    "memo read before it is written": _bytes(checkpoint(b"\x80\x02h\x05."), _NO_SENSE),
    "memo doubles a list 40 times": _bytes(
        lambda: checkpoint(b"\x80\x02]q\0" + b"]q\1(h\0h\0eq\0" * 40 + b"."),
        "has an invalid pickle: STOP",
    ),
    "memo doubles a key 40 times": _bytes(
        lambda: checkpoint(b"\x80\x02}K\1\x85q\0" + b"h\0\x86q\0" * 40 + b"K\1s."),
        _NO_SENSE + "a key that is neither text nor a number",
    ),
    "SETITEM on a non-dict": _bytes(
        checkpoint(b"\x80\x02]K\1K\2s."), _NO_SENSE + "SETITEM on something that is not a dict"
    ),
    "BUILD on a tensor": _bytes(
        checkpoint(tensor_program()[:-2] + b"}bs.", _0=bytes(16)), _NO_SENSE + "BUILD"
    ),
    "REDUCE of a name that is a type": _bytes(
        checkpoint(b"\x80\x02ctorch\nFloatStorage\n)R."), _NO_SENSE + "a call of torch.FloatStorage"
    ),
    "stack that is empty": _bytes(checkpoint(b"\x80\x02R."), _NO_SENSE + "an empty stack"),
    "marks 100,000 deep": _bytes(
        lambda: checkpoint(b"\x80\x02" + b"(" * 100_000 + b"."), "nested deeper than 200"
    ),
    "pickle of 4,000,000 instructions": _bytes(
        lambda: checkpoint(b"\x80\x02" + b"}" * (4 * 10**6) + b"."),
        "has more than 1000000 pickle instructions",
    ),
    "pickle of 60 MB": _bytes(
        lambda: checkpoint(b"\x80\x02" + b"N" * (6 * 10**7) + b"."), "expected at most 16777216"
    ),
    "pickle of 100 MB": _bytes(lambda: checkpoint(b"\x80\x02" + b"N" * 10**8 + b"."), _TOO_LARGE),
    "negated view": _saved(
        lambda _: {n: torch._neg_view(t) for n, t in weights().items()},
        "has a tensor with further properties, such as the negative",
    ),
    "no state dict": _saved(lambda _: {"epoch": 3, "lr": 0.1}, "holds no state dict"),
    "object of a class that has no weights": _saved(
        lambda _: argparse.Namespace(w=3),
        "holds an object of the class 'argparse.Namespace' without tensors",
    ),
    "pickle calls torch.hub.load": _bytes(
        checkpoint(b"\x80\x02ctorch.hub\nload\nX\1\0\0\0a\x85R."), f"{_CODE} ('torch.hub.load')"
    ),
    "pickle calls a function of numpy that runs code": _bytes(
        checkpoint(b"\x80\x02cnumpy.testing._private.utils\nrunstring\nX\1\0\0\0a}\x86R."),
        f"{_CODE} ('numpy.testing._private.utils.runstring')",
    ),
    "pickle calls torch.jit's execWrapper": _bytes(
        checkpoint(b"\x80\x02ctorch.jit.unsupported_tensor_ops\nexecWrapper\n)R."),
        f"{_CODE} ('torch.jit.unsupported_tensor_ops.execWrapper')",
    ),
    "pickle calls runpy through functools.partial": _bytes(
        checkpoint(b"\x80\x02cfunctools\npartial\ncrunpy\n_run_code\n\x85R."),
        f"{_CODE} ('runpy._run_code')",
    ),
    "pickle makes a subprocess.Popen": _bytes(
        checkpoint(b"\x80\x02csubprocess\nPopen\n)\x81."), f"{_CODE} ('subprocess.Popen')"
    ),
    "name of a module within another": _bytes(
        checkpoint(b"\x80\x04\x8c\x05torch\x8c\x0eos.PosixSystem\x93)R."),
        f"{_CODE} ('torch.os.PosixSystem')",
    ),
    "module name with a blank": _bytes(
        checkpoint(b"\x80\x04\x8c\x06os sys\x8c\x04Path\x93."), f"{_CODE} ('os.sys.Path')"
    ),
    "state for a name": _bytes(
        checkpoint(b"\x80\x02ctorch\nfloat32\n}b."), _NO_SENSE + "BUILD on something"
    ),
    "integer of 8 million bits": _bytes(
        lambda: checkpoint(b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."),
        _NO_SENSE + "an integer of 7999999 bits",
    ),
    "set of sets in sets": _bytes(
        lambda: checkpoint(b"\x80\x04\x8fq\0" + b"\x8f(h\0h\0\x90q\0" * 40 + b"."), _NO_SENSE
    ),
    "frozen set doubled as a key": _bytes(
        lambda: checkpoint(b"\x80\x04}(\x91q\0" + b"0(h\0h\0\x91q\0" * 40 + b"K\1s."),
        _NO_SENSE + "a key that is neither",
    ),
    "list of 1,000 pairs given 2,000 times": _bytes(
        lambda: checkpoint(
            b"\x80\x02]q\0("
            + b"".join(b"](X\1\0\0\0aNe" for _ in range(1000))
            + b"e"
            + b"ccollections\nOrderedDict\nh\0\x85R0" * 2000
            + b"."
        ),
        "has a pickle of more than 1000000 pairs",
    ),
}


def _damaged() -> bytes:
    """A checkpoint that fits, with one stored value changed."""
    whole = saved(weights(head__bias=torch.full((10,), 0.12345)))
    before = struct.pack("<10f", *[0.12345] * 10)
    assert whole.count(before) == 1
    return whole.replace(before, b"\1" + before[1:])


def _flagged(bit: int) -> bytes:
    whole = bytearray(zipped(members(saved({"w": torch.arange(4.0)}))))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(mark) + place] |= bit
    return bytes(whole)


def _larger_than_its_archive() -> bytes:
    """A stored member that claims 4 GB, in the local header and in the directory."""
    whole = bytearray(zipped({"archive/data.pkl": b"\x80\x02}."}))
    for mark, place in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        start = whole.index(mark) + place
        whole[start : start + 8] = struct.pack("<2I", 2**32 - 2, 2**32 - 2)
    return bytes(whole)


def _overlapping() -> bytes:
    """A directory whose every entry points at the same bytes."""
    one = zipped({"archive/data.pkl": b"\x80\x02}."})
    start = one.index(b"PK\x01\x02")
    end = one.index(b"PK\x05\x06")
    entries = b"".join(
        one[start:end].replace(b"data.pkl", b"data/%03d" % place) for place in range(100)
    )
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 101, 101, len(entries) + end - start, start, 0)
    return one[:end] + entries + tail


def _link() -> bytes:
    info = zipfile.ZipInfo("archive/data/9")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return zipped([*members(saved(weights())).items(), (info, b"/etc/passwd")])


def _tar(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return buffer.getvalue()


def _with(name: str) -> bytes:
    return zipped([*members(saved({"w": torch.ones(2)})).items(), (name, b"")])


ARCHIVES = {
    "zip member with a bad CRC": _bytes(
        _damaged,
        "has a wrong checksum in 'archive/data/",
    ),
    "zip member marked as encrypted": _bytes(lambda: _flagged(1), "has an encrypted member"),
    "zip member with odd flag bits": _bytes(
        lambda: _flagged(0x20), "has the unsupported flag bits 0x0020"
    ),
    "zip with two data.pkl": _bytes(
        lambda: zipped([("archive/data.pkl", b"\x80\x02}.")] * 2),
        "has two members named 'archive/data.pkl'",
    ),
    "zip bomb by ratio": _bytes(
        lambda: zipped(
            {"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(10**8)},
            zipfile.ZIP_DEFLATED,
        ),
        "has a compressed member",
    ),
    "zip bomb by claimed size": _bytes(
        _larger_than_its_archive, "has a member that overlaps the next: 'archive/data.pkl'"
    ),
    "zip bomb by overlap": _bytes(
        _overlapping, "has a member that overlaps another: 'archive/data/000'"
    ),
    "zip member named ../": _bytes(lambda: _with("archive/../../x"), "name leads elsewhere"),
    "zip member with an absolute name": _bytes(
        lambda: _with("/etc/x"), "has a member with the invalid name"
    ),
    "zip member that is a symlink": _bytes(_link, "has a member that is not a plain file"),
    "zip with bytes before it": _bytes(
        lambda: b"PK\x03\x04" + saved({"w": torch.ones(2)}), "points at a second directory"
    ),
    "zip with bytes behind it": _bytes(
        lambda: saved({"w": torch.ones(2)}) + b"\0", "has bytes after its zip archive"
    ),
    "zip cut off": _bytes(lambda: saved(weights())[:-100], "is a damaged or cut off zip archive"),
    "zip of 50,000 members": _bytes(
        lambda: zipped((f"a/data/{place}", b"") for place in range(50_000)),
        "has 50000 members; expected at most 40000",
    ),
    "legacy tar": _bytes(lambda: _tar(tarfile.REGTYPE), "is a tar archive"),
    "tar with a symlink": _bytes(lambda: _tar(tarfile.SYMTYPE), "is a tar archive"),
    "tar with a hardlink": _bytes(lambda: _tar(tarfile.LNKTYPE), "is a tar archive"),
    "TorchScript": _bytes(lambda: _with("archive/constants.pkl"), "is a TorchScript archive"),
    "exported program (.pt2)": _bytes(
        lambda: zipped({"m/archive_format": b"pt2"}), "is an exported program (.pt2)"
    ),
    "NumPy archive (.npz)": _bytes(lambda: zipped({"w.npy": b""}), "is an archive of NumPy arrays"),
    "HDF5 (.h5)": _bytes(b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
}


def _sparse(path: Path, head: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (100 << 30))


def _many(count: int) -> bytes:
    return safetensors({f"{place}": entry(0, dtype="U8", end=0) for place in range(count)})


_W = entry(2, end=8)
SAFETENSORS = {
    "safetensors header longer than the file": _bytes(
        struct.pack("<Q", 2**40) + b'{"w":', "declares a header of 1099511627776 bytes and has 13"
    ),
    "safetensors header of 60 MB": _bytes(
        lambda: safetensors(b"{" + b" " * (6 * 10**7) + b"}"), "expected at most 4194304"
    ),
    "safetensors header of 100 MB": _bytes(
        lambda: safetensors(b"{" + b" " * 10**8 + b"}"), _TOO_LARGE
    ),
    "safetensors of 100 GiB, sparse": _made(
        lambda path: _sparse(path, safetensors({"w": entry(25 << 30, end=100 << 30)})), _TOO_LARGE
    ),
    "zeros of 100 GiB, sparse": _made(
        lambda path: _sparse(path, b""), "begins with 0000000000000000, which is neither"
    ),
    "safetensors of 100,000 tensors": _bytes(lambda: _many(100_000), "has a header of "),
    "safetensors of 20,000 tensors": _bytes(
        lambda: _many(20_000), "holds 20000 tensors; expected at most 10000"
    ),
    "safetensors offsets overlap": _bytes(
        safetensors({"a": _W, "b": entry(2, begin=4, end=12)}, bytes(12)), "has an overlap with"
    ),
    "safetensors offsets leave a gap": _bytes(
        safetensors({"a": _W, "b": entry(2, begin=12, end=20)}, bytes(20)), "has a gap before"
    ),
    "safetensors shape overflows": _bytes(
        safetensors({"a": entry(2**32, 2**32, 4, end=8)}, bytes(8)), "an impossible shape"
    ),
    "safetensors shape is negative": _bytes(
        safetensors({"a": entry(-2, -1, end=8)}, bytes(8)), "gives 'a' an impossible shape (-2, -1)"
    ),
    "safetensors keys repeat": _bytes(
        safetensors(b'{"a":1,"a":2}'), "has the key 'a' twice in its header"
    ),
    "safetensors unknown dtype": _bytes(
        safetensors({"a": entry(2, dtype="C64", end=16)}, bytes(16)),
        "the type 'C64', which is not read",
    ),
    "safetensors trailing bytes": _bytes(safetensors({"a": _W}, bytes(9)), "has further bytes: "),
    "safetensors cut off": _bytes(lambda: save({"w": torch.ones(9)})[:-1], "is cut off: "),
    "safetensors header nested 100,000 deep": _bytes(
        safetensors(b'{"a":' + b"[" * 100_000), "has a header that is not JSON"
    ),
    "safetensors name with an escape sequence": _bytes(
        safetensors({"\x1b[31m": _W}, bytes(8)), "names a tensor '\\x1b[31m'"
    ),
}


def _value(name: str, value: float) -> Callable[[], bytes]:
    def made() -> bytes:
        state = weights()
        state[name].view(-1)[0] = value
        return saved(state)

    return made


def _typed(dtype: torch.dtype) -> bytes:
    return saved({n: t.to(dtype) if t.is_floating_point() else t for n, t in weights().items()})


_HUGE = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
TENSORS = {
    "NaN weights": _bytes(_value("head.weight", torch.nan), "not finite in 'head.weight'"),
    "infinite weights": _bytes(_value("stem.weight", torch.inf), "not finite in 'stem.weight'"),
    "float64 weights beyond float32": _bytes(
        lambda: saved(weights(head__bias=torch.full((10,), 1e300, dtype=torch.float64))),
        "not finite in 'head.bias'",
    ),
    "negative variances": _bytes(
        _value("bn.running_var", -1.0), "has negative variances in 'bn.running_var'"
    ),
    "storage smaller than its shape": _bytes(
        checkpoint(tensor_program(shape=b"K\x05\x85"), _0=bytes(16)),
        "gives 'w' a shape that is larger than its storage",
    ),
    "view that begins behind its storage": _bytes(
        checkpoint(tensor_program(start=4), _0=bytes(16)), "larger than its storage"
    ),
    "shape grown by a stride of 0": _bytes(
        checkpoint(
            tensor_program(shape=_HUGE[:5] + b"K\1\x86", strides=b"K\0K\0\x86"), _0=bytes(16)
        ),
        "larger than its storage",
    ),
    "huge declared shape": _bytes(
        checkpoint(tensor_program(shape=_HUGE, strides=b"K\0K\0\x86"), _0=bytes(16)),
        "an impossible shape (2147483647, 2147483647)",
    ),
    "1,000 tensors that share one storage": _bytes(
        lambda: saved(dict.fromkeys(map(str, range(1000)), torch.ones(100_000))),
        "of tensors that share storage; expected at most twice its size",
    ),
    "int8 weights": _bytes(lambda: _typed(torch.int8), "quantised weights cannot be distilled"),
    "wrong class count": _bytes(
        lambda: saved(weights(head__weight=torch.ones(7, 64), head__bias=torch.ones(7))),
        "is a model of 7 classes; the data has 10: use the data that it was trained for",
    ),
    "missing head": _bytes(
        lambda: saved(weights(head__weight=None, head__bias=None)),
        "has no head (head.bias, head.weight): it ends in features",
    ),
    "other keys and shapes": _bytes(
        lambda: saved(
            weights(bn__weight=None, extra=torch.ones(1), stem__weight=torch.ones(16, 3, 3, 3))
        ),
        "1 missing (bn.weight); 1 unexpected ('extra'); "
        "1 misshapen (stem.weight (16, 3, 3, 3) for (16, 1, 3, 3))",
    ),
}


@contextmanager
def _disk_full(_: Path) -> Iterator[None]:
    spawn = sandbox._spawn
    full = os.open("/dev/full", os.O_WRONLY)

    def onto_full(source: int, target: int, said: int, grant: sandbox.Grant) -> int:
        return spawn(source, full, said, grant)

    try:
        with mock.patch.object(sandbox, "_spawn", onto_full):
            yield
    finally:
        os.close(full)


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    run = sandbox.run

    def then_changed(source: int, target: int, grant: sandbox.Grant) -> sandbox.ReadOutcome:
        verdict = run(source, target, grant)
        with path.open("r+b") as file:
            file.write(b"PK")
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
        return verdict

    with mock.patch.object(sandbox, "run", then_changed):
        yield


@contextmanager
def _forbidden(path: Path) -> Iterator[None]:
    """Root reads everything, so it becomes nobody for a moment."""
    path.chmod(0)
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


FILES = {
    "empty file": _bytes(b"", "is empty; expected a safetensors file or a torch checkpoint"),
    "unknown format": _bytes(b"hello", "begins with 68656c6c6f, which is neither"),
    "missing file": _made(lambda _: None, "cannot be read: No such file or directory"),
    "directory": _made(Path.mkdir, "is a folder without weights"),
    "FIFO": _made(os.mkfifo, "is not a plain file"),
    "device": _made(lambda path: path.symlink_to("/dev/zero"), "is a symbolic link that leaves"),
    "symlink that leaves its folder": _made(
        lambda path: path.symlink_to("/etc/passwd"),
        "is a symbolic link that leaves its folder; give the file itself: '/etc/passwd'",
    ),
    "symlink to itself": _made(lambda path: path.symlink_to(path.name), "cannot be read: "),
    "no permission": _bytes(lambda: saved(weights()), "Permission denied", around=_forbidden),
    "disk full while converting": _bytes(
        lambda: saved(weights()), "cannot be converted: No space left on", around=_disk_full
    ),
    "changed between scan and load": _bytes(
        lambda: saved(weights()), "changed while it was read", around=_changing
    ),
}

CASES = PICKLES | ARCHIVES | SAFETENSORS | TENSORS | FILES
