"""Notes of an export: where int8 is worse, slower or larger, or has a higher ASR."""

from __future__ import annotations

from robustkd.evaluation.measurement import Measured
from robustkd.export.latency import Latency, Running
from robustkd.export.notes import busy, few, notes
from robustkd.training.metrics import Proportion


def measured(right: int, obeyed: int | None = None) -> Measured:
    return Measured(Proportion(right, 1000), None if obeyed is None else Proportion(obeyed, 900))


def running(ms: float) -> Running:
    return Running(50.0, 60.0, (Latency(1, ms, ms, ms, 30, 1.0),))


FAST = {"onnx": running(2.0), "int8": running(1.0)}
SMALL = {"onnx": 400, "int8": 100}


def test_a_good_export_has_no_notes():
    assert notes(measured(900, 9), measured(896, 10), FAST, SMALL) == []


def test_a_missing_trigger_is_noted():
    said = ["attack success could not be measured: no trigger was given"]
    assert notes(measured(900), measured(900), FAST, SMALL) == said
    assert notes(measured(900), None, FAST, SMALL) == said


def test_a_loss_of_accuracy_is_noted():
    assert notes(measured(900, 9), measured(880, 9), FAST, SMALL) == [
        "int8 is 2.0 points less accurate than float: 88.0 % [85.8, 89.9] against "
        "90.0 % [88.0, 91.7] of 1000 test images"
    ]


def test_a_backdoor_activated_by_rounding_is_noted():
    assert notes(measured(900, 9), measured(900, 90), FAST, SMALL) == [
        "int8 has a higher attack success rate than float: 10.0 % [8.2, 12.1] against 1.0 % "
        "[0.5, 1.9]"
    ]


def test_slow_and_large_files_are_noted():
    assert notes(measured(900, 9), measured(900, 9), {**FAST, "int8": running(3.0)}, SMALL) == [
        "int8 is slower than float on this machine: 3 ms against 2 ms for one image with one "
        "thread (median)"
    ]
    assert notes(measured(900, 9), measured(900, 9), FAST, {"onnx": 100, "int8": 100}) == [
        "the int8 file is not smaller than the float file"
    ]


def test_few_validation_images_are_noted():
    assert few(200, int8=True) == []
    assert few(199, int8=True) == [
        "the files were compared with the student on 199 validation images only, and the int8 "
        "recipe was chosen on them; use at least 200"
    ]
    assert few(97, int8=False) == [
        "the files were compared with the student on 97 validation images only; use at least 200"
    ]


def test_a_busy_machine_is_noted():
    assert busy({"load": 3.0, "cores": 2}) == busy({"load": None, "cores": 2}) == []
    assert busy({"load": 8.25, "cores": 2}) == [
        "the machine was busy (load 8.2 on 2 cores): latencies, above all p95, are too long"
    ]
