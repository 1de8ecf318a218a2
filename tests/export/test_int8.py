"""Int8 recipes: the best one on validation images is exported, and failures are reported."""

from __future__ import annotations

import errno
import importlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import onnx
import pytest
import torch

from robustkd.core.errors import InputError, WriteError
from robustkd.data import InMemory
from robustkd.export import FILES, OnnxClassifier, export_student, int8
from robustkd.export.int8 import (
    RECIPES,
    Quantised,
    Recipe,
    Tried,
    calibration_images,
    quantise,
    quantise_best,
)
from robustkd.export.parity import Parity
from robustkd.training.inference import predict
from robustkd.training.metrics import Proportion, accuracy


def test_recipes_have_names_of_their_own():
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    assert RECIPES[0].name == "per-channel, 7-bit weights, min-max"


@pytest.mark.slow
def test_the_first_of_the_most_accurate_recipes_ships(exported):
    told = exported.content["int8"]
    assert [row["recipe"] for row in told["tried"]] == [recipe.name for recipe in RECIPES]
    assert not any(row["reason"] for row in told["tried"])
    best = max(told["tried"], key=lambda row: (row["validation_acc"], row["agreement"]))
    assert told["chosen"] == best["recipe"]
    found, labels = predict(
        OnnxClassifier(exported.folder / FILES["int8"]), exported.source, "validation"
    )
    assert accuracy(found, labels).value == best["validation_acc"]


@pytest.mark.slow
def test_the_file_computes_in_bytes(exported):
    content = onnx.load(exported.folder / FILES["int8"])
    kinds = {tensor.data_type for tensor in content.graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} <= kinds
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in content.graph.node}


@pytest.mark.slow
def test_calibration_sees_training_images_alone_and_always_the_same(exported):
    source = exported.source
    images = calibration_images(source)
    assert len(images) == 256
    assert np.array_equal(images, calibration_images(source))
    training = {image.numpy().tobytes() for image in source.train.images}
    assert all((255 * image).round().astype(np.uint8).tobytes() in training for image in images)


def held(exported, images: int) -> InMemory:
    """The data with fewer training images."""
    training = exported.source.train
    fewer = training._replace(images=training.images[:images], labels=training.labels[:images])
    return replace(exported.source, train=fewer)


@pytest.mark.parametrize(("held_images", "used"), [(7, 7), (16, 16), (17, 16), (151, 144)])
def test_calibration_batches_have_equal_size(exported, held_images, used):
    assert len(calibration_images(held(exported, held_images))) == used


def test_percentiles_and_entropies_need_no_round_number_of_images(exported, tmp_path):
    images = calibration_images(held(exported, 39))
    for recipe in RECIPES:
        if recipe.calibration != "min-max":
            quantise(exported.folder / FILES["onnx"], tmp_path / "out.onnx", images, recipe)
            assert OnnxClassifier(tmp_path / "out.onnx")(torch.rand(2, 1, 16, 16)).isfinite().all()


def test_recipes_that_fail_are_named():
    worked = Tried("first", Proportion(9, 10), Parity(Proportion(9, 10), 0.0))
    failed = Tried("second", None, None, "no\x1bshape")
    assert Quantised(worked, (worked, failed), 16).failures == [
        r"int8: the recipe 'second' could not be applied: no\x1bshape"
    ]


def spoilt(source: Path, out: Path, images: object, recipe: Recipe) -> None:
    raise RuntimeError(f"no {recipe.calibration}\nand more")


@pytest.mark.slow
def test_a_network_that_fits_no_recipe_is_reported_in_one_line(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "quantise", spoilt)
    judged = predict(exported.student, exported.source, "validation")
    message = (
        "student.onnx cannot be quantised: no min-max; export the other files alone with --no-int8 "
        "(in Python: int8=False)"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantise_best(
            exported.folder / FILES["onnx"],
            tmp_path / "out",
            exported.student.spec,
            exported.source,
            student=judged,
            recipes=RECIPES[:2],
        )
    assert not (tmp_path / "out").exists()


def test_incomplete_files_are_in_the_folder_of_the_export(exported, monkeypatch, tmp_path):
    """So that the next export removes them if the process is killed."""
    seen: list[Path] = []

    def noted(source: Path, out: Path, images: object, recipe: Recipe) -> None:
        seen.append(out)
        quantise(source, out, images, recipe)

    monkeypatch.setattr(int8, "quantise", noted)
    quantised(exported, tmp_path / "out")
    (made,) = seen
    assert made.parent.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def quantised(exported, out: Path) -> Quantised:
    """The student, quantised by one recipe."""
    return quantise_best(
        exported.folder / FILES["onnx"],
        out,
        exported.student.spec,
        exported.source,
        student=predict(exported.student, exported.source, "validation"),
        recipes=RECIPES[:1],
    )


def test_temporary_files_of_onnxruntime_are_in_the_folder_of_the_export(
    exported, monkeypatch, tmp_path
):
    """A full folder of the system does not stop an export, as one that is missing does not."""
    elsewhere = str(tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", elsewhere)
    assert not quantised(exported, tmp_path / "out").failures
    assert tempfile.gettempdir() == elsewhere
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_temporary_files_of_other_threads_stay_where_they_are(exported, monkeypatch, tmp_path):
    """A server may export a student while its other threads write files."""
    usual, seen = tempfile.gettempdir(), []

    def noted(source: Path, out: Path, images: object, recipe: Recipe) -> None:
        other = Thread(target=lambda: seen.append(tempfile.gettempdir()))
        other.start()
        other.join()
        seen.append(tempfile.gettempdir())
        quantise(source, out, images, recipe)

    monkeypatch.setattr(int8, "quantise", noted)
    quantised(exported, tmp_path / "out")
    assert seen == [usual, usual]


def test_every_argument_of_a_temporary_folder_is_known(tmp_path):
    """Another version of onnxruntime may give others than the present one."""
    other = tmp_path / "other"
    other.mkdir()
    module = importlib.import_module("onnxruntime.quantization.quantize")
    with int8._temporary_files_in(str(tmp_path)):
        made = [
            module.tempfile.TemporaryDirectory(".end", "begin.", ignore_cleanup_errors=True),
            module.tempfile.TemporaryDirectory(dir=str(other)),
        ]
    assert [Path(each.name).parent for each in made] == [tmp_path, other]
    assert re.fullmatch(r"begin\..*\.end", Path(made[0].name).name)
    for each in made:
        each.cleanup()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut_off(_: Path, out: Path, **__: object) -> None:
    """What onnxruntime does on a full disk: a file is not complete, and cannot be read later."""
    out.write_bytes(b"part")
    onnx.load(out)


class FullFile:
    """A file on a full disk."""

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    write = full


@pytest.mark.parametrize("step", [full, cut_off])
@pytest.mark.parametrize("of", ["preparation", "recipe"])
def test_a_full_disk_is_not_a_fault_of_the_network(
    step: Callable[..., None], of: str, exported, monkeypatch, tmp_path
):
    if of == "preparation":
        monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", step)
    else:
        monkeypatch.setattr(int8, "quantise", lambda source, out, *_: step(source, out))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FullFile())
    out = tmp_path / "out"
    message = f"{out} cannot be written: No space left on device"
    with pytest.raises(WriteError, match=f"^{re.escape(message)}$"):
        export_student(exported.student, exported.source, out)
    assert list(tmp_path.iterdir()) == []


def test_a_preparation_that_fails_with_enough_space_is_left_out(exported, monkeypatch, tmp_path):
    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", cut_off)
    assert not quantised(exported, tmp_path / "out").failures


def test_accuracy_has_precedence_over_agreement():
    def tried(right: int, same: int) -> Tried:
        return Tried("r", Proportion(right, 10), Parity(Proportion(same, 10), 0.0))

    failed = Tried("r", None, None, "why")
    assert max(failed, tried(5, 9), tried(6, 1), tried(6, 2), key=lambda row: row.rank) == (
        tried(6, 2)
    )
    assert failed.record()["reason"] == "why"


@pytest.mark.slow
def test_an_onnx_file_has_no_gradients(exported):
    images = torch.rand(2, 1, 16, 16, requires_grad=True)
    assert not OnnxClassifier(exported.folder / FILES["int8"])(images).requires_grad
