"""``robustkd list`` and the students that it proposes."""

from __future__ import annotations

import json

import pytest

from robustkd import data, models
from robustkd.attacks import ATTACKS
from robustkd.core.methods import ALIASES, METHODS
from tests.cli.commands import refused
from tests.cli.conftest import Said

pytestmark = pytest.mark.usefixtures("few_digits")


def test_list_shows_the_taps_of_an_architecture(robustkd):
    asked = "list", "--taps", "wrn-10-1", "--image", "1", "28", "28"
    shown = json.loads(robustkd(*asked, "--json").out)
    assert shown == {
        "wrn-10-1": {"images": "1 x 28 x 28", "parameters": "77,562", "MMACs": "9.3"},
        "taps": {
            "network.groups.1.0.bn1": "16 x 28 x 28 (NCHW)",
            "network.groups.2.0.bn1": "32 x 14 x 14 (NCHW)",
            "network.bn": "64 x 7 x 7 (NCHW)",
        },
    }
    assert set(robustkd(*asked).out.split()) >= {*shown, *shown["taps"], "77,562"}
    published = json.loads(robustkd("list", "--taps", "timm/mobilenetv3_small_050", "--json").out)
    assert published["timm/mobilenetv3_small_050"]["mean"] == "0.485, 0.456, 0.406"
    refused(
        robustkd("list", "--taps", "torchvision/resnet19"),
        2,
        "torchvision has no classifier 'resnet19'; did you mean 'resnet18'?",
    )
    said = robustkd("list", "--taps", "torchvision/inception_v3", "--image", "3", "64", "64")
    assert said.code == 2
    assert said.err.startswith(
        "robustkd: torchvision/inception_v3 does not work with images of shape 2 x 3 x 64 x 64"
    )


def test_list_names_everything_within_80_columns(robustkd):
    said = robustkd("list")
    assert (said.code, said.err) == (0, "")
    assert max(len(line) for line in said.out.splitlines()) <= 80
    words = set(said.out.split())
    assert words >= {*data.names(), *METHODS, *ATTACKS, "wrn-DEPTH-WIDTH"}
    listed = json.loads(robustkd("list", "--json").out)
    assert list(listed) == ["data", "models", "methods", "defences", "losses", "attacks"]
    assert list(listed["methods"]) == list(METHODS)
    assert all("\n" not in line for kind in listed.values() for line in kind.values())


def test_list_shows_students_with_size_and_speed(robustkd, monkeypatch):
    monkeypatch.setattr("robustkd.cli.students._RUNS", 1)
    monkeypatch.setattr(
        "robustkd.cli.students.STUDENTS", ("wrn-16-2", "wrn-10-1", "resnet-8", "resnet-20")
    )
    said = robustkd("list", "--students", "--max-params", "300k", "--image", 1, 28, 28)
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == [
        "resnet-8",
        "wrn-10-1",
        "resnet-20",
    ]
    assert all(len(line) <= 80 for line in said.out.splitlines())
    told = json.loads(robustkd("list", "--students", "--max-params", "100k", "--json").out)
    assert told["image"] == [3, 32, 32]
    assert [row["student"] for row in told["students"]] == ["resnet-8", "wrn-10-1"]
    model = models.build(models.Spec("wrn-10-1", 10, (3, 32, 32)), seed=0)
    assert told["students"][1]["parameters"] == models.parameters(model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--max-params", "1M"],
            "--max-params is given without --students; add it, or leave it out",
        ),
        (
            ["--students", "--max-params", "1MB"],
            "--max-params is '1MB'; expected a number such as 300k or 1.5M",
        ),
        (
            ["--image", "1", "28", "28"],
            "--image is given without --taps or --students; add one of them, or leave it out",
        ),
        (
            ["--taps", "wrn-10-1", "--students"],
            "--taps and --students are both given; expected one of them",
        ),
        *(
            (
                [*flags, "--image", *image],
                f"--image is {' '.join(image)}; expected 1 or 3 channels, then height and width of "
                "at least 1",
            )
            for flags in (["--students"], ["--taps", "wrn-10-1"])
            for image in (["0", "0", "0"], ["3", "32", "0"], ["2", "32", "32"])
        ),
    ],
)
def test_invalid_limits_of_students_are_refused(robustkd, flags, message):
    refused(robustkd("list", *flags), 2, message)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--max-params", "1k"],
            "no student of at most 1,000 parameters fits images of 3 x 32 x 32; try a larger "
            "--max-params\n",
        ),
        ([], "no student fits images of 3 x 32 x 32; try larger images\n"),
    ],
)
def test_it_is_said_that_no_student_fits(flags, expected, robustkd, monkeypatch):
    listed = ("wrn-10-1",) if flags else ()
    monkeypatch.setattr("robustkd.cli.students.STUDENTS", listed)
    assert robustkd("list", "--students", *flags) == Said(0, expected, "")
    assert json.loads(robustkd("list", "--students", *flags, "--json").out)["students"] == []


def test_every_name_of_a_method_is_listed(robustkd):
    shown = json.loads(robustkd("list", "--json").out)["methods"]
    for name, method in ALIASES.items():
        assert shown[method].endswith(f"; also called {name}")
