"""Hostile trigger files are read or refused in one line, without delay."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from robustkd.attacks import TRIGGERS, Additive, BadNets, MaskedPattern, load_trigger, save_trigger
from robustkd.attacks.triggers.transformations import Flow, LowFrequency, ToneCurve
from robustkd.core.errors import InputError, UsageError
from robustkd.data import InMemory, Labelled
from robustkd.models import write_safetensors
from tests.attacks.examples import PARAMETERS, SHAPE, example, pixels
from tests.teacher.untrusted.samples import entry, safetensors

IMAGES = pixels(2, *SHAPE)
_PART = Labelled((IMAGES * 255).to(torch.uint8), torch.tensor([0, 1]))
DATA = InMemory("toy", ("a", "b"), train=_PART, validation=_PART, test=_PART)
RANGE = "has numbers that are not finite or too large; expected numbers from -1000000 to 1000000"
TENSORS = [kind for kind in TRIGGERS if kind in {*PARAMETERS, "additive", "masked-pattern"}]


def refused(path: Path, message: str, **loading: Any) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(f'{path} {message}')}$"):
        load_trigger(path, **loading)


def tensors_of(kind: str) -> dict[str, Tensor]:
    return {name: value for name, value in vars(example(kind)).items() if torch.is_tensor(value)}


# Values.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e6])
@pytest.mark.parametrize("kind", TENSORS)
def test_numbers_that_are_not_finite_are_refused_in_every_kind(kind, value, tmp_path):
    tensors = tensors_of(kind)
    name = list(tensors)[-1]
    tensors[name][0, 0, 0] = value
    write_safetensors(tmp_path / "t", tensors, {"trigger": kind, "target": 0, "values": {}})
    refused(tmp_path / "t", f"has a damaged trigger: {name} {RANGE}")


def test_numbers_that_are_not_finite_in_a_composition_are_refused(tmp_path):
    tensors = {"first.control": torch.zeros(2, 4, 4), "second.knots": torch.zeros(1, 1, 8) / 0}
    parts = {"first": {"trigger": "flow"}, "second": {"trigger": "tone-curve"}}
    write_safetensors(tmp_path / "t", tensors, {"trigger": "composition", "target": 0, **parts})
    refused(tmp_path / "t", f"has a damaged trigger: knots {RANGE}")


def test_a_double_that_is_infinite_as_a_float_is_refused(tmp_path):
    control = torch.full((2, 4, 4), 1e300, dtype=torch.float64)
    write_safetensors(tmp_path / "t", {"control": control}, {"trigger": "flow", "target": 0})
    refused(tmp_path / "t", f"has a damaged trigger: control {RANGE}")


def test_a_trigger_that_is_not_finite_is_not_saved(tmp_path):
    with pytest.raises(UsageError, match=f"^control {RANGE}$"):
        save_trigger(Flow(torch.full((2, 4, 4), math.nan)), 0, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("kind", ["flow", "additive"])
def test_a_name_is_either_a_tensor_or_a_value(kind, tmp_path):
    ((name, tensor),) = tensors_of(kind).items()
    values = {"trigger": kind, "target": 0, "values": {name: 3}}
    write_safetensors(tmp_path / "t", {name: tensor}, values)
    message = f"{name!r} is both a tensor and a value; expected one of them"
    refused(tmp_path / "t", f"has a damaged trigger: {message}")


# Shapes.


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("flow", (2, 17, 17), "2 x k x k with k from 1 to 16"),
        ("flow", (2, 0, 0), "2 x k x k with k from 1 to 16"),
        ("flow", (2, 3, 5), "2 x k x k with k from 1 to 16"),
        ("light-field", (2, 200, 200), "2 x k x k with k from 1 to 16"),
        ("light-field", (3, 4, 4), "2 x k x k with k from 1 to 16"),
        ("low-frequency", (3, 0, 4), "C x k x k with C up to 64 and k from 1 to 16"),
        ("low-frequency", (3, 17, 17), "C x k x k with C up to 64 and k from 1 to 16"),
        ("low-frequency", (65, 4, 4), "C x k x k with C up to 64 and k from 1 to 16"),
        ("tone-curve", (1, 1, 65), "1 x c x k with c from 1 to 64 and k from 2 to 64"),
        ("tone-curve", (1, 0, 8), "1 x c x k with c from 1 to 64 and k from 2 to 64"),
        ("colour-matrix", (1, 65, 66), "1 x C x (C + 1) with C from 1 to 64"),
        ("colour-matrix", (1, 0, 1), "1 x C x (C + 1) with C from 1 to 64"),
        ("filter", (1, 33, 33), "1 x k x k with odd k up to 31"),
        ("affine", (1, 3, 3), "1 x 2 x 3"),
    ],
)
def test_the_shape_of_parameters_is_bounded(kind, shape, expected, tmp_path):
    (name,) = tensors_of(kind)
    write_safetensors(tmp_path / "t", {name: torch.zeros(shape)}, {"trigger": kind, "target": 0})
    message = f"the trigger's {name} has shape {shape}; expected {expected}"
    refused(tmp_path / "t", f"has a damaged trigger: {message}")


def test_the_largest_shapes_are_accepted():
    for trigger in (
        Flow(torch.zeros(2, 16, 16)),
        LowFrequency(torch.zeros(3, 1, 1)),
        ToneCurve(torch.zeros(1, 3, 64)),
    ):
        assert torch.allclose(trigger(IMAGES), IMAGES, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2, 4, 1000])
def test_parameters_of_another_rank_are_refused(rank, tmp_path):
    header = {
        "__metadata__": {"robustkd": '{"format": 1, "trigger": "flow", "target": 0}'},
        "control": entry(*[1] * rank, end=4),
    }
    (tmp_path / "t").write_bytes(safetensors(header, bytes(4)))
    with pytest.raises(InputError, match=r"; expected floats of shape channels x height x width$"):
        load_trigger(tmp_path / "t")


def test_large_tensors_are_refused_before_they_are_read(tmp_path):
    sizes = (1, 4096, 4097)
    header = {
        "__metadata__": {"robustkd": '{"format": 1, "trigger": "additive", "target": 0}'},
        "delta": entry(*sizes, end=4 * math.prod(sizes)),
    }
    # Without the values, reading them would give another error.
    (tmp_path / "t").write_bytes(safetensors(header))
    message = f"'delta' has shape {sizes}; expected at most 16777216 numbers"
    refused(tmp_path / "t", f"has a damaged trigger: {message}")


def test_many_tensors_and_a_long_header_are_refused_before_they_are_read(tmp_path):
    described = {"robustkd": '{"format": 1, "trigger": "flow", "target": 0}'}
    many = {f"{place}": entry(1, 1, 1, end=4) for place in range(5)}
    (tmp_path / "t").write_bytes(safetensors({"__metadata__": described, **many}))
    refused(tmp_path / "t", "has a damaged trigger: 5 tensors; expected at most 4")
    many = {f"{place}": entry(1, 1, 1, end=4) for place in range(20_000)}
    content = safetensors({"__metadata__": described, **many})
    (tmp_path / "t").write_bytes(content)
    length = int.from_bytes(content[:8], "little")
    message = f"a header of {length} bytes; expected at most 1048576"
    refused(tmp_path / "t", f"is not a readable safetensors file: {message}")


# Triggers and data.


def test_a_file_that_fits_other_data_is_refused_by_its_name(tmp_path):
    path = tmp_path / "t"
    save_trigger(BadNets(), 2, path)
    assert load_trigger(path)[1] == 2
    refused(path, "does not fit 'toy': target class is 2; expected 0 to 1", data=DATA)
    save_trigger(example("colour-matrix", (1, 2, 2)), 0, path)
    assert load_trigger(path, data=DATA)[1] == 0
    for trigger, message in (
        (BadNets(10), "size is 10; expected less than the edges of the images, 12 x 10 pixels"),
        (
            Additive(torch.zeros(1, 8, 8)),
            "the trigger has shape (1, 8, 8); expected the shape of the images, (3, 12, 10)",
        ),
        (
            MaskedPattern(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)),
            "the trigger has shape (1, 8, 8); expected the shape of the images, (3, 12, 10)",
        ),
        (
            LowFrequency(torch.zeros(1, 4, 4)),
            "the trigger has 1 channels; expected the number of channels of the images, 3",
        ),
    ):
        save_trigger(trigger, 0, path)
        refused(path, f"does not fit 'toy': {message}", data=DATA)


@pytest.mark.parametrize("kind", list(TRIGGERS))
def test_every_kind_fits_its_data(kind, tmp_path):
    save_trigger(example(kind), 1, tmp_path / "t")
    assert load_trigger(tmp_path / "t", data=DATA)[1] == 1


# Mutations.


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


JUNK: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 10**30, -(10**30), 10**400, 2**63, 2**63 - 1),
    *(0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, "", "flow", "\ud800\n\x1b[2J", "x" * 5000),
    *([], {}, ["flow"], {"trigger": "flow"}, {"flow": []}, [[1]], nested(200)),
)
NAMES = ("control", "first.control", "first.", ".", "", "self", "__class__", "values", "\n" * 300)
SIZES = (0, 1, 2, 3, 4, 5, 16, 17, 31, 64, 65, 1000, 2**31, 2**40, 2**62, 2**64, -1, "3", 1.5, None)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "", 3, None)


def honest(random: Random) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a trigger of any kind, or of a composition of two."""

    def part() -> tuple[dict[str, Any], dict[str, Tensor]]:
        kind = random.choice(list(TRIGGERS))
        own = vars(example(kind))
        values = {name: value for name, value in own.items() if not torch.is_tensor(value)}
        return {"trigger": kind, "values": values}, tensors_of(kind)

    if random.random() < 0.6:
        description, tensors = part()
        return {"format": 1, "target": 0, **description}, tensors
    description = {"format": 1, "target": 0, "trigger": "composition"}
    tensors = {}
    for name in ("first", "second"):
        description[name], own = part()
        tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    return description, tensors


def changed(value: Any, random: Random) -> Any:
    """Replace, drop or add one value at a random place of nested objects."""
    if not isinstance(value, dict) or not value or random.random() < 0.1:
        return random.choice(JUNK)
    key = random.choice(list(value))
    way = random.randrange(6)
    if way == 0:
        return {name: each for name, each in value.items() if name != key}
    if way == 1:
        return {**value, random.choice((*NAMES, *TRIGGERS, "size", "target")): random.choice(JUNK)}
    return {**value, key: changed(value[key], random)}


def entry_changed(header: dict[str, Any], random: Random) -> None:
    """Change name, shape, type or place of one tensor in a header."""
    name = random.choice([key for key in header if key != "__metadata__"] or ["control"])
    own = header.get(name, entry(1, 1, 1, end=4))
    way = random.randrange(6)
    if way == 0:
        own["dtype"] = random.choice(DTYPES)
    elif way == 1:
        own["shape"] = [random.choice(SIZES) for _ in range(random.choice((0, 1, 2, 3, 3, 3, 4)))]
    elif way == 2:
        own["shape"] = random.choice((*JUNK, [1] * 5000))
    elif way == 3:
        own["data_offsets"] = random.choice(([0, 2**63], [4, 0], *JUNK))
    header.pop(name, None)
    header[random.choice((name, name, name, *NAMES))] = own


def mutated(random: Random) -> bytes:
    """Return a file of a trigger with changes to description, layout and numbers."""
    description, tensors = honest(random)
    for _ in range(random.choice((0, 1, 1, 2))):
        description = changed(description, random)
    header, data = {"__metadata__": {"robustkd": json.dumps(description)}}, b""
    for name, tensor in tensors.items():
        if random.random() < 0.2:
            tensor.view(-1)[0] = random.choice((math.nan, math.inf, 1e38, -1e6, 1e-40))
        more = tensor.contiguous().numpy().tobytes()
        header[name] = entry(*tensor.shape, begin=len(data), end=len(data) + len(more))
        data += more
    if random.random() < 0.5:
        entry_changed(header, random)
        if random.random() < 0.5:
            # The values of a tensor that its header makes larger or smaller.
            own = header[random.choice([key for key in header if key != "__metadata__"])]
            shape = own["shape"] if isinstance(own["shape"], list) else []
            if all(isinstance(size, int) and 0 <= size <= 1000 for size in shape):
                length = 4 * math.prod(shape)
                if length < 1 << 22:
                    own["data_offsets"], data = [0, length], bytes(length)
    return safetensors(header, data)


@pytest.mark.parametrize("seed", range(6))
def test_a_mutated_file_is_read_or_refused_in_one_line(seed, tmp_path):
    random, path, read = Random(seed), tmp_path / "t", 0  # noqa: S311 (no secret)
    started = time.process_time()
    for _ in range(300):
        path.write_bytes(mutated(random))
        try:
            trigger, target = load_trigger(path, data=DATA)
        except InputError as error:
            text = str(error).removeprefix(str(path))
            assert text.isprintable(), text
            assert len(text) < 6000
            continue
        read += 1
        found = trigger(IMAGES)
        assert target in (0, 1)
        assert found.shape == IMAGES.shape
        assert found.isfinite().all()
        assert 0 <= found.min() <= found.max() <= 1
    assert 10 < read < 200
    assert time.process_time() - started < 60
