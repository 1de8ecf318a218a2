"""``robustkd distill`` with a configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.commands import distilling, refused
from tests.marks import slow

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.mark.slow
def test_command_line_flags_override_the_config(robustkd, files):
    assert robustkd(*distilling(files.teacher, out="one", seed=2, lr=1e-5)).code == 0
    config = yaml.safe_load(Path("one/config.yaml").read_text())
    assert config["teacher"] == str(files.teacher.resolve())
    assert "out" not in config
    assert robustkd("distill", "--config", "one/config.yaml", "--out", "two").code == 0
    one, two = (Path(run, "student.safetensors").read_bytes() for run in ("one", "two"))
    assert one == two
    # A config is YAML like any other; null is what is not said.
    del config["batch_size"]
    Path("c.yaml").write_text(yaml.safe_dump(config | {"mean": None, "batch-size": 99}))
    said = robustkd("distill", "--config", "c.yaml", "--out", "three", "--seed", 4, "--json")
    found = json.loads(said.out)["config"]
    assert (found["seed"], found["training"]["batch_size"]) == (4, 99)
    assert found["training"]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("student", "given", "used"),
    [
        ("wrn-10-1", {}, 0.1),
        slow("mobilenet-v2-0.25", {}, 0.02),
        ("wrn-10-1", {"lr": 0.3}, 0.3),
    ],
)
def test_the_learning_rate_is_the_student_s_unless_it_is_given(
    robustkd, files, student, given, used
):
    said = robustkd(*distilling(files.teacher, student=student, method="kd", **given), "--json")
    assert json.loads(said.out)["config"]["training"]["lr"] == used
    assert yaml.safe_load(Path("run/config.yaml").read_text())["lr"] == used


@pytest.mark.slow
def test_own_code_is_named_again_for_a_config_and_when_resuming(robustkd, files):
    own = "tools.network_pairs:example_network"
    assert robustkd(*distilling(files.teacher, student=own, method="kd")).code == 0
    assert own in Path("run/config.yaml").read_text()
    for flags in (("--config", "run/config.yaml", "--out", "again"), ("--resume", "run")):
        refused(
            robustkd("distill", *flags),
            2,
            f"architecture {own!r} is code, which runs only where you name it yourself: with "
            "--arch or --student, or as models.OwnCode in Python",
        )
        assert robustkd("distill", *flags, "--student", own).code == 0
    runs = (Path(run, "student.safetensors").read_bytes() for run in ("run", "again"))
    assert len(set(runs)) == 1


def test_a_config_named_cli_is_not_taken_for_the_command_line(robustkd, files):
    """cyclopts says ``cli`` of what was typed, and a file may be called so."""
    own = "tools.network_pairs:example_network"
    flags = {"teacher": str(files.teacher), "arch": "wrn-10-1", "student": own, "data": "digits"}
    Path("cli").write_text(yaml.safe_dump(flags))
    refused(
        robustkd("distill", "--config", "cli", "--dry-run"),
        2,
        f"architecture {own!r} is code, which runs only where you name it yourself: with "
        "--arch or --student, or as models.OwnCode in Python",
    )


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("a: [", 3, "c.yaml cannot be read as YAML: while parsing a flow node expected the node "),
        ("- 1", 3, "c.yaml holds no flags; expected lines such as 'epochs: 30'"),
        ("!!python/object/apply:os.system ['touch x']", 3, "c.yaml gives a value the type "),
        ("lr: 0.1\nseed: 1\nlr: 0.2", 3, "c.yaml says 'lr' twice, in line 3; leave one of them"),
        ("colour: red", 2, 'Unknown option: "[colour]" from file c.yaml.'),
        (
            "seed: many",
            2,
            'Invalid value for [seed] from file c.yaml: unable to convert "many" into',
        ),
    ],
)
def test_a_mistake_in_a_config_is_reported_in_one_line(text, code, message, robustkd, files):
    Path("c.yaml").write_text(text)
    said = robustkd(*distilling(files.teacher), "--config", "c.yaml")
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"robustkd: {message}")
    assert said.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["c.yaml"]


def test_a_missing_config_is_reported_in_one_line(robustkd, files):
    said = robustkd(*distilling(files.teacher), "--config", "c.yaml")
    refused(said, 3, "c.yaml cannot be read: No such file or directory")
