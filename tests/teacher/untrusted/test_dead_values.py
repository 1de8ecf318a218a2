"""Values that trainers store next to the weights are accepted, but never built."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import pickle
import sys
import types
from decimal import Decimal

import numpy as np
import pytest
import torch

from robustkd.teacher.untrusted.allowed_names import may_be_called, may_occur
from tests.teacher.untrusted.samples import checkpoint, saved
from tests.teacher.untrusted.test_readers import converted, damaged


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """A mapping with attributes, as Lightning's AttributeDict or EasyDict."""


class Explosive:
    """Any way to build it is an error."""

    def __new__(cls, *_: object) -> Explosive:
        if Explosive.armed:
            raise AssertionError("a dead object was built")
        return super().__new__(cls)

    armed = False


def config() -> Config:
    made = Config(lr=0.1, nested={"a": (1, 2)})
    made.frozen = True
    return made


ROUND = np.random.RandomState(0)
BESIDE = {
    "namespace": argparse.Namespace(model="resnet18", lr=0.1, path=pathlib.Path("runs/x")),
    "simple namespace": types.SimpleNamespace(a=1),
    "numpy scalar": np.float64(0.93),
    "numpy array": np.arange(1000.0),
    "numpy array of bytes above 127": np.arange(200, 256, dtype=np.uint8),
    "numpy array of texts": np.array(["a", "b"]),
    "numpy array of objects": np.array([1, None, "x"], dtype=object),
    "numpy type": np.dtype("float32"),
    "numpy class": np.float32,
    "numpy generator": ROUND,
    "state of a numpy generator": ROUND.get_state(),
    "bytes": b"\x00\xff",
    "date": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(seconds=3),
    "enum": Colour.RED,
    "default dict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=3),
    "set": {1, 2},
    "frozen set": frozenset({"a"}),
    "partial": functools.partial(torch.nn.functional.relu, inplace=True),
    "function": torch.nn.functional.relu,
    "torch type": torch.float32,
    "layout": torch.strided,
    "complex": 1 + 2j,
    "decimal": Decimal("1.5"),
    "range": range(3),
    "config": config(),
    "object": Explosive(),
    "dict by tuples": {(1, "a"): 2, torch.float32: 3, b"x": 1},
    "long number": 2**100,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", BESIDE)
def test_values_beside_the_weights_are_accepted(name, protocol, monkeypatch):
    import io

    weights = {"w": torch.arange(6.0).view(2, 3).t()}
    buffer = io.BytesIO()
    torch.save({"args": BESIDE[name], "state_dict": weights}, buffer, pickle_protocol=protocol)
    monkeypatch.setattr(Explosive, "armed", True)
    contents, found = converted(buffer.getvalue())
    assert torch.equal(found["w"], weights["w"])
    assert contents.wrappers == ("state_dict",)
    assert contents.ignored == ("args",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dead_values_within_the_state_dict_are_left_out(protocol):
    contents, found = converted(saved({"w": torch.ones(2), "best": np.float64(0.9)}))
    assert found.keys() == {"w"}
    assert contents.ignored == ("best",)


NAMES_OF_CODE = (
    "os system",
    "posix system",
    "nt system",
    "builtins eval",
    "builtins getattr",
    "builtins __import__",
    "builtins type",
    "__builtin__ apply",
    "pip main",
    "setuptools Command",
    "runpy run_path",
    "subprocess Popen",
    "operator attrgetter",
    "functools reduce",
    "importlib import_module",
    "pickle loads",
    "types CodeType",
    "types FunctionType",
    "collections namedtuple",
    "pathlib Path.unlink",
    "datetime datetime.now",
    "commands getoutput",
    "_posixsubprocess fork_exec",
    "torch os.system",
    "numpy f2py.crackfortran.eval",
    "numpy  os",
    "num\u0440y dtype",
    "os.path join",
    " os",
    "os",
)


@pytest.mark.parametrize("name", NAMES_OF_CODE)
def test_names_of_code_are_refused_even_if_unused(name):
    assert not may_occur(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub load",
        "torch.utils.cpp_extension load_inline",
        "torch.storage _load_from_bytes",
        "torch._tensor _rebuild_from_type_v2",
        "numpy.testing._private.utils runstring",
        "numpy load",
        "joblib load",
        "_pytest.config main",
        "my.nets net",
    ],
)
def test_names_of_functions_may_occur_but_not_be_called(name):
    assert may_occur(name)
    assert not may_be_called(name)
    module, _, within = name.partition(" ")
    program = f"\x80\x02c{module}\n{within}\n)R.".encode("latin-1")
    assert damaged(checkpoint(program)).startswith(
        f"names code that no state dict needs ('{module}.{within}'); save"
    )


def test_every_module_of_python_is_known_as_such():
    assert not any(may_occur(f"{module} Anything") for module in sys.stdlib_module_names)
    assert not any(may_occur(f"{module} anything") for module in sys.builtin_module_names)


def test_everything_that_pickle_would_call_is_refused_or_ignored():
    """Objects of the standard library that are not data."""
    for function in (print, open, exec, map, memoryview, sys.exit, pickle.loads):
        program = b"\x80\x04" + pickle.dumps(function, protocol=4)[2:]
        assert damaged(checkpoint(program)).startswith("names code")
