"""Differential fuzzing: no mutated file gives us other weights than PyTorch or safetensors.

    python -m tests.fuzz.differential --runs 5000 --seed 1

Each file is read by our reader and by the library that people read it with. That we refuse what
the library reads is fine; that both read it and differ in a single bit, or in a name, ends the
run and leaves the file behind. Bytes are changed at random, and with the format's own structure:
numbers in headers, whole parts of another file, members, and the pickle and the JSON header
beneath checksum and length.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import safetensors.torch
import torch
from torch import Tensor

from robustkd.teacher.untrusted.child import convert
from robustkd.teacher.untrusted.contents import Refusal
from tests.teacher.untrusted.samples import legacy, legacy_parts, members, saved, zipped

MARKS = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08")
NUMBERS = (0, 1, 2, 4, 8, 20, 0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF)
TYPES = ("F32", "I32", "F16", "BF16", "I16", "F64", "I64", "U8", "I8", "BOOL")


def states(seed: int) -> list[object]:
    """What people save: plain, wrapped, with views, tied weights, parameters and notes beside."""
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    plain = {"w": values, "b": torch.arange(3.0) + seed, "n": torch.tensor(seed)}
    views = {"t": values.t(), "row": values[1], "step": values[:, ::2], "tied": values}
    other = {"h": values.half(), "i": torch.arange(6), "o": torch.tensor([True, False])}
    network = OrderedDict(plain | {"p": torch.nn.Parameter(torch.ones(2))})
    return [plain, views, other, network, {"epoch": seed, "state_dict": network, "ema": plain}]


# Mutations.


def bytes_changed(content: bytes, _: bytes, random: Random) -> bytes:
    """A few bytes anywhere."""
    made = bytearray(content)
    for _ in range(random.randint(1, 4)):
        made[random.randrange(len(made))] = random.randrange(256)
    return bytes(made)


def part_moved(content: bytes, other: bytes, random: Random) -> bytes:
    """A part of this or another file put into it, over it, or taken out of it."""
    source = random.choice((content, other))
    begin, to = random.randrange(len(source)), random.randrange(len(content) + 1)
    part = source[begin : begin + random.randint(1, 200)]
    gone = random.choice((0, len(part), random.randint(1, 64)))
    return content[:to] + random.choice((part, b"")) + content[to + gone :]


def field_changed(content: bytes, _: bytes, random: Random) -> bytes:
    """A number behind one of the marks of a zip archive."""
    made = bytearray(content)
    mark = random.choice(MARKS)
    places = [place for place in range(len(made)) if made.startswith(mark, place)]
    if places:
        place = random.choice(places) + 4 + random.randrange(44)
        width, kind = random.choice(((2, "<H"), (4, "<I")))
        if place + width <= len(made):
            (old,) = struct.unpack_from(kind, made, place)
            new = random.choice((*NUMBERS, old + 1, old - 1, old * 2))
            struct.pack_into(kind, made, place, new % 256**width)
    return bytes(made)


def directories_joined(content: bytes, other: bytes, random: Random) -> bytes:
    """Members, directories and ends of two archives one after the other, in some order."""
    pieces = []
    for whole in (content, other):
        cuts = [whole.find(mark) for mark in (MARKS[0], MARKS[3], MARKS[2])]
        if min(cuts) >= 0:
            pieces += [whole[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    return b"".join(random.choices(pieces, k=random.randint(3, 6))) if pieces else content


def member_changed(content: bytes, other: bytes, random: Random) -> bytes:
    """Archives with right checksums of changed, exchanged, repeated or renamed members."""
    try:
        parts, more = list(members(content).items()), list(members(other).items())
    except Exception:
        return content
    if not parts or not more:
        return content
    place = random.randrange(len(parts))
    name, data = parts[place]
    way = random.randrange(5)
    if way == 0 and data:
        parts[place] = name, bytes_changed(data, data, random)
    elif way == 1:
        parts[place] = name, random.choice(more)[1]
    elif way == 2:
        parts.append(random.choice(more))
    elif way == 3:
        parts[place] = random.choice((name.upper(), name + "0", random.choice(more)[0])), data
    else:
        pickled = next((i for i, (n, _) in enumerate(parts) if n.endswith("data.pkl")), place)
        mutated = random.choice((bytes_changed, part_moved))(
            parts[pickled][1] or b"x", b"x", random
        )
        parts[pickled] = parts[pickled][0], mutated
    return zipped(parts)


def pickle_changed(content: bytes, other: bytes, random: Random) -> bytes:
    """A file in the legacy format with one part changed, or taken from another."""
    try:
        parts, more = legacy_parts(content), legacy_parts(other)
    except Exception:
        return content
    place = random.randrange(len(parts))
    if random.random() < 0.3:
        parts[place] = random.choice((more[place], random.choice(more)))
    else:
        changed = random.choice((bytes_changed, part_moved))
        parts[place] = changed(parts[place] or b"x", more[place] or b"x", random)
    return b"".join(parts)


def header_changed(content: bytes, _: bytes, random: Random) -> bytes:
    """A safetensors file with another JSON header of the right length."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        name = random.choice([key for key in header if key != "__metadata__"])
        entry = header[name]
        way = random.randrange(5)
        if way == 0:
            entry["dtype"] = random.choice(TYPES)
        elif way == 1:
            entry["shape"] = random.choice((entry["shape"][::-1], [*entry["shape"], 1], [12], [-1]))
        elif way == 2:
            entry["data_offsets"] = [n + random.choice((0, 4, -4)) for n in entry["data_offsets"]]
        elif way == 3:
            twin = random.choice(list(header))
            header[name], header[twin] = header[twin], header[name]
        else:
            header[name + random.choice(("", "x", "\0"))] = header.pop(name)
        text = json.dumps(header).encode()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return content
    if random.random() < 0.3:
        text = bytes_changed(text, text, random)
    text += b" " * random.choice((0, -len(text) % 8, 3))
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


# Comparison.

WAYS = ("read by both, the same", "read by us alone", "refused by us alone", "refused by both")


def read_by_us(content: bytes) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The tensors of the first state dict and the keys around them; None for a refusal."""
    out = io.BytesIO()
    try:
        found = convert(io.BytesIO(content), out, len(content))
    except Refusal:
        return None
    return safetensors.torch.load(out.getvalue()), found[0].wrappers


def read_by_torch(content: bytes) -> object:
    """What PyTorch reads; None where it does not."""
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception:
        return None


def read_by_safetensors(content: bytes) -> object:
    """What safetensors reads; None where it does not."""
    try:
        return safetensors.torch.load(content)
    except Exception:
        return None


def compare(content: bytes, library: Callable[[bytes], object]) -> str:
    """How both readers ended.

    Raises:
        AssertionError: If both read the file and see other weights.
    """
    ours, theirs = read_by_us(content), library(content)
    if ours is None:
        return "refused by both" if theirs is None else "refused by us alone"
    if theirs is None:
        return "read by us alone"
    found, wrappers = ours
    for wrapper in wrappers:
        assert isinstance(theirs, Mapping), wrapper
        theirs = theirs[wrapper]
    assert isinstance(theirs, Mapping), type(theirs)
    tensors = {name: value for name, value in theirs.items() if isinstance(value, Tensor)}
    assert tensors.keys() == found.keys(), (tensors.keys(), found.keys())
    for name, tensor in tensors.items():
        assert bits(tensor) == bits(found[name]), name
    return "read by both, the same"


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
    """All there is of a tensor, NaN included."""
    plain = (
        tensor.detach().resolve_neg().resolve_conj().clone(memory_format=torch.contiguous_format)
    )
    return tensor.dtype, tensor.shape, plain.contiguous().reshape(-1).view(torch.uint8).tolist()


def fuzz(kind: str, runs: int, seed: int) -> Counter[str]:
    """Compare both readers on so many mutated files; returns how often they ended in which way."""
    random = Random(seed)  # noqa: S311 (no secret)
    if kind == "archives":
        honest = [saved(state) for place in (1, 2) for state in states(place)]
        honest += [zipped(members(whole)) for whole in honest[:4]]
        ways = [bytes_changed, part_moved, field_changed, directories_joined, member_changed]
        library = read_by_torch
    elif kind == "legacy":
        honest = [legacy(state) for place in (1, 2) for state in states(place)]
        ways = [bytes_changed, part_moved, pickle_changed, pickle_changed]
        library = read_by_torch
    else:
        plain = [s for place in (1, 2) for s in states(place)[:3:2] if isinstance(s, dict)]
        honest = [safetensors.torch.save(each) for each in plain]
        ways = [bytes_changed, part_moved, header_changed, header_changed]
        library = read_by_safetensors
    ends: Counter[str] = Counter()
    for _ in range(runs):
        content = random.choice(honest)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            content = random.choice(ways)(content or b"\0", random.choice(honest), random)
        try:
            ends[compare(content, library)] += 1
        except BaseException:
            with tempfile.NamedTemporaryFile(prefix="robustkd-differs-", delete=False) as left:
                left.write(content)
            sys.stderr.write(f"{left.name} is read otherwise, or makes a reader fail\n")
            raise
    return ends


def main() -> None:
    """Fuzz all formats and print how it ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="JSON file for the figures")
    chosen = parser.parse_args()
    rows = []
    for kind in ("archives", "legacy", "safetensors"):
        started = time.monotonic()
        ends = fuzz(kind, chosen.runs, chosen.seed)
        seconds = round(time.monotonic() - started)
        ways = {way: ends[way] for way in WAYS}
        rows.append({"files": kind, "mutated": chosen.runs, "seed": chosen.seed, **ways})
        print(json.dumps(rows[-1] | {"seconds": seconds}), flush=True)
    if chosen.record:
        chosen.record.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
