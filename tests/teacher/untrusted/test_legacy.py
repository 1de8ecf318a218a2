"""Files of torch.save before PyTorch 1.6 are read as torch reads them, or refused."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd.teacher.untrusted.formats import recognise
from tests.teacher.untrusted.samples import legacy, legacy_parts, weights
from tests.teacher.untrusted.test_readers import converted, damaged, keys, names, same, tensors


@given(state=st.dictionaries(names, tensors(), min_size=1, max_size=5), shared=st.booleans())
@settings(max_examples=100, deadline=None)
def test_legacy_files_are_read_as_torch_reads_them(state, shared):
    if shared:
        state |= {"tied": next(iter(state.values()))}
    file = legacy({"state_dict": OrderedDict(state), "epoch": 1})
    contents, found = converted(file)
    assert same(found, torch.load(io.BytesIO(file), weights_only=True)["state_dict"])
    assert (contents.format, contents.wrappers) == ("torch legacy", ("state_dict",))
    assert contents.ignored == ("epoch",)


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_are_read_with_dead_values_beside(protocol):
    buffer = io.BytesIO()
    torch.save(
        {"model": weights(), "best_acc": np.float64(0.5)},
        buffer,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=False,
    )
    assert same(converted(buffer.getvalue())[1], weights())


def test_a_whole_module_in_the_legacy_format():
    """Its classes come with their source code, which is dropped."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    buffer = io.BytesIO()
    torch.save(network, buffer, _use_new_zipfile_serialization=False)
    assert same(converted(buffer.getvalue())[1], dict(network.state_dict()))
    assert keys(buffer.getvalue()) == [""]


SMALL = legacy({"w": torch.arange(5.0), "b": torch.ones(2, 3).t()})


def test_truncation_at_any_byte_is_refused():
    assert damaged(SMALL) == ""
    for length in range(len(SMALL)):
        assert damaged(SMALL[:length]), length
    assert damaged(SMALL + b"\0") == "continues after its storages"


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_harmless(data):
    content = bytearray(SMALL)
    place = st.integers(0, len(content) - 1)
    for position, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        content[position] = byte
    refusal = damaged(bytes(content))
    assert refusal.isprintable()
    assert len(refusal) < 500


def without_memo(number: int) -> bytes:
    return b"\x80\x02M" + number.to_bytes(2, "little") + b"."


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        (1, without_memo(1002), "does not begin as a checkpoint in the legacy format; it is damag"),
        (2, b"\x80\x02].", "does not begin as a checkpoint in the legacy format; it is damaged"),
        (4, b"\x80\x02}.", "has an invalid list of storages; it is damaged"),
        (4, b"\x80\x02](X\1\0\0\0aX\1\0\0\0ae.", "lists other storages than its tensors have; it"),
        (4, b"\x80\x02](K\1e.", "has an invalid list of storages; it is damaged"),
        (3, b"\x80\x02N.", "lists other storages than its tensors have; it is damaged"),
    ],
)
def test_each_part_must_be_as_torch_writes_it(part, content, says):
    parts = legacy_parts(SMALL)
    parts[part] = content
    assert damaged(b"".join(parts)).startswith(says)


def test_the_magic_number_tells_the_format():
    assert recognise(SMALL[:512]) == "torch legacy"
