"""Properties of tensors in a pickle are understood or refused, and never ignored."""

from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch

from tests.teacher.untrusted.samples import NO_HOOKS, checkpoint, saved, tensor_program, weights
from tests.teacher.untrusted.test_readers import converted, damaged, same

FURTHER = (
    "has a tensor with further properties, such as the negative or the conjugate of its values; "
    "save it with resolve_neg().resolve_conj().clone()"
)
WRONG = "has an invalid pickle: a tensor with wrong arguments"
HOOKS = "has a tensor with backward hooks; save it with detach()"


def test_a_negated_view_is_refused():
    """PyTorch stores the values of the tensor it is a view of, and a note."""
    values = torch.arange(4.0)
    file = saved({"w": torch._neg_view(values)})
    assert torch.load(io.BytesIO(file), weights_only=True)["w"].tolist() == [-0.0, -1, -2, -3]
    assert damaged(file) == FURTHER
    assert damaged(saved({"w": torch.nn.Parameter(torch._neg_view(values))})) == FURTHER
    assert same(converted(saved({"w": torch._neg_view(values).resolve_neg()}))[1], {"w": -values})


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (b"\x89" + NO_HOOKS + b"}X\3\0\0\0neg\x88s", FURTHER),
        (b"\x89" + NO_HOOKS + b"}X\4\0\0\0conj\x88s", FURTHER),
        (b"\x89" + NO_HOOKS + b"}", FURTHER),
        (b"\x89" + NO_HOOKS + b"N", FURTHER),
        (b"\x89" + NO_HOOKS + b"NN", FURTHER),
        (b"\x89" + NO_HOOKS[:-1] + b"RK\1K\2s", HOOKS),
        (b"\x89}", HOOKS),
        (b"\x89N", HOOKS),
        (b"K\0" + NO_HOOKS, WRONG),
        (b"\x89", WRONG),
        (b"", WRONG),
    ],
)
def test_arguments_that_are_not_implemented_are_refused(rest, says):
    assert damaged(checkpoint(tensor_program(rest=rest), _0=bytes(16))) == says


@pytest.mark.parametrize("gradient", [b"\x88", b"\x89"])
def test_gradients_are_ignored(gradient):
    assert damaged(checkpoint(tensor_program(rest=gradient + NO_HOOKS), _0=bytes(16))) == ""


def parameter(rest: bytes) -> bytes:
    """A parameter around a tensor, with these arguments behind it."""
    inner = tensor_program()
    name = b"X\x01\0\0\0w"
    front = inner[: inner.index(name) + len(name)]
    tensor = inner[len(front) : -2]
    program = front + b"ctorch._utils\n_rebuild_parameter\n(" + tensor + rest + b"tRs."
    return checkpoint(program, _0=bytes(16))


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (b"\x88" + NO_HOOKS, ""),
        (b"\x88" + NO_HOOKS + b"}", FURTHER),
        (b"\x88}", HOOKS),
        (b"K\1" + NO_HOOKS, WRONG),
        (b"", WRONG),
    ],
)
def test_parameters_have_a_gradient_and_no_state(rest, says):
    assert damaged(parameter(rest)) == says


def test_a_parameter_with_attributes_is_refused():
    marked = torch.nn.Parameter(torch.ones(2))
    marked.scale = 3
    assert damaged(saved({"w": marked})).startswith("names code that no state dict needs")


def built(state: bytes) -> bytes:
    """A state dict in an OrderedDict that is given attributes."""
    program = tensor_program()
    return checkpoint(program[:2] + NO_HOOKS + program[3:-1] + state + b"b.", _0=bytes(16))


def test_attributes_of_the_state_dict():
    """Versions of layers, as every module gives them; not one that hides a method."""
    assert damaged(built(b"}X\x09\0\0\0_metadata}s")) == ""
    for state in (b"}X\5\0\0\0items}s", b"}", b"N", b"]"):
        assert damaged(built(state)) == (
            "has an invalid pickle: an OrderedDict with attributes other than _metadata"
        )
    state = OrderedDict(weights())
    state._metadata = {"": {"version": 2}}
    assert same(converted(saved(state))[1], dict(state))


def two_views(kind: bytes, length: bytes) -> bytes:
    """Two tensors of storage 0, which the second describes anew."""
    one = tensor_program()
    other = one[3:-1].replace(b"X\1\0\0\0w", b"X\1\0\0\0v")
    other = other.replace(b"FloatStorage", kind).replace(b"J\4\0\0\0", length)
    return checkpoint(one[:-1] + other + b".", _0=bytes(16))


def test_a_storage_has_one_type_and_one_length():
    """PyTorch before 2.15 takes the first for all, and later versions do not."""
    assert damaged(two_views(b"FloatStorage", b"J\4\0\0\0")) == ""
    for kind, length in ((b"IntStorage", b"J\4\0\0\0"), (b"FloatStorage", b"J\3\0\0\0")):
        assert damaged(two_views(kind, length)) == "gives the storage '0' two types or lengths"


def test_a_tensor_without_values_is_refused():
    whole = tensor_program().replace(b"X\3\0\0\0cpu", b"X\4\0\0\0meta")
    assert damaged(checkpoint(whole, _0=bytes(16))) == (
        "has a tensor on the device 'meta', which has no values; save real weights"
    )
    assert damaged(saved({"w": torch.ones(2, device="meta")})).startswith("names code")
