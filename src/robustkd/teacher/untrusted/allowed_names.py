"""Global names that the pickle of a checkpoint may contain, and those whose calls are accepted.

No name is ever imported. The names of tensors, storages and ordered dictionaries have stand-ins,
which are read. All other names are *dead*: they are kept as text, and no object of them is built.

A name of Python's standard library must be on a fixed list of harmless types of data, wherever it
occurs. A name of another package may occur as a value, and may be called if it is the name of a
class, which by convention begins with a capital letter. A call of a function is refused unless the
function is on the list.
"""

from __future__ import annotations

import re
import sys
from _compat_pickle import IMPORT_MAPPING

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
DEFAULT = "collections defaultdict"
LIVE = frozenset({*STORAGES, *TENSORS, PARAMETER, ORDERED, DEFAULT})
"""Names with stand-ins that are read."""


def _all(module: str, names: str) -> set[str]:
    return {f"{module} {name}" for name in names.split()}


_BUILTINS = (
    "set frozenset list dict tuple int long float complex str unicode bytes bytearray bool object "
    "slice range xrange Ellipsis NotImplemented"
)
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_TYPES_OF_PYTHON = frozenset(
    {
        *_all("builtins", _BUILTINS),
        *_all("__builtin__", _BUILTINS),
        *_all("collections", "OrderedDict defaultdict Counter deque"),
        *_all("argparse", "Namespace"),
        *_all("types", "SimpleNamespace NoneType"),
        *_all("pathlib", _PATHS),
        *_all("pathlib._local", _PATHS),
        *_all("datetime", "datetime date time timedelta timezone"),
        *_all("decimal", "Decimal"),
        *_all("fractions", "Fraction"),
        *_all("uuid", "UUID SafeUUID"),
        *_all("functools", "partial"),
        *_all("enum", "Enum IntEnum Flag IntFlag StrEnum"),
        *_all("typing", "Any Callable Dict List Literal Optional Sequence Set Tuple Type Union"),
        # When called, the first encodes text as bytes, and the other two build an empty object.
        *_all("_codecs", "encode"),
        *_all("copy_reg", "_reconstructor"),
        *_all("copyreg", "_reconstructor"),
    }
)
_ARRAYS = "_reconstruct scalar _frombuffer"
_FUNCTIONS = frozenset(
    {
        *_all("numpy.core.multiarray", _ARRAYS),
        *_all("numpy._core.multiarray", _ARRAYS),
        *_all("numpy.core.numeric", "_frombuffer"),
        *_all("numpy._core.numeric", "_frombuffer"),
        *_all("numpy", "dtype ndarray"),
        *_all("numpy.random._pickle", "__randomstate_ctor __bit_generator_ctor __generator_ctor"),
        *_all("torch", "device dtype"),
        *_all("torch.serialization", "_get_layout"),
        # Modules that were saved by PyTorch before 1.2 name their backend.
        *_all("torch.nn.backends.thnn", "_get_thnn_function_backend"),
    }
)
# Modules that are installed with this or another version of Python, and their names in pickles of
# Python 2.
_OF_PYTHON = sys.stdlib_module_names | {name.partition(".")[0] for name in IMPORT_MAPPING}
_OF_PYTHON |= {*sys.builtin_module_names}
_OF_PYTHON |= {"pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel", "ensurepip"}
_OF_PYTHON |= {"test", "distutils", "imp", "asyncore", "asynchat", "smtpd", "commands", "popen2"}
_OF_PYTHON |= {"cgi", "crypt", "pipes", "telnetlib", "lib2to3", "compression", "annotationlib"}
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Only a class may contain a further name: "torch os.system" would lead to another module.
_WITHIN = re.compile(r"(_*[A-Z]\w*\.)*[A-Za-z_]\w*", re.ASCII)
_CLASS = re.compile(r"(_*[A-Z]\w*\.)*_*[A-Z]\w*", re.ASCII)


def may_occur(name: str) -> bool:
    """Return whether a pickle may contain a name, given as ``module name``.

    >>> may_occur("argparse Namespace"), may_occur("os system"), may_occur("my.nets Net")
    (True, False, True)
    """
    module, _, within = name.partition(" ")
    if not _MODULE.fullmatch(module) or not _WITHIN.fullmatch(within):
        return False
    if module.partition(".")[0] in _OF_PYTHON:
        return name in _TYPES_OF_PYTHON
    return True


def may_be_called(name: str) -> bool:
    """Return whether a call of a name that :func:`may_occur` is accepted as a dead object.

    >>> may_be_called("my.nets Net"), may_be_called("torch.hub load")
    (True, False)
    """
    known = name in _TYPES_OF_PYTHON or name in _FUNCTIONS
    return known or bool(_CLASS.fullmatch(name.partition(" ")[2]))
