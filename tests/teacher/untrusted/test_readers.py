"""The readers return what PyTorch and safetensors return, or refuse the file."""

from __future__ import annotations

import io
import warnings
from collections import Counter, OrderedDict

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from robustkd.models import build
from robustkd.teacher.untrusted.allowed_names import DEFAULT, LIVE
from robustkd.teacher.untrusted.child import convert, find_tensors
from robustkd.teacher.untrusted.contents import Contents, Refusal, Stored
from robustkd.teacher.untrusted.formats import recognise
from robustkd.teacher.untrusted.write_safetensors import gather
from tests.teacher.untrusted import samples
from tests.teacher.untrusted.hostile import CASES
from tests.teacher.untrusted.samples import (
    SPEC,
    checkpoint,
    members,
    saved,
    tensor_program,
    weights,
    zipped,
)

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def converted(file: bytes, choice: int = 0) -> tuple[Contents, dict[str, Tensor]]:
    """What the child does, in this process."""
    out = io.BytesIO()
    found = convert(io.BytesIO(file), out, len(file), choice=choice)
    return found[choice], safetensors.torch.load(out.getvalue())


def keys(file: bytes) -> list[str]:
    """The keys of all state dicts in a file."""
    found = find_tensors(io.BytesIO(file), len(file))
    return [".".join(contents.wrappers) for contents in found]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """The same bits, NaN included."""
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        and torch.equal(bits(found[name]), bits(tensor))
        for name, tensor in expected.items()
    )


def bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any type, up to four axes, in any order in memory, perhaps a part of something larger."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    numbers = torch.tensor(draw(st.lists(st.integers(0, 255), min_size=1, max_size=9)))
    count = max(1, torch.Size(shape).numel()) * 2
    dense = numbers.repeat(count)[:count].to(draw(st.sampled_from(DTYPES)))
    part = dense[draw(st.integers(0, count // 2)) :][: torch.Size(shape).numel()].view(shape)
    order = draw(st.permutations(range(len(shape))))
    stepped = tuple(slice(None, None, draw(st.integers(1, 2))) for _ in shape)
    return part.permute(order)[stepped]


names = st.text("abz.09_", min_size=1, max_size=12)


@given(state=st.dictionaries(names, tensors(), min_size=1, max_size=5), shared=st.booleans())
@settings(max_examples=150, deadline=None)
def test_checkpoints_are_read_as_torch_reads_them(state, shared):
    if shared:
        first = next(iter(state.values()))
        state |= {"tied": first}
    file = saved({"state_dict": OrderedDict(state)})
    contents, found = converted(file)
    expected = torch.load(io.BytesIO(file), weights_only=True)["state_dict"]
    assert same(found, expected)
    assert contents.wrappers == ("state_dict",)


@given(state=st.dictionaries(names, tensors(), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_safetensors_are_read_as_their_library_reads_them(state):
    file = safetensors.torch.save(
        {name: tensor.clone().contiguous() for name, tensor in state.items()}
    )
    _, found = converted(file)
    assert same(found, safetensors.torch.load(file))


def test_a_training_run_is_read_for_its_weights():
    network = torch.nn.DataParallel(build(SPEC, seed=0).network)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 16, 16)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 2, 3])
    run = {
        "epoch": 3,
        "best": 0.5,
        "history": [1.0, None, {"a": (True, 2**70)}],
        "shape": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "counts": Counter("aab"),
        "model": network.state_dict(),
        "ema": {"shadow": torch.ones(1)},
        "optimizer": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "scale": torch.nn.Parameter(torch.ones(2)),
    }
    file = saved(run)
    assert keys(file) == ["", "model", "ema"]
    contents, found = converted(file, 1)
    assert same(found, dict(network.state_dict()))
    assert contents.wrappers == ("model",)
    assert set(contents.ignored) == run.keys() - {"model"}


# What torch itself would say.


def test_no_name_that_torch_refuses_is_accepted():
    from torch._weights_only_unpickler import _get_allowed_globals

    known = LIVE - {"torch._utils _rebuild_tensor", DEFAULT}
    assert {name.replace(" ", ".") for name in known} <= set(_get_allowed_globals()) | {
        "torch.nn.parameter.Parameter"
    }


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if "names code" in case.says]
)
def test_files_that_torch_calls_unsafe_are_refused(name, tmp_path):
    """Its checker lists the same files; it knows neither protocol 4 nor files before 1.6."""
    path = tmp_path / "teacher.pt"
    CASES[name].make(path, tmp_path / "canary")
    content = path.read_bytes()
    known = content.startswith(b"PK") and b"\x80\x04" not in content
    if known and "truncated" not in name:
        assert get_unsafe_globals_in_checkpoint(path)
    with pytest.raises(Refusal, match=r"^names code that no state dict needs "):
        converted(path.read_bytes())


entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I16", "U8", "C64"]),
        "shape": st.lists(st.integers(-1, 3), max_size=2),
        "data_offsets": st.lists(st.integers(0, 12), min_size=2, max_size=2),
    }
)


@given(header=st.dictionaries(names, entries, max_size=3), values=st.binary(max_size=24))
@settings(max_examples=300, deadline=None)
def test_accepted_headers_are_accepted_by_the_library(header, values):
    file = samples.safetensors(header, values)
    try:
        _, found = converted(file)
    except Refusal:
        return
    assert same(found, safetensors.torch.load(file))


# Damage.


def damaged(file: bytes) -> str:
    """The refusal of a file; empty if it is read, to no more bytes than it may unfold to."""
    try:
        _, found = converted(file)
    except Refusal as refusal:
        return str(refusal)
    assert sum(tensor.nbytes for tensor in found.values()) <= 2 * len(file)
    return ""


SMALL = {
    "torch zip": saved({"w": torch.arange(5.0), "b": torch.ones(2, 3).t()}),
    "safetensors": safetensors.torch.save({"w": torch.arange(5.0), "b": torch.ones(2, 3)}),
}


@pytest.mark.parametrize("kind", SMALL)
def test_truncation_at_any_byte_is_refused(kind):
    whole = SMALL[kind]
    assert damaged(whole) == ""
    for length in range(len(whole)):
        assert damaged(whole[:length]), length
    assert damaged(whole + b"\0")


@pytest.mark.parametrize("kind", SMALL)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_harmless(kind, data):
    content = bytearray(SMALL[kind])
    place = st.integers(0, len(content) - 1)
    for position, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        content[position] = byte
    refusal = damaged(bytes(content))
    assert refusal.isprintable()
    assert len(refusal) < 500


@given(program=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_a_pickle_are_refused_or_harmless(program):
    damaged(checkpoint(b"\x80\x02" + program + b".", _0=bytes(16)))


def test_an_archive_that_lost_bytes_is_refused():
    """Offsets then seem to lie before its beginning."""
    whole = zipped({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(100)})
    for lost in (1, 60, 100):
        assert damaged(whole[: 60 + len("a/data.pkl")] + whole[60 + len("a/data.pkl") + lost :])


def test_every_changed_bit_of_stored_values_is_noticed():
    whole = saved({"w": torch.arange(4.0)})
    start = whole.index(torch.arange(4.0).numpy().tobytes())
    for bit in range(16 * 8):
        content = bytearray(whole)
        content[start + bit // 8] ^= 1 << bit % 8
        assert damaged(bytes(content)) == (
            "has a wrong checksum in 'archive/data/0'; it is damaged, or saved without checksums "
            "(compute_crc32=False): save it again"
        )


# Views, wrappers, kinds.


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    data=st.data(),
    dtype=st.sampled_from([("U8", torch.uint8), ("I16", torch.int16), ("I64", torch.int64)]),
)
@settings(max_examples=100, deadline=None)
def test_gathering_equals_as_strided(shape, data, dtype):
    strides = data.draw(st.lists(st.integers(0, 7), min_size=len(shape), max_size=len(shape)))
    stored = Stored("w", dtype[0], tuple(shape), tuple(strides), 0)
    values = torch.arange(200).to(dtype[1])
    made = gather(stored, values.numpy().tobytes()[: stored.span])
    expected = values.as_strided(shape, strides).contiguous()
    assert bytes(made) == expected.numpy().tobytes()


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "anything else"])
def test_a_state_dict_is_found_under_any_key(key):
    contents, found = converted(saved({key: {"w": torch.ones(2)}, "epoch": 1}))
    assert (contents.wrappers, contents.ignored) == ((key,), ("epoch",))
    assert found["w"].tolist() == [1, 1]


def test_every_state_dict_is_listed_in_the_order_of_the_file():
    inner = {"state_dict": {"w": torch.ones(1)}, "rng": torch.zeros(3)}
    file = saved({"ema": {"w": torch.zeros(1)}, "model": inner, "lr": 0.1})
    assert keys(file) == ["ema", "model", "model.state_dict"]
    contents, found = converted(file, 2)
    assert contents.ignored == ("ema", "lr", "rng")
    assert found["w"].item() == 1


def test_the_eight_largest_state_dicts_are_listed():
    many = {f"{n}": {str(k): torch.ones(1) for k in range(n)} for n in (1, 9, 2, 8, 3, 7, 4, 6, 5)}
    assert keys(saved(many)) == ["9", "2", "8", "3", "7", "4", "6", "5"]


def test_state_dicts_are_searched_to_a_depth():
    deep: dict[str, object] = {"w": torch.ones(1)}
    for _ in range(5):
        deep = {"a": deep}
    assert keys(saved(deep)) == ["a.a.a.a.a"]
    assert damaged(saved({"a": deep})) == "holds no state dict; it has ('a')"


def test_a_state_dict_that_cannot_be_read_does_not_hide_another():
    one = tensor_program()[2:-1]
    both = b"\x80\x02}(X\1\0\0\0a" + one + b"X\1\0\0\0b"
    both += one.replace(b"X\1\0\0\x000", b"X\1\0\0\x001") + b"u."
    file = checkpoint(both, _1=bytes(16))
    assert keys(file) == ["b"]
    assert converted(file)[1]["w"].shape == (4,)


def test_files_without_a_state_dict_are_refused():
    assert damaged(saved(torch.ones(2))) == "holds a single tensor instead of a state dict"
    assert damaged(saved([1])) == "holds a list instead of a state dict"
    assert damaged(saved({"a": {}, 3: "x"})) == ("holds no state dict; it has ('a', '3')")
    assert damaged(saved({1: torch.ones(1)})) == "has tensors whose names are not text"


def test_a_storage_must_exist_and_have_its_stated_length():
    assert damaged(checkpoint(tensor_program())) == (
        "lacks the values of a tensor: no member 'archive/data/0'"
    )
    assert damaged(checkpoint(tensor_program(length=5), _0=bytes(16))) == (
        "says that 'archive/data/0' has 20 bytes; it has 16"
    )
    assert damaged(checkpoint(tensor_program(), _0=bytes(16))) == ""


def test_a_big_endian_checkpoint_is_refused():
    parts = members(saved({"w": torch.ones(1)})) | {"archive/byteorder": b"big"}
    assert damaged(zipped(parts)) == "was saved on a big-endian machine; save it as safetensors"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PK\x03\x04" + bytes(26), "torch zip"),
        (b"\x40\0\0\0\0\0\0\0{" + bytes(9), "safetensors"),
        # A header of 0x0280 bytes begins like a pickle of protocol 2.
        (b"\x80\x02\0\0\0\0\0\0{" + bytes(9), "safetensors"),
    ],
)
def test_the_first_bytes_tell_the_format(head, kind):
    assert recognise(head) == kind


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\x1f\x8b\x08", "is compressed by gzip; unpack it first"),
        (b"BZh9", "is compressed by bzip2; unpack it first"),
        (b"(lp0\n", "begins with 286c70300a, which is neither"),
        (b"cos\nsystem\n", "is a raw pickle"),
        (b"(dp0\nccollections\nOrderedDict\n", "begins with"),
        (b"\x80", "begins with 80, which is neither"),
        (b"GGUF\x03", "is a GGUF file"),
        (b"PK\x05\x06" + bytes(18), "is a zip archive without members"),
    ],
)
def test_other_formats_are_named(head, says):
    with pytest.raises(Refusal) as caught:
        recognise(head)
    assert str(caught.value).startswith(says)


def test_names_in_refusals_are_short_and_printable():
    for name in ("a\nb", "x" * 10**5, "\u202e", "\x1b[2J"):
        refusal = damaged(saved({name: torch.ones(1)}))
        assert refusal.startswith("names a tensor '")
        assert refusal.isprintable()
        assert len(refusal) < 300


def test_no_warning_and_no_import_of_what_a_file_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = b"\x80\x02}X\x01\0\0\0actorch.nothing\n%s\n)Rs."
        assert damaged(checkpoint(program % b"here")).startswith("names code")
        assert damaged(checkpoint(program % b"Here")).startswith("holds no state dict")
    assert find_tensors(io.BytesIO(saved(weights())), 10**6)[0].format == "torch zip"
