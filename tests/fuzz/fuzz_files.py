"""Coverage-guided fuzzing of everything that reads a stranger's bytes.

    pip install atheris
    python tests/fuzz/fuzz_files.py pickle --runs 20000 --seed 1

Each target parses mutated files in this process, without the limits of the reading process, so
that nothing is forgiven: any exception other than a refusal ends the run, and so do a side effect
(whatever Python's audit hooks see: files, processes, sockets, imports, code), an input that takes
20 seconds, and 1 GiB of memory. The layer beneath a checksum or a length is reached by wrapping
what is mutated.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

with atheris.instrument_imports(
    include=[
        "robustkd.teacher.untrusted",
        "robustkd.data.sources.idx",
        "zipfile",
        "pickletools",
        "json",
        "gzip",
    ]
):
    import robustkd.teacher.untrusted.child as child
    from robustkd.core.errors import InputError
    from robustkd.data.sources.idx import read_idx
    from robustkd.teacher.untrusted.contents import Refusal

RECORD = ROOT / "benchmarks" / "results" / "hostile" / "fuzzing.json"
FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "import", "exec", "compile")
FORBIDDEN += ("open", "pickle.", "tempfile.", "signal.", "sys.")
LONGEST_REFUSAL = 500


class Watch:
    """Ends the run at the first thing that a parser has no business to do."""

    def __init__(self) -> None:
        self.allowed: set[object] = set()
        self.watching = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        """Python's audit hook."""
        if self.watching and event.startswith(FORBIDDEN) and arguments[0] not in self.allowed:
            self.watching = False
            raise AssertionError(f"side effect: {event} {arguments!r}")


def read_teacher(content: bytes) -> None:
    """All that the reading process does with a file."""
    out = io.BytesIO()
    try:
        child.convert(io.BytesIO(content), out, len(content))
    except Refusal as refusal:
        text = str(refusal)
    else:
        text, written = "", out.getvalue()
        header = int.from_bytes(written[:8], "little")
        assert len(written) - 8 - header <= 2 * len(content), len(written)
    assert text.isprintable(), text
    assert len(text) < LONGEST_REFUSAL, text


def read_images(content: bytes, path: Path) -> None:
    """An IDX file; this reader takes a path."""
    path.write_bytes(content)
    try:
        values = read_idx(path)
    except InputError as refusal:
        text = str(refusal)
    else:
        text, most = "", 1032 * len(content)
        assert values.nbytes <= most, (values.nbytes, most)
    assert "\n" not in text, text


def in_safetensors(header: bytes) -> bytes:
    """A header of the right length before 24 bytes of values."""
    return len(header).to_bytes(8, "little") + header + bytes(24)


def targets(scratch: Path) -> dict[str, tuple[Callable[[bytes], None], list[bytes]]]:
    """Each target with a few honest files to begin from."""
    import torch

    from tests.teacher.untrusted.samples import (
        Payload,
        checkpoint,
        entry,
        legacy,
        members,
        safetensors,
        saved,
        tensor_program,
        zipped,
    )

    header = {
        "__metadata__": {"robustkd": "{}"},
        "a": entry(2, end=8),
        "b": entry(4, 1, begin=8, end=24),
    }
    tensors = safetensors(header, bytes(24))
    program = tensor_program()
    wrapped = (
        program[:2] + b"}X\5\0\0\0modelccollections\nOrderedDict\n)R" + program[3:-2] + b"s}bs."
    )
    programs = [
        program,
        wrapped,
        pickle.dumps({"a": [1, 2.5, None, True, ("x", 2**70)], "b": {}}, protocol=2),
        pickle.dumps(Payload(print, "ran"), protocol=2),
        pickle.dumps({"a": argparse.Namespace(b=1), "c": {1}, "d": frozenset("e")}, protocol=4),
        members(saved(torch.nn.Linear(2, 3)))["archive/data.pkl"],
    ]
    old = [legacy({"w": torch.ones(4)}), legacy(torch.nn.Linear(2, 3))]
    archives = [checkpoint(each, _0=bytes(16)) for each in programs[:2]]
    archives.append(zipped({"a/data.pkl": program, "a/data/0": bytes(16), "a/.x": b""}))
    images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4)) + bytes(24)

    def idx(content: bytes) -> None:
        read_images(content, scratch)

    return {
        "safetensors": (read_teacher, [tensors]),
        "header": (lambda text: read_teacher(in_safetensors(text)), [tensors[8:-24]]),
        "zip": (read_teacher, archives),
        "legacy": (read_teacher, old),
        "pickle": (lambda each: read_teacher(checkpoint(each, _0=bytes(16))), programs),
        "idx": (idx, [images, gzip.compress(images)]),
        "idx-gzip": (lambda content: idx(gzip.compress(content, 1)), [images]),
    }


def fuzz(target: str, runs: int, seed: int, folder: Path) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    scratch, corpus = folder / "file", folder / "corpus"
    parse, seeds = targets(scratch)[target]
    corpus.mkdir()
    for place, content in enumerate(seeds):
        (corpus / f"{place}").write_bytes(content)
    child.load_codecs()
    watch = Watch()
    watch.allowed.add(str(scratch))

    def once(content: bytes) -> None:
        watch.watching = True
        try:
            parse(content)
        finally:
            watch.watching = False

    limits = ["-timeout=20", "-rss_limit_mb=1024", "-max_len=4096", "-verbosity=1"]
    crashes = [f"-artifact_prefix={tempfile.gettempdir()}/robustkd-fuzz-"]
    numbers = [f"-runs={runs}", f"-seed={seed}"]
    atheris.Setup([sys.argv[0], *numbers, *limits, *crashes, str(corpus)], once)
    atheris.Fuzz()


def record(runs: int, seed: int) -> None:
    """Fuzz every target in turn and write what came of it, as rows of a table."""
    rows = []
    for target in targets(Path()):
        command = [sys.executable, __file__, target, "--runs", str(runs), "--seed", str(seed)]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = re.findall(r"#([0-9]+)\s+DONE\s+cov: ([0-9]+)", done.stderr)
        files, covered = map(int, last[-1]) if last else (0, 0)
        rows.append(
            {
                "target": target,
                "mutated_files": files,
                "seed": seed,
                "places_covered": covered,
                "findings": int(done.returncode != 0),
                "seconds": round(time.monotonic() - started),
            }
        )
        if done.returncode:
            sys.stderr.write(f"{done.stdout}{done.stderr}\n{target}: status {done.returncode}\n")
    RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Fuzz one target, or record them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*targets(Path()), "all"], help="all: and record it")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.target == "all":
        record(chosen.runs, chosen.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        # libFuzzer ends its process at once, so another one is left to clean up.
        process = os.fork()
        if not process:
            fuzz(chosen.target, chosen.runs, chosen.seed, Path(folder))
        _, status = os.waitpid(process, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
