"""Cheap checks run before expensive ones, and the hash is that of the weights that are read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from io import FileIO
from pathlib import Path

import pytest
import torch

from robustkd import models
from robustkd.core.errors import InputError
from robustkd.models.model_file import write_safetensors
from robustkd.teacher import read
from robustkd.teacher.untrusted import quarantine, sandbox
from robustkd.teacher.untrusted.formats import HEAD
from tests.teacher.untrusted.samples import SPEC, entry, safetensors, saved, weights

GIB = 1 << 30
OPTIONS = {"arch": SPEC.arch, "classes": SPEC.classes, "image_shape": SPEC.image_shape}


def refused(path: Path) -> str:
    """Why a teacher is not read."""
    with pytest.raises(InputError) as caught:
        read.read_teacher(path, **OPTIONS, mean=(0.5,), std=(0.5,))
    return str(caught.value).removeprefix(f"{path} ")


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file that takes no room on the disk behind its first bytes."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


@pytest.fixture
def dear(monkeypatch):
    """No copy, no hash, no conversion."""

    def never(*_: object) -> None:
        raise AssertionError("a dear step came before the cheap ones")

    monkeypatch.setattr(quarantine, "_copy", never)
    monkeypatch.setattr(read, "check_values", never)


def test_a_sparse_file_of_100_gib_is_refused_by_its_first_bytes(tmp_path, dear, monkeypatch):
    cheaply = quarantine._check_cheaply

    def watched(file: FileIO, *given: object, **named: object) -> None:
        try:
            cheaply(file, *given, **named)
        finally:
            assert file.tell() == HEAD

    monkeypatch.setattr(quarantine, "_check_cheaply", watched)
    monkeypatch.setattr(quarantine, "_layouts", lambda *_, **__: pytest.fail("was parsed"))
    path = sparse(tmp_path / "zeros.pt", b"", 100 * GIB)
    assert refused(path).startswith("begins with 0000000000000000, which is neither")
    header = safetensors({"w": entry(25 * GIB, end=100 * GIB)})
    path = sparse(tmp_path / "one.safetensors", header, len(header) + 100 * GIB)
    assert refused(path).startswith(f"has {len(header) + 100 * GIB} bytes; expected at most 7")


def test_keys_are_compared_before_values_are_read(tmp_path, dear):
    """Small enough for its architecture, of half precision, and of other keys."""
    header = safetensors({"w": entry(10**7, dtype="F16", end=2 * 10**7)})
    path = sparse(tmp_path / "half.safetensors", header, len(header) + 2 * 10**7)
    assert refused(path).startswith(f"does not fit the architecture {SPEC.arch!r}: ")
    state = {n: t.half() if t.is_floating_point() else t for n, t in weights().items()}
    (tmp_path / "half.pt").write_bytes(saved(state | {"stem.extra": torch.ones(1)}))
    assert "1 unexpected ('stem.extra')" in refused(tmp_path / "half.pt")


def test_a_file_of_ours_is_compared_before_values_are_read(tmp_path, dear):
    model = models.build(SPEC, seed=0)
    models.save(model, tmp_path / "teacher.safetensors")
    content = (tmp_path / "teacher.safetensors").read_bytes()
    (tmp_path / "other.safetensors").write_bytes(content.replace(b"head.bias", b"head.bits"))
    assert "1 missing (network.head.bias)" in refused(tmp_path / "other.safetensors")


def test_fitting_weights_are_read_among_other_values(tmp_path):
    state = {f"module.model.{name}": value for name, value in weights().items()}
    ours = {f"network.{n}": t for n, t in weights().items()}
    ours |= {f"normalise.{n}": torch.full((1, 1, 1), 0.25) for n in ("mean", "std")}
    for content in (state, {"ema": {"x": torch.ones(1)}, "model": ours}):
        (tmp_path / "teacher.pt").write_bytes(saved(content))
        found = read.read_teacher(tmp_path / "teacher.pt", **OPTIONS, mean=(0.5,), std=(0.5,))
        assert found.file.matched == len(weights())


@pytest.mark.parametrize("arch", ["resnet-9998", "wrn-994-999", "pyramidnet-992-999"])
def test_a_small_student_that_names_a_huge_network_is_refused_unbuilt(arch, tmp_path, monkeypatch):
    monkeypatch.setattr(models.checks, "build", lambda *_, **__: pytest.fail("was built"))
    path = tmp_path / "student.safetensors"
    write_safetensors(path, {"w": torch.ones(2)}, {"spec": asdict(SPEC) | {"arch": arch}})
    assert path.stat().st_size < 400
    with pytest.raises(InputError, match="has 1 tensors with 2 values; it is cut off or malicious"):
        models.load(path)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"classes": 10**12}, "with 1000000000000 classes, but has 1 tensors with 20 values"),
        ({"image_shape": [1, 10**6, 16]}, "expected at most 4096 pixels on a side"),
    ],
)
def test_a_student_that_claims_more_than_it_holds_is_refused_unbuilt(
    said, says, tmp_path, monkeypatch
):
    monkeypatch.setattr(models.checks, "build", lambda *_, **__: pytest.fail("was built"))
    path = tmp_path / "student.safetensors"
    spec = asdict(SPEC) | {"arch": "timm/vit_giant_patch14_224"} | said
    write_safetensors(path, {"w": torch.ones(20)}, {"spec": spec})
    with pytest.raises(InputError, match=says):
        models.load(path)


def test_a_student_of_other_keys_is_refused_before_its_values_are_read(tmp_path, monkeypatch):
    text = json.dumps({"format": 1, "spec": asdict(SPEC)})
    header = safetensors({"__metadata__": {"robustkd": text}, "w": entry(25 * GIB, end=100 * GIB)})
    path = sparse(tmp_path / "student.safetensors", header, len(header) + 100 * GIB)
    with pytest.raises(InputError, match="does not fit the architecture"):
        models.load(path)


# Copied once.


def test_the_hash_is_that_of_the_weights_whatever_happens_to_the_file(tmp_path, monkeypatch):
    """The file is swapped for another after each step; no mtime betrays it."""
    path = tmp_path / "teacher.pt"
    first, second = saved({"w": torch.ones(4)}), saved({"w": torch.zeros(4)})
    monkeypatch.setattr(quarantine, "_state", lambda _: (len(first), 0))
    for step in ("_check_cheaply", "_copy", "_convert", "_load"):
        path.write_bytes(first)
        with monkeypatch.context() as patched:
            before = getattr(quarantine, step)

            def swapping(*given: object, _before=before, **named: object) -> object:
                path.write_bytes(second)
                done = _before(*given, **named)
                path.write_bytes(first)
                path.write_bytes(second)
                return done

            patched.setattr(quarantine, step, swapping)
            found = quarantine.read(path)
        content = {0.0: second, 1.0: first}[found.tensors["w"][0].item()]
        assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_a_file_that_grows_or_shrinks_is_refused(tmp_path, monkeypatch):
    path, whole = tmp_path / "teacher.pt", saved({"w": torch.ones(4)})
    run = sandbox.run
    for other in (whole + b"x", whole[:-1], b""):
        path.write_bytes(whole)

        def changing(*given: object, _other=other) -> sandbox.ReadOutcome:
            path.write_bytes(_other)
            return run(*given)

        monkeypatch.setattr(sandbox, "run", changing)
        with pytest.raises(InputError, match="changed while it was read"):
            quarantine.read(path)


def test_the_copy_stops_at_the_size_that_was_seen(tmp_path):
    (tmp_path / "file").write_bytes(b"abcdef")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        sha256 = quarantine._copy(file, tmp_path / "copy", 4)
    assert sha256 == hashlib.sha256(b"abcd").hexdigest()
    assert (tmp_path / "copy").read_bytes() == b"abcd"
