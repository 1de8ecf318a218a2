"""Global names that the pickle of a checkpoint may contain: those of a saved state dict."""

from __future__ import annotations

STORAGES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
TENSORS = frozenset({"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"})
PARAMETER = "torch._utils _rebuild_parameter"
ORDERED = "collections OrderedDict"
COUNTER = "collections Counter"
SIZE, DEVICE = "torch Size", "torch device"
GLOBALS = frozenset({*STORAGES, *TENSORS, PARAMETER, ORDERED, COUNTER, SIZE, DEVICE})
"""All names that are allowed in a pickle."""
