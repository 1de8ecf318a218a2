"""Mutation fuzzing of every reader of foreign files, in processes with a limit on memory.

    python -m tests.fuzz.readers --inputs 50000 --seed 1 \\
        --record benchmarks/results/hostile/mutations.json

The inputs are divided equally among archives, safetensors, YAML, JSON, npz and images. Each input
is a valid file with random changes to its bytes or to the structure of its format. A reader may
accept it, or refuse it with one of our own errors. A finding is any other exception, the death of
the process, more than 20 seconds or 2 GiB of memory for one input, or a file that is left behind.
An input is determined by the seed, the kind and its number; ``--only`` repeats it.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import safetensors.torch
import torch
import torchvision  # noqa: F401 (torch then makes its cache folder, which no input is to blame for)
from PIL import Image

from robustkd import report
from robustkd.benchmark import load_grid
from robustkd.cli.files import _read as read_flags
from robustkd.core.errors import RobustKDError
from robustkd.data.images import pixels
from robustkd.data.images.holdout import read_split
from robustkd.data.images.listing import Folder, list_files
from robustkd.pipeline.seal import SEAL, Seal
from robustkd.report.arrays import read_arrays
from robustkd.teacher.untrusted.child import convert
from robustkd.teacher.untrusted.contents import Refusal
from tests.data.images.image_files import picture
from tests.fuzz.differential import (
    bytes_changed,
    directories_joined,
    field_changed,
    header_changed,
    member_changed,
    part_moved,
    pickle_changed,
    states,
)
from tests.teacher.untrusted.samples import legacy, members, saved, zipped

MOST_SECONDS = 20
MOST_MEMORY = 2 << 30
BATCH = 500
ROOT = Path(__file__).parents[2]
REFUSALS = (Refusal, RobustKDError, pixels.UndecodableError)
TOKENS = (
    *("{", "}", "[", "]", ":", ",", '"', "'", "- ", "\n", "\n  ", "&a ", "*a", "<<: *a", "? "),
    *("!!bool ", "!!python/object:os.system ", "!!int ", "|\n", ">\n", "#", "%YAML 9.9\n---\n"),
    *("---\n", "2020-01-01", "\0", "\ud800", "\x1b[2J", "\u2028", "\ufeff", "a" * 200),
    *('"\\ud800"', "1_0", "0x7f", "null", "true", "NaN", "Infinity", "1e999", "9" * 400),
)
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "9" * 400, "null", "true")

Mutation = Callable[[bytes, bytes, Random], bytes]
Reader = Callable[[bytes, Path, Random], None]


@dataclass(frozen=True)
class Kind:
    """Files of one format.

    Attributes:
        honest: Valid files, from which mutations start.
        ways: The mutations.
        read: Function that passes the bytes to our reader; its path is that of an empty folder.
    """

    honest: list[bytes]
    ways: list[Mutation]
    read: Reader


# Mutations.


def token_inserted(content: bytes, _: bytes, random: Random) -> bytes:
    """Insert a token at a random place, once or many times, or overwrite with it."""
    token = random.choice(TOKENS).encode("utf-8", "surrogatepass")
    token *= random.choice((1, 1, 1, 2, 50, 5000))
    place = random.randrange(len(content) + 1)
    return content[:place] + token + content[place + random.choice((0, len(token), 5)) :]


def number_replaced(content: bytes, _: bytes, random: Random) -> bytes:
    """Replace one number of a text by another number or by another type of value."""
    numbers = list(re.finditer(rb"-?[0-9.]+", content))
    if not numbers:
        return content
    found = random.choice(numbers)
    new = random.choice((*NUMBERS, "1e-400", "3.5", '"x"', "[1, 2]", "{}", str(2**63)))
    return content[: found.start()] + new.encode("utf-8", "replace") + content[found.end() :]


def line_moved(content: bytes, other: bytes, random: Random) -> bytes:
    """Repeat, drop or indent lines, or take them from another file."""
    lines = content.split(b"\n")
    line = random.choice((lines, other.split(b"\n")))
    place = random.randrange(len(lines) + 1)
    new = [random.choice((b"", b" ", b"    ", b"- ")) + random.choice(line)]
    lines[place : place + random.choice((0, 1, 2))] = new * random.choice((0, 1, 1, 2, 2000))
    return b"\n".join(lines)


def array_changed(content: bytes, other: bytes, random: Random) -> bytes:
    """Change headers or data of the arrays in an npz file, whose checksums stay correct."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = random.choice(list(parts))
    except Exception:
        return content
    way = random.randrange(4)
    if way == 0:
        parts[name] = bytes_changed(parts[name] or b"x", b"", random)
    elif way == 1:
        parts[name] = part_moved(parts[name] or b"x", other, random)
    elif way == 2:
        parts[name] = number_replaced(parts[name][:128], b"", random) + parts[name][128:]
    else:
        parts[random.choice(("images.npy", "labels.npy", "x", "../x.npy"))] = parts[name]
    out = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")
        for key, value in parts.items():
            archive.writestr(key, value)
    return out.getvalue()


def chunk_changed(content: bytes, other: bytes, random: Random) -> bytes:
    """Change, move or repeat chunks of a PNG, with correct checksums."""
    if content[:4] != b"\x89PNG":
        return bytes_changed(content, other, random)
    chunks, place = [], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return content
    number = random.randrange(len(chunks))
    name, data = chunks[number]
    way = random.randrange(4)
    if way == 0 and data:
        chunks[number] = name, bytes_changed(data, b"", random)
    elif way == 1:
        chunks[number:number] = [(name, data)] * random.choice((1, 2, 2000))
    elif way == 2:
        chunks.append(chunks.pop(number))
    else:
        chunks[number] = random.choice((b"IHDR", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"acTL")), data
    made = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return content[:8] + made


def size_changed(content: bytes, _: bytes, random: Random) -> bytes:
    """Overwrite two or four bytes near the beginning, where many formats store sizes."""
    made = bytearray(content)
    place = random.randrange(min(64, len(made)))
    kind = random.choice((">H", "<H", ">I", "<I"))
    if place + struct.calcsize(kind) <= len(made):
        value = random.choice((0, 1, 2, 255, 8192, 65535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1))
        struct.pack_into(kind, made, place, value % 256 ** struct.calcsize(kind))
    return bytes(made)


# Readers.


def read_teacher(content: bytes, _: Path, __: Random) -> None:
    convert(io.BytesIO(content), io.BytesIO(), len(content))


def read_yaml(content: bytes, folder: Path, random: Random) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    if random.random() < 0.5:
        load_grid(path)
    else:
        read_flags(path, of_a_run=True)


LISTED = [f"{number:03}.png" for number in range(20)]


def read_json(content: bytes, folder: Path, _: Random) -> None:
    """Choose the reader by a key in the content: seals, splits, and otherwise results."""
    if b'"hmac"' in content:
        (folder / SEAL).write_bytes(content)
        Seal(folder, bytes(32), {}).open()
    elif b'"validation"' in content:
        (folder / "split.json").write_bytes(content)
        files = list_files(folder, [Folder("", LISTED, 0)], classes=1)
        read_split(folder / "split.json", files, ["validation", "test"])
    else:
        (folder / "results.json").write_bytes(content)
        report.aggregate(report.read(folder).runs)


def read_npz(content: bytes, folder: Path, _: Random) -> None:
    (folder / "arrays.npz").write_bytes(content)
    read_arrays(folder)


def read_image(content: bytes, _: Path, random: Random) -> None:
    """Decode as in the child process for large images; this process is limited as well."""
    channels = random.choice((1, 3))
    pixels.unpack(io.BytesIO(content), size=32, channels=channels, crop=1.0, watched=True)


# Honest files.


def results() -> list[bytes]:
    names = {"data": "digits", "pair": "a to b", "attack": "ckd", "method": "ofd"}
    run = {**names, "seed": 0, "acc": 0.9, "asr": 0.1, "ra": None, "params": 10, "seconds": 1.5}
    content = {"runs": [run, run | {"seed": 1}], "environment": {}, "config": {}, "records": {}}
    split = {"format": 1, "validation": LISTED[:2], "test": LISTED[2:4]}
    seal = {"files": {"checkpoint.safetensors": [[12, "ab" * 32]]}, "hmac": "cd" * 32}
    return [json.dumps(each, indent=1).encode() for each in (content, split, seal)]


def arrays() -> list[bytes]:
    random = np.random.default_rng(0)
    images = random.random((3, 1, 8, 8)).astype(np.float32)
    full = {"images": images, "labels": np.array([1, 2, 3]), "predictions/ofd": np.array([0, 0, 3])}
    made = []
    for write in (np.savez, np.savez_compressed):
        for parts in (full, {"trigger_mask": random.random((1, 8, 8))}):
            out = io.BytesIO()
            write(out, **parts)
            made.append(out.getvalue())
    return made


def images() -> list[bytes]:
    whole = Image.fromarray(picture(0, 24))
    forms = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("BMP", {}), ("GIF", {})]
    forms += [("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {})]
    forms += [("WEBP", {"lossless": True})]
    made = []
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"):
        for form, options in forms:
            out = io.BytesIO()
            try:
                whole.convert(mode).save(out, form, **options)
            except (OSError, ValueError, KeyError):
                continue
            made.append(out.getvalue())
    return made


def beside() -> list[object]:
    """Weights with dead values beside them, and a whole module."""
    notes = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "seen": {1, 2}}
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    return [{"model": network.state_dict(), **notes}, {"net": network, "epoch": 1}]


def kinds() -> dict[str, Kind]:
    archives = [saved(state) for state in (*states(1), *beside())]
    archives += [zipped(members(whole)) for whole in archives[:2]]
    old = [legacy(state) for state in (*states(1), *beside())]
    tensors = [safetensors.torch.save(s) for s in states(1)[:3:2] if isinstance(s, dict)]
    # Other grids have hundreds of cells, and loading one takes a tenth of a second.
    grids = [(ROOT / "benchmarks" / "smoke.yaml").read_bytes()]
    grids.append(grids[0].replace(b"training: ", b"training: &t ") + b"also: [{training: *t}]\n")
    flags = b"teacher: /a/teacher.pt\narch: wrn-16-2\ndata: digits\nmean: [0.5]\nepochs: 3\n"
    text = [bytes_changed, part_moved, token_inserted, token_inserted, number_replaced, line_moved]
    archived = [bytes_changed, part_moved, field_changed, directories_joined, member_changed]
    packed = [bytes_changed, part_moved, field_changed, array_changed, array_changed]
    drawn = [bytes_changed, part_moved, size_changed, chunk_changed]
    return {
        "archives": Kind(archives, archived, read_teacher),
        "legacy": Kind(old, [bytes_changed, part_moved, pickle_changed], read_teacher),
        "safetensors": Kind(tensors, [bytes_changed, part_moved, header_changed], read_teacher),
        "YAML": Kind([*grids, flags], text, read_yaml),
        "JSON": Kind(results(), text, read_json),
        "npz": Kind(arrays(), packed, read_npz),
        "images": Kind(images(), drawn, read_image),
    }


# Running.


def mutated(kind: Kind, name: str, seed: int, number: int) -> tuple[bytes, Random]:
    """Return the input with this number, and the random generator for its reader."""
    random = Random(f"{seed} {name} {number}")  # noqa: S311 (no secret)
    content = random.choice(kind.honest)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(kind.ways)(content or b"\0", random.choice(kind.honest), random)
    return content, random


def attempt(kind: Kind, name: str, seed: int, number: int, folder: Path) -> str:
    """Try one input, and return whether it was ``"read"`` or ``"refused"``.

    Raises:
        AssertionError: If a file was left behind, or the message has more than one line.
        Exception: Any error of the reader other than a refusal.
    """
    content, random = mutated(kind, name, seed, number)
    (folder / "in").mkdir()
    end, said = "read", ""
    try:
        kind.read(content, folder / "in", random)
    except REFUSALS as error:
        end, said = "refused", str(error)
    assert "\n" not in said, said
    assert len(os.listdir(folder / "in")) <= 1, os.listdir(folder / "in")
    assert not os.listdir(folder / "tmp"), os.listdir(folder / "tmp")
    shutil.rmtree(folder / "in")
    return end


class SlowError(BaseException):
    """An input takes too long; a BaseException, so that no reader catches it."""


def batch(
    kind: Kind, name: str, seed: int, numbers: range, folder: Path, progress: mmap.mmap
) -> Counter[str]:
    """Limit this process, try some inputs, and return the counts of their outcomes."""

    def slow(*_: object) -> None:
        raise SlowError

    signal.signal(signal.SIGALRM, slow)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ends: Counter[str] = Counter()
    for number in numbers:
        progress[:8] = struct.pack("<q", number)
        signal.alarm(MOST_SECONDS)
        ends[attempt(kind, name, seed, number, folder)] += 1
        signal.alarm(0)
    return ends


def limited(kind: Kind, name: str, seed: int, numbers: range) -> tuple[Counter[str], int, str]:
    """Try some inputs in a process of their own.

    Returns:
        Counts of the outcomes, the peak memory in KiB, and the finding that ended the process
        early, or an empty text.
    """
    with tempfile.TemporaryDirectory() as made, mmap.mmap(-1, 1 << 16) as shared:
        folder = Path(made)
        (folder / "tmp").mkdir()
        child = os.fork()
        if not child:
            tempfile.tempdir = str(folder / "tmp")
            os.chdir(folder)
            code = 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    ends = batch(kind, name, seed, numbers, folder, shared)
                said, code = json.dumps(ends).encode(), 0
            except BaseException:
                said = traceback.format_exc()[-4000:].encode()
            shared[8 : 12 + len(said)] = struct.pack("<I", len(said)) + said
            os._exit(code)
        _, status, used = os.wait4(child, 0)
        (number,), (length,) = struct.unpack("<q", shared[:8]), struct.unpack("<I", shared[8:12])
        said = shared[12 : 12 + length].decode(errors="replace")
        left = sorted(set(os.listdir(folder)) - {"in", "tmp"})
    if status or left:
        how = os.waitstatus_to_exitcode(status)
        return Counter(), used.ru_maxrss, f"{name} {number}: status {how}, left {left}\n{said}"
    return Counter(json.loads(said)), used.ru_maxrss, ""


def fuzz(name: str, kind: Kind, count: int, seed: int) -> dict[str, object]:
    """Try ``count`` inputs of a kind, print the findings, and return the figures."""
    started, ends, findings, peak = time.monotonic(), Counter[str](), 0, 0
    for first in range(0, count, BATCH):
        left = range(first, min(first + BATCH, count))
        done, used, finding = limited(kind, name, seed, left)
        peak = max(peak, used)
        if finding:
            findings += 1
            sys.stderr.write(f"{finding}\n")
        ends += done
    return {
        "files": name,
        "mutated": count,
        "seed": seed,
        "read": ends["read"],
        "refused": ends["refused"],
        "findings": findings,
        "seconds": round(time.monotonic() - started),
        "peak_mib": round(peak / 1024),
    }


def main() -> None:
    """Fuzz all kinds, and exit with an error if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--inputs", type=int, default=50_000, help="number of inputs of all kinds together"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"), help="repeat one input")
    parser.add_argument("--record", type=Path, help="JSON file for the figures")
    chosen = parser.parse_args()
    known = kinds()
    if chosen.only:
        name, number = chosen.only[0], int(chosen.only[1])
        sys.stdout.buffer.write(mutated(known[name], name, chosen.seed, number)[0])
        _, _, finding = limited(known[name], name, chosen.seed, range(number, number + 1))
        sys.exit(finding)
    share, rest = divmod(chosen.inputs, len(known))
    rows = []
    for place, (name, kind) in enumerate(known.items()):
        rows.append(fuzz(name, kind, share + (place < rest), chosen.seed))
        print(json.dumps(rows[-1]), flush=True)
    if chosen.record:
        chosen.record.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if any(row["findings"] for row in rows):
        sys.exit("there are findings")


if __name__ == "__main__":
    main()
