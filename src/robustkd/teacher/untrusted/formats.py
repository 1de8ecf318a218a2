"""Recognition of file formats by the first bytes; the file name is ignored."""

from __future__ import annotations

import re
from collections.abc import Callable

from robustkd.teacher.untrusted.contents import Refusal

HEAD = 512
"""Number of bytes that are read; the signature of a tar archive ends at 262."""

_CONVERT = "if you trust it, save its weights as safetensors"
_AGAIN = "expected a safetensors file or a torch checkpoint: download it again"
_SOURCE = "give the PyTorch checkpoint or the safetensors file that it was made from"
_UNPACK = "unpack it first, and give the file of weights in it"
_REFUSED: tuple[tuple[bytes, int, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        0,
        "is a pointer of Git LFS, not the file itself; fetch the file with git lfs pull",
    ),
    (b"/annex/objects/", 0, "is a pointer of git-annex; fetch the file with git annex get"),
    (b"ustar", 257, f"is a tar archive; {_UNPACK}"),
    (b"\x89HDF\r\n\x1a\n", 0, f"is an HDF5 file (.h5); {_CONVERT}"),
    (b"\x93NUMPY", 0, f"is a NumPy array (.npy); {_CONVERT}"),
    (b"\x1f\x8b", 0, "is compressed by gzip; unpack it first"),
    (b"BZh", 0, "is compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\0", 0, "is compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", 0, "is compressed by zstandard; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", 0, f"is a 7z archive; {_UNPACK}"),
    (b"Rar!\x1a\x07", 0, f"is a RAR archive; {_UNPACK}"),
    (b"GGUF", 0, f"is a GGUF file; {_CONVERT}"),
    (b"TFL3", 4, f"is a TensorFlow Lite model, whose weights are not read; {_SOURCE}"),
    (b"PK\x05\x06", 0, "is a zip archive without members; expected a torch checkpoint"),
)
# Names of the first member of a tar archive that torch.save wrote.
_OLD_TORCH = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"\[{}\]]")
# An ONNX model is a protocol buffer: the version, then the name of the exporter or the graph.
_ONNX = re.compile(rb"\x08[\x03-\x1f][\x12\x3a\x42]", re.DOTALL)
# First bytes of text pickles: a GLOBAL instruction, or the start of a container.
_TEXT_PICKLE = re.compile(rb"[(\]}l0d]{0,8}c[\w.]+\r?\n[\w.]+\r?\n")
_PICKLE = f"is a raw pickle, which runs code when it is read; {_CONVERT}"
# The magic number of torch.save before 1.6, as a pickle of protocol 2 or 3.
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def recognise(head: bytes) -> str:
    """Return the format of a file that begins with ``head``.

    It is ``safetensors``, ``torch zip`` or ``torch legacy``.

    Raises:
        Refusal: If it is any other format.
    """
    if not head:
        raise Refusal("is empty; expected a safetensors file or a torch checkpoint")
    if head.startswith(b"PK\x03\x04"):
        return "torch zip"
    if head[:2] in (b"\x80\x02", b"\x80\x03") and head[2:].startswith(_LEGACY):
        return "torch legacy"
    if head[257:262] == b"ustar" and head.startswith(_OLD_TORCH):
        raise Refusal(f"is a tar archive (torch.save wrote these before 0.4); {_CONVERT}")
    for mark, place, reason in _REFUSED:
        if head[place : place + len(mark)] == mark:
            raise Refusal(reason)
    if _is_pickle(head):
        raise Refusal(_PICKLE)
    # Safetensors: eight bytes of length, then a JSON object.
    if head[8:9] == b"{":
        return "safetensors"
    if _WEB_PAGE.match(head):
        raise Refusal(f"is a web page (HTML), not the file itself; {_AGAIN}")
    if _JSON.match(head):
        raise Refusal(f"is a text in JSON, not the file of weights; {_AGAIN}")
    if _ONNX.match(head):
        raise Refusal(f"is an ONNX model, whose weights are not read; {_SOURCE}")
    raise Refusal(
        f"begins with {head[:8].hex()}, which is neither safetensors nor a torch checkpoint; "
        f"{_CONVERT}"
    )


def _is_pickle(head: bytes) -> bool:
    marks: tuple[Callable[[], object], ...] = (
        # PROTO 1 to 5; a safetensors file with these bytes as its length would have a "{" at 8.
        lambda: head[0] == 0x80 and 1 <= head[1] <= 5 and head[8:9] != b"{",
        lambda: _TEXT_PICKLE.match(head),
    )
    return len(head) > 1 and any(mark() for mark in marks)
