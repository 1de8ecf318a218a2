from __future__ import annotations

import pytest

from robustkd.core.errors import InputError
from robustkd.report import read
from robustkd.report.curves import charts
from robustkd.report.pages import load
from robustkd.report.records import Training, read_records

DETOX = {
    "stages": ["a"],
    "mean_mask": [0.1],
    "variance_ratio": [0.3],
    "accuracy_before": 0.9,
    "accuracy_after": 0.8,
    "curve": [],
}


def test_older_results_have_no_records(write):
    records = load(write()).records
    assert (records.scores, records.trainings, records.detox) == ([], [], [])
    assert (records.classes, records.shape, records.sizes, records.networks) == ((), (), {}, {})


def test_each_model_of_the_first_seed_has_its_training(write):
    made = {"epochs": [{"epoch": 1.0, "loss": 2}], "kept": 1}
    found = load(write(records={"ofd/0": made, "ofd/1": made, "x/0": {"epochs": []}})).records
    assert [(each.label, each.kept) for each in found.trainings] == [("ordinary student (OFD)", 1)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"epochs": "x"}, 'epochs is "x"; expected a list'),
        ({"epochs": [3]}, "epochs[0] is 3; expected an object with numbers"),
        (
            {"epochs": [{"loss": float("nan")}]},
            "epochs[0].loss is NaN; expected a finite number",
        ),
        ({"epochs": [{"loss": "1"}]}, 'epochs[0].loss is "1"; expected a finite number'),
        (
            {"epochs": [{"loss": 1.0}], "kept": 1.5},
            "kept is 1.5; expected a whole number of at least 0",
        ),
        ({"ofd/0": {"epochs": [[]]}}, "ofd/0.epochs[0] is []; expected an object with numbers"),
        ({"by_class": []}, "by_class is []; expected an object"),
        (
            {"by_class": {"images": [3], "teacher": [4], "student": [1]}},
            "by_class.teacher is [4]; expected one number per class, at most that of its images",
        ),
        (
            {"by_class": {"images": [3], "teacher": [3], "student": []}},
            "by_class.student is []; expected one number per class, at most that of its images",
        ),
        (
            {"by_class": {"images": [True]}},
            "by_class.images[0] is true; expected a whole number of at least 0",
        ),
        ({"left_out": {"a\n": -1}}, r"left_out.a\n is -1; expected a whole number of at least 0"),
        (
            {"networks": {"teacher": {"bytes": "x"}}},
            'networks.teacher.bytes is "x"; expected a whole number of at least 0',
        ),
        ({"detox": 3}, "detox is 3; expected an object"),
        (
            {"detox": {**DETOX, "accuracy_after": 80}},
            "detox.accuracy_after is 80; expected a fraction in [0, 1]",
        ),
        (
            {"detox": {**DETOX, "mean_mask": []}},
            "detox.mean_mask is []; expected 1 numbers, one per stage",
        ),
        (
            {"detox": {**DETOX, "curve": [3]}},
            "detox.curve[0].variance_weight is null; expected a finite number",
        ),
        ({"teacher_file": {"bytes": 10**400}}, "teacher_file.bytes is 1" + "0" * 56 + "..."),
        ({"data": {"shape": [1, 10**400]}}, "data.shape[1] is 1" + "0" * 56 + "..."),
    ],
)
def test_a_wrong_record_is_named(write, records, message):
    folder = write(records=records)
    with pytest.raises(InputError) as caught:
        read_records(read(folder), folder / "results.json")
    assert str(caught.value).startswith(f"{folder}/results.json: records.{message}")
    assert str(caught.value).isprintable()


def test_the_chart_of_losses_has_losses_alone():
    epochs = [{"epoch": n, "loss": 1 / n, "ce": 0.5 / n, "lr": 0.1, "acc": 0.5} for n in (1.0, 2.0)]
    loss, accuracy = charts([Training("student", epochs, None)])
    assert "total" in loss.text
    assert "cross-entropy" in loss.text
    assert "lr" not in loss.text
    assert (loss.title, accuracy.title) == ("Loss", "Accuracy")
