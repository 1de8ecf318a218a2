"""Files that are usually given by mistake are named, with what to do."""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from robustkd import models
from robustkd.cli.opening import student_of
from robustkd.core.errors import InputError, UsageError
from robustkd.models.model_file import is_described
from robustkd.pipeline.opening import architecture
from robustkd.teacher.read import load_teacher
from robustkd.teacher.untrusted import quarantine
from robustkd.teacher.untrusted.contents import Refusal
from robustkd.teacher.untrusted.formats import recognise
from tests.teacher.untrusted.samples import saved, weights

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
AGAIN = "expected a safetensors file or a torch checkpoint: download it again"
SOURCE = "give the PyTorch checkpoint or the safetensors file that it was made from"
UNPACK = "unpack it first, and give the file of weights in it"
IN_A_ZIP = (
    "is a zip archive without data.pkl, and therefore not a torch checkpoint; if the weights are "
    "in it, unpack it first"
)


def refusal(tmp_path: Path, content: bytes, name: str = "teacher.pt") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        quarantine.read(path)
    return str(caught.value).removeprefix(f"{path} ")


def tar_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    return buffer.getvalue()


def zip_of(name: str, *, tool: bool = False) -> bytes:
    """A zip archive; tools such as Info-ZIP add fields with times, as the second kind has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo(name)
        if tool:
            entry.extra = b"UT\x05\x00\x03\x00\x00\x00\x00"
        archive.writestr(entry, saved(weights()))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LFS, "is a pointer of Git LFS, not the file itself; fetch the file with git lfs pull"),
        (
            b"/annex/objects/MD5E-s3--900150983cd24fb0d6963f7d28e17f72.pt\n",
            "is a pointer of git-annex; fetch the file with git annex get",
        ),
        *(
            (page, f"is a web page (HTML), not the file itself; {AGAIN}")
            for page in (
                b"<!DOCTYPE html><html>",
                b"\n\n<html lang=en>",
                b"\xef\xbb\xbf<!doctype HTML>",
                b"<HEAD>",
                b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
            )
        ),
        (b'{"error": "not found"}', f"is a text in JSON, not the file of weights; {AGAIN}"),
        (b'{\n  "weight_map": {}}', f"is a text in JSON, not the file of weights; {AGAIN}"),
        (b"\x08\x09\x12\x07pytorch\x1a\x05", "is an ONNX model, whose weights are not read; "),
        (b"\x08\x07:\xa3\x06\n1\n\x06images", "is an ONNX model, whose weights are not read; "),
        (b"\x1c\0\0\0TFL3\x14\0 \0", "is a TensorFlow Lite model, whose weights are not read; "),
        (b"7z\xbc\xaf\x27\x1c\0\4", f"is a 7z archive; {UNPACK}"),
        (b"Rar!\x1a\x07\x01\0", f"is a RAR archive; {UNPACK}"),
    ],
)
def test_the_first_bytes_tell_the_kind(head, message):
    said = message + SOURCE if message.endswith("; ") else message
    with pytest.raises(Refusal, match=f"^{re.escape(said)}$"):
        recognise(head)


def test_a_safetensors_file_of_any_length_is_one():
    """Its first bytes are a number, which may be those of other formats."""
    for length in (0x12_09_08, 0x3A_07_08):
        assert recognise(length.to_bytes(8, "little") + b'{"a":') == "safetensors"


def test_tar_archives_of_tools_and_of_old_versions_of_torch(tmp_path):
    assert refusal(tmp_path, tar_of("teacher.pt")) == f"is a tar archive; {UNPACK}"
    old = refusal(tmp_path, tar_of("storages"))
    assert old.startswith("is a tar archive (torch.save wrote these before 0.4); ")


@pytest.mark.parametrize("tool", [False, True])
@pytest.mark.parametrize("name", ["teacher.pt", "my model.safetensors"])
def test_zip_archives_of_tools(tool, name, tmp_path):
    assert refusal(tmp_path, zip_of(name, tool=tool)) == IN_A_ZIP


def test_a_keras_model(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")
    assert refusal(tmp_path, buffer.getvalue()).startswith("is a Keras model (.keras); ")


def test_arrays_of_numpy_are_named(tmp_path):
    state = {name: tensor.numpy() for name, tensor in weights().items()}
    assert refusal(tmp_path, saved(state)) == (
        "holds arrays of NumPy instead of tensors; save them as tensors: "
        "{name: torch.from_numpy(array)}"
    )
    large = saved({"w": np.zeros(5_000_000, dtype=np.float32)})
    assert re.search(
        "; expected at most 16777216: save the state dict alone, with tensors instead of arrays of "
        "NumPy or other objects$",
        refusal(tmp_path, large),
    )


DENSE = "save its weights as dense tensors of float32, before any quantisation"


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_other_types_are_named(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    expected = f"has quantised values of the type 'QInt8', which are not read; {DENSE}"
    assert refusal(tmp_path, saved({"w": quantised})) == expected
    network = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)))
    assert refusal(tmp_path, saved(network.state_dict())) == expected
    small = {"w": torch.ones(2).to(torch.float8_e4m3fn)}
    said = f"has values of a type such as float8, which are not read; {DENSE}"
    assert refusal(tmp_path, saved(small)) == said
    sparse = {"w": torch.eye(2).to_sparse()}
    assert refusal(tmp_path, saved(sparse)) == f"has sparse tensors, which are not read; {DENSE}"
    complex_values = {"w": torch.ones(2, dtype=torch.complex64)}
    assert "has values of the type 'ComplexFloat', " in refusal(tmp_path, saved(complex_values))
    assert refusal(tmp_path, save(small), "teacher.safetensors") == (
        "gives 'w' the type 'F8_E4M3', which is not read; save float32 weights"
    )


def test_other_calls_are_still_refused_as_code(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return torch.hub.load, ("a",)

    assert refusal(tmp_path, saved({"w": Evil()})).startswith("names code that no state dict needs")


# The same kinds where a model of this package is expected.


def test_a_model_of_a_type_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"w": torch.ones(2).to(torch.float8_e4m3fn)}))
    assert not is_described(path)
    with pytest.raises(InputError, match=r"values of the type 'F8_E4M3', which is not read$"):
        models.load(path)


@pytest.mark.parametrize(
    "content", [saved({"w": torch.ones(2)}), pickle.dumps([1]), zip_of("a.safetensors")]
)
def test_a_checkpoint_is_no_model_of_this_package(content, tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(content)
    assert not is_described(path)
    with pytest.raises(InputError) as caught:
        models.load(path)
    assert str(caught.value) == (
        f"{path} is no file that robustkd wrote, but a torch checkpoint, or another pickle or "
        "archive; read the file of a teacher with robustkd.load_teacher"
    )


def test_a_pointer_in_place_of_a_model(tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_bytes(LFS)
    assert not is_described(path)
    with pytest.raises(InputError, match="is a pointer of Git LFS, not the file itself; fetch it"):
        models.load(path)


@pytest.mark.parametrize("arch", [None, "wrn-10-1"])
def test_the_kind_matters_more_than_a_missing_architecture(arch, tmp_path):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(LFS)
    with pytest.raises(InputError, match="is a pointer of Git LFS"):
        load_teacher(path, arch=architecture(path, arch), classes=2, image_shape=(3, 8, 8))


def test_only_files_of_an_export_are_called_exported(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09\x12\x07pytorch")
    assert student_of(path) == path
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(InputError, match="is an exported model, which only robustkd export"):
        student_of(path)


def test_a_key_for_a_file_without_keys(tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(saved(weights()))
    with pytest.raises(UsageError) as caught:
        load_teacher(
            path, arch="wrn-10-1", classes=10, image_shape=(1, 16, 16), teacher_key="model"
        )
    assert str(caught.value) == (
        f"teacher_key is 'model'; {path} has one state dict, which is under no key: leave it out"
    )
