"""Exported files: predictions and class names of the student, measured figures, and no paths."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from robustkd import models
from robustkd.core.errors import InputError, ThresholdError, UsageError, WriteError
from robustkd.core.files import read_json
from robustkd.core.types import Batch, Split
from robustkd.data import InMemory
from robustkd.evaluation.measurement import measure
from robustkd.export import FILES, OnnxClassifier, compare, export_student, installed, run
from robustkd.export import int8 as quantisation
from robustkd.export import onnx as onnx_files
from robustkd.models import complexity
from robustkd.training.inference import predict
from robustkd.training.metrics import accuracy
from tests.export.conftest import HOSTILE, TRIGGER, digits
from tests.modes import MODES


def described(path: Path) -> dict[str, object]:
    (entry,) = onnx.load(path).metadata_props
    assert entry.key == "robustkd"
    assert entry.value.isascii()
    return json.loads(entry.value)


@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_onnx_file_gives_the_students_logits_for_any_number_of_images(exported, images):
    pixels = torch.rand(images, 1, 16, 16, generator=torch.Generator().manual_seed(images))
    student = exported.student.eval()
    with torch.no_grad():
        expected = student(pixels)
    for threads in (1, 2):
        file = OnnxClassifier(exported.folder / FILES["onnx"], threads=threads)
        torch.testing.assert_close(file(pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES.values())
def test_the_mode_of_the_caller_changes_no_file(exported, mode, tmp_path):
    with mode():
        found = export_student(exported.student, exported.source, tmp_path / "out", int8=False)
    assert (tmp_path / "out" / FILES["onnx"]).read_bytes() == (
        exported.folder / FILES["onnx"]
    ).read_bytes()
    assert found["files"].keys() >= {"onnx", "program"}


# torch.export.load of torch 2.10 warns about its own buffer.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_the_traced_program_gives_the_students_logits(exported):
    extra = {"robustkd": ""}
    program = torch.export.load(exported.folder / FILES["program"], extra_files=extra)
    pixels = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        expected = exported.student.eval()(pixels)
        torch.testing.assert_close(program.module()(pixels), expected, atol=1e-4, rtol=1e-4)
    assert json.loads(extra["robustkd"])["class_names"] == list(HOSTILE)


@pytest.mark.parametrize("kind", ["onnx", "int8"])
def test_files_contain_their_description_with_any_class_names(exported, kind):
    said = described(exported.folder / FILES[kind])
    spec = exported.student.spec
    assert said["class_names"] == list(HOSTILE)
    assert said["image_shape"] == [1, 16, 16]
    assert (said["resize"], said["crop"], said["interpolation"]) == (
        ("centred-square", 1.0, "bilinear")
    )
    assert (said["mean"], said["std"]) == (list(spec.mean), list(spec.std))


def test_the_file_is_one_opset_18_with_a_free_number_of_images(exported):
    content = onnx.load(exported.folder / FILES["onnx"], load_external_data=False)
    assert not any(tensor.external_data for tensor in content.graph.initializer)
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", 18)]
    for value in (content.graph.input[0], content.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    names = {*FILES.values(), "export.json"} - {FILES["state_dict"]}
    assert {path.name for path in exported.folder.iterdir()} == names


def test_the_figures_are_those_of_the_files(exported):
    content = read_json(exported.folder / "export.json")
    assert content == exported.content
    for kind in ("onnx", "int8"):
        path = exported.folder / FILES[kind]
        found = measure(OnnxClassifier(path), exported.source, trigger=TRIGGER, target=0)
        assert content["measured"][kind] == found.fields()
        assert content["files"][kind]["bytes"] == path.stat().st_size
        timed = content["running"][kind]
        assert 0 < timed["memory_before_mib"] <= timed["peak_mib"] < 2000
        assert timed["latency"][0]["threads"] == 1
        for row in timed["latency"]:
            assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"]
            assert row["runs"] >= 30
            assert row["load_ms"] > 0
    assert content["measured"]["torch"]["n_asr"] == content["measured"]["int8"]["n_asr"] > 0
    assert content["parity"]["onnx"]["agreement"] == 1
    assert content["parity"]["onnx"]["largest_difference"] < 1e-3
    assert content["student"]["parameters"] == 77_562
    assert content["student"]["macs"] == 3_052_160
    assert content["measured_on"] == "this machine"
    assert content["files"]["int8"]["bytes"] < content["files"]["onnx"]["bytes"] / 2


def test_no_file_has_a_path_of_this_machine(exported):
    places = {str(Path(models.__file__).parents[2]), os.path.dirname(torch.__file__)}
    for path in exported.folder.iterdir():
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        assert not any(place.encode() in part for place in places for part in parts), path.name


def broken(model, program, path):
    """An exporter that mixes up two classes, as a wrong weight would."""
    onnx_files.write_onnx(model, program, path)
    content = onnx.load(path)
    (bias,) = (t for t in content.graph.initializer if t.name.endswith("head.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[3] += 50
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(content, path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_limit_on_file_sizes_is_not_a_fault_of_the_architecture(
    wrapped, exported, monkeypatch, tmp_path
):
    def limited(*_: object) -> None:
        error = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if wrapped:
            raise RuntimeError("the exporter failed") from error
        raise error

    monkeypatch.setattr(onnx_files, "stamp", limited)
    out = tmp_path / "out"
    message = f"{out} cannot be written: File too large; raise the limit (ulimit -f)"
    with pytest.raises(WriteError, match=f"^{re.escape(message)}$"):
        export_student(exported.student, exported.source, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC])
def test_a_recipe_without_room_is_not_one_that_cannot_be_applied(
    number, exported, monkeypatch, tmp_path
):
    def limited(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(quantisation, "quantise", limited)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        quantisation.quantise_best(
            exported.folder / FILES["onnx"],
            tmp_path / "out.onnx",
            exported.student.spec,
            exported.source,
            student=predict(exported.student, exported.source, "validation"),
        )


def test_a_broken_export_is_refused_and_leaves_nothing(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "write_onnx", broken)
    with pytest.raises(ThresholdError) as caught:
        export_student(exported.student, exported.source, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert re.fullmatch(
        r"student\.onnx differs from the student: it predicts the student's class for "
        r"1\d\.\d\d % of 100 validation images, expected at least 99\.9 % \(largest difference of "
        r"logits 50\); nothing was written",
        str(caught.value),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_student_with_outputs_that_are_not_finite_is_refused_as_such(exported, tmp_path):
    student = copy.deepcopy(exported.student)
    with torch.no_grad():
        student.network.head.bias[3] = torch.nan
    with pytest.raises(InputError) as caught:
        export_student(student, exported.source, tmp_path / "out")
    assert str(caught.value) == (
        "the outputs of the model are not finite on validation images; check its weights and how "
        "the images are read"
    )
    assert list(tmp_path.iterdir()) == []


def test_operations_that_cannot_be_counted_do_not_stop_an_export(exported, monkeypatch, tmp_path):
    def uncountable(*_: object) -> int:
        raise NotImplementedError("an operation of the user's own")

    monkeypatch.setattr(complexity, "macs", uncountable)
    out = tmp_path / "out"
    found = export_student(exported.student, exported.source, out, int8=False)
    assert found == read_json(out / "export.json")
    assert found["student"]["macs"] is None
    assert (
        "the files were compared with the student on 100 validation images only; use at least 200"
    ) in found["notes"]


def test_an_int8_file_that_loses_too_much_is_refused(exported, monkeypatch, tmp_path):
    def mixed_up(source, out, spec, data, *, student):
        """A quantisation that mixes up two classes of test images, but not of validation images."""
        broken(exported.student, onnx_files.trace(copy.deepcopy(exported.student)), out)
        row = quantisation.Tried("first", accuracy(*student), compare(student[0], student[0]))
        return quantisation.Quantised(row, (row,), 16)

    monkeypatch.setattr(quantisation, "quantise_best", mixed_up)
    call = partial(export_student, exported.student, exported.source, tmp_path / "out")
    with pytest.raises(ThresholdError, match=r"^student\.int8\.onnx is \d\d\.00 points less acc"):
        call(max_int8_drop=0.01)
    assert list(tmp_path.iterdir()) == []
    assert call(max_int8_drop=1.0)["measured"]["int8"]["acc"] < 0.3


def test_the_student_is_left_as_it_was(exported):
    before = {name: value.clone() for name, value in exported.student.state_dict().items()}
    logits, _ = predict(exported.student, exported.source, "validation")
    file = OnnxClassifier(exported.folder / FILES["onnx"])
    found, _ = predict(file, exported.source, "validation")
    assert torch.equal(logits.argmax(1), found.argmax(1))
    assert all(torch.equal(before[k], v) for k, v in exported.student.state_dict().items())


def test_a_failed_export_is_reported_in_one_line_and_leaves_nothing(exported, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match=r"used is not empty; give a new one with --out$"):
        export_student(exported.student, exported.source, tmp_path / "used")
    other = digits(tuple("abcdefghij"))
    with pytest.raises(InputError, match=r"^the student calls class 0 'a\\nb'; the data calls it"):
        export_student(exported.student, other, tmp_path / "out")
    stubborn = models.build(exported.student.spec, seed=0)
    stubborn.network.forward = lambda images: (
        images.mean((2, 3)).expand(-1, len(HOSTILE)) * float(images.sum())
    )
    with pytest.raises(InputError, match=r"^wrn-10-1 cannot be exported to ONNX: .+$"):
        export_student(stubborn, exported.source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_an_error_of_torch_prints_nothing_else(capfd):
    """torch prints its graph, with source lines and paths, before it raises the error."""
    model = models.build(models.Spec("wrn-10-1", 3, (1, 8, 8)), seed=0).eval()
    inner = model.network.forward
    model.network.forward = lambda images: inner(images * 2 if images.mean() > 0.5 else images)
    with pytest.raises(InputError, match=r"^wrn-10-1 cannot be exported to ONNX: Could not guard"):
        onnx_files.trace(model)
    assert capfd.readouterr() == ("", "")


def test_stderr_of_own_code_is_shown_unless_there_is_an_error(capsys):
    with installed.quiet():
        print("chatter of a library")
        print("words of the user's code", file=sys.stderr)
    assert capsys.readouterr() == ("", "words of the user's code\n")


def test_a_missing_package_is_reported_before_any_work(monkeypatch):
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name == "onnx" else 1)
    with pytest.raises(UsageError) as caught:
        installed.check_installed()
    assert str(caught.value) == (
        "export needs the package onnx, which is not installed; pip install 'robustkd[export]'"
    )


def test_a_model_without_class_names_numbers_them():
    spec = replace(models.Spec("wrn-10-1", 3, (1, 8, 8)))
    assert onnx_files.description(spec)["class_names"] == ["0", "1", "2"]


@pytest.mark.parametrize(("convert", "name"), [("half", "float16"), ("double", "float64")])
def test_a_student_of_another_type_of_numbers_is_refused(convert, name, tmp_path):
    source = digits()
    student = getattr(models.build(models.spec_for("wrn-10-1", source), seed=0), convert)()
    message = (
        f"the student has weights of type torch.{name}; expected torch.float32: convert it with "
        "float()"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        export_student(student, source, tmp_path / "out", int8=False)
    assert not (tmp_path / "out").exists()


class Own:
    """A data source of the user's own code; the pixels of one split are bytes as floats."""

    def __init__(self, source: InMemory, wrong: str) -> None:
        self.name, self.classes, self.image_shape = "own", source.classes, source.image_shape
        self.size, self._source, self._wrong = source.size, source, wrong

    def batches(self, split: Split, **how: Any) -> Iterator[Batch]:
        for batch in self._source.batches(split, **how):
            yield batch._replace(images=batch.images * 255) if split == self._wrong else batch


@pytest.mark.parametrize(
    ("split", "int8"), [("train", True), ("validation", False), ("test", False)]
)
def test_pixels_of_another_range_are_refused_before_any_work(exported, split, int8, tmp_path):
    told: list[str] = []
    with pytest.raises(InputError, match=rf"^own {split}: pixels reach from 0 to 255; expected"):
        export_student(
            exported.student,
            Own(exported.source, split),
            tmp_path / "out",
            int8=int8,
            tell=told.append,
        )
    assert (told, list(tmp_path.iterdir())) == ([], [])


def test_a_trigger_that_returns_no_images_is_refused_before_any_work(exported, tmp_path):
    told: list[str] = []
    with pytest.raises(UsageError, match=r"^the trigger returns pixels from .* to .*; expected"):
        export_student(
            exported.student,
            exported.source,
            tmp_path / "out",
            trigger=lambda images: 255 * images,
            tell=told.append,
        )
    assert (told, list(tmp_path.iterdir())) == ([], [])


def test_a_student_that_does_not_work_with_the_images_is_refused(exported, tmp_path):
    student = models.build(exported.student.spec, seed=0)
    student.network.forward = lambda images: images @ torch.zeros(7)
    with pytest.raises(UsageError, match=r"^the student does not work with images of shape 2 x 1"):
        export_student(student, exported.source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
