"""One line for every mistake: exit code 2 for the command, 3 for what it was given to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustkd import data, models
from robustkd.attacks import TRIGGERS
from tests.cli.commands import distilling, refused
from tests.cli.conftest import Said

pytestmark = pytest.mark.usefixtures("few_digits")
SEE = "(see robustkd --help)"
ARCHS = ", ".join(family.usage for family in models.FAMILIES.values())
MISTAKES = [
    ({"epochs": -1}, 2, "--epochs is -1; expected at least 1"),
    ({"epochs": 1.5}, 2, "--epochs is 1.5; expected a whole number"),
    ({"image-size": "inf"}, 2, "--image-size is inf; expected a whole number"),
    ({"epochs": "abc"}, 2, f'Invalid value for --epochs: unable to convert "abc" into int. {SEE}'),
    ({"batch_size": 1}, 2, "--batch-size is 1; expected at least 2"),
    ({"lr": "nan"}, 2, "--lr is nan; expected more than 0"),
    ({"lr": "inf"}, 2, "--lr is inf; expected a finite number"),
    ({"lr": 0}, 2, "--lr is 0.0; expected more than 0"),
    ({"seed": -1}, 2, "--seed is -1; expected at least 0"),
    ({"seed": 2**64}, 2, f"--seed is {2**64}; expected at most {2**62 - 1}"),
    ({"mean": 0.5}, 2, "--mean and --std belong together; give both, or neither"),
    (
        {"mean": 0.5, "std": 0},
        2,
        "--mean is (0.5,) and --std is (0.0,); expected 1 finite values each, std above 0",
    ),
    ({"method": "papr"}, 2, "unknown method 'papr'; did you mean 'paper'?"),
    ({"defence": "ftsam"}, 2, "--defence is 'ftsam'; did you mean 'ft-sam'?"),
    ({"on": "student"}, 2, "--on is given without --defence; add it, or leave it out"),
    (
        {"defence": "ft", "on": "both"},
        2,
        f'Invalid value "both" for --on. Choose from: "teacher", "student". {SEE}',
    ),
    (
        {"teacher_taps": "network.bm"},
        2,
        "no module 'network.bm' in Classifier; did you mean 'network.bn'?",
    ),
    ({"student_taps": "x"}, 2, "no module 'x' in Classifier; see robustkd list --taps"),
    (
        {"arch": "wrn-10"},
        2,
        f"unknown architecture 'wrn-10'; expected {ARCHS}: did you mean 'wrn-10-1'?",
    ),
    (
        {"student": "vgg"},
        2,
        f"unknown architecture 'vgg'; expected {ARCHS}: for example 'wrn-10-1'",
    ),
    (
        {"data": "digit"},
        2,
        f"unknown data source 'digit'; expected {', '.join(data.names())}; did you mean 'digits'?",
    ),
    (
        {"data_root": "."},
        2,
        "--data-root is '.'; digits come with scikit-learn and take no folder; leave it out",
    ),
    (
        {"data": "fashion-mnist", "data_root": "."},
        3,
        ".: no Fashion-MNIST here or in its fashion-mnist or FashionMNIST/raw, expected "
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
        "t10k-labels-idx1-ubyte (or .gz); correct --data-root or leave it out",
    ),
    ({"threads": 100_000}, 2, "--threads is 100000; expected 1 to 1024"),
    ({"image_size": 0}, 2, "--image-size is 0; expected 1 to 4096 pixels"),
    ({"image_size": 8}, 2, "--image-size is 8; digits does not support this option: leave it out"),
    ({"crop": 2}, 2, "--crop is 2.0; expected above 0 and at most 1"),
    ({"weight_decay": -1}, 2, "--weight-decay is -1.0; expected at least 0"),
    (
        {"class_names": "n"},
        2,
        "--class-names is n; digits does not support this option: leave it out",
    ),
    ({"bogus": 1}, 2, f"Unknown option: --bogus. Did you mean --out? {SEE}"),
]


@pytest.mark.parametrize(("changes", "code", "message"), MISTAKES)
def test_a_mistake_in_distill_is_reported_in_one_line(changes, code, message, robustkd, files):
    refused(robustkd(*distilling(files.teacher, **changes)), code, message)
    assert not Path("run").exists()


def test_a_missing_option_is_reported_in_one_line(robustkd, files):
    said = robustkd("distill", files.teacher, "--arch", "wrn-10-1")
    refused(said, 2, f'Command "distill" parameter --data requires an argument. {SEE}')


def test_an_unknown_option_is_named_with_a_missing_one(robustkd, files):
    said = robustkd("distill", files.teacher, "--metod", "mix")
    missing = 'Command "distill" parameter --data requires an argument.'
    refused(said, 2, f"{missing} Unknown option: --metod. {SEE}")


@pytest.mark.parametrize(
    ("words", "also"),
    [
        (("--out", "new", "--no-flip", "--set.cap", "0.1"), ""),
        (("--image-siz", "8"), " Unknown option: --image-siz."),
        (("--out=new", "--epochs=3"), ""),
    ],
)
def test_a_known_option_is_not_called_unknown_beside_one_without_its_value(words, also, robustkd):
    said = robustkd("attack", "badnets", "--arch", "wrn-10-1", *words, "--target")
    refused(said, 2, f'Command "attack" parameter --target requires an argument.{also} {SEE}')


def test_a_value_that_begins_with_a_dash_follows_an_equals_sign(robustkd, files):
    words = ("--data", "digits", "--no-audit", "--max-asr", "0.1")
    said = robustkd("verify", files.teacher, "--target", "-left", *words)
    missing = 'Command "verify" parameter --target requires an argument.'
    how = "A value that begins with a dash follows an equals sign: --target=-left."
    refused(said, 2, f"{missing} {how} {SEE}")


def test_an_unknown_command_is_reported_in_one_line(robustkd):
    available = (
        "Available commands: demo, audit, distill, verify, evaluate, export, report, bench, ..."
    )
    refused(
        robustkd("distil"),
        2,
        f'Unknown command "distil". Did you mean "distill"? {available} {SEE}',
    )


def test_a_teacher_that_does_not_fit_is_reported_in_one_line(robustkd, files):
    refused(
        robustkd(*distilling(files.seven)),
        3,
        f"{files.seven} is a model of 7 classes; the data has 10: "
        "use the data that it was trained for",
    )
    refused(
        robustkd(*distilling(files.teacher, arch="wrn-10-2")),
        3,
        f"{files.teacher} is a model of architecture 'wrn-10-1', not 'wrn-10-2': "
        "name the one that it was trained with",
    )
    refused(
        robustkd(*distilling(Path("no.safetensors"))),
        3,
        "no.safetensors cannot be read: No such file or directory; expected a safetensors file or "
        "a torch checkpoint",
    )
    refused(
        robustkd(*distilling(Path())),
        3,
        ". is a folder without weights; expected model.safetensors or pytorch_model.bin in it, or "
        "the path of a file",
    )


def test_a_file_in_another_format_is_reported_in_one_line(robustkd):
    Path("text.safetensors").write_text("no tensors")
    refused(
        robustkd(*distilling(Path("text.safetensors"))),
        3,
        "text.safetensors begins with 6e6f2074656e736f, which is neither safetensors nor a torch "
        "checkpoint; if you trust it, save its weights as safetensors",
    )


def test_a_wrong_trigger_is_reported_in_one_line(robustkd, files):
    def evaluate(model: Path, trigger: Path) -> Said:
        return robustkd("evaluate", model, "--data", "digits", "--trigger", trigger)

    refused(
        evaluate(files.teacher, files.teacher),
        3,
        f"{files.teacher} holds no trigger; expected one of {', '.join(TRIGGERS)}, composition",
    )
    refused(
        evaluate(files.teacher, files.far),
        3,
        f"{files.far} does not fit 'digits': target class is 10; expected 0 to 9",
    )
    refused(
        evaluate(files.trigger, files.trigger),
        3,
        f"{files.trigger} is a trigger, which robustkd attack wrote; give a model's file",
    )
    refused(
        evaluate(files.seven, files.trigger),
        3,
        f"{files.seven} is a model of 7 classes; the data has 10: "
        "use the data that it was trained for",
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--seeds", 0), 2, "--seeds is 0; expected at least 1"),
        (
            ("--data", "mnist"),
            2,
            "--data is 'mnist', which has no demo; expected digits or fashion-mnist",
        ),
        (
            ("--data-root", "."),
            2,
            "--data-root is '.'; digits come with scikit-learn and take no folder; leave it out",
        ),
    ],
)
def test_a_mistake_in_demo_leaves_no_folder(flags, code, message, robustkd):
    refused(robustkd("demo", *flags), code, message)
    assert not list(Path().iterdir())
