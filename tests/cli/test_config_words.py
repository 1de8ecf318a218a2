"""Words in a file of flags that some versions of YAML read as booleans."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from robustkd import cli
from robustkd.cli.distilling import with_values_left_out
from robustkd.core.errors import InputError
from robustkd.core.recorded_flags import recorded_flags
from robustkd.pipeline.job import DistillJob
from robustkd.training.config import TrainingConfig
from robustkd.training.recipes import with_defaults

FLAGS = "data: digits\narch: wrn-10-1\nstudent: wrn-10-1\n"


def told(folder: Path, text: str) -> dict[str, object]:
    """Return the arguments of ``distill`` with a file of flags."""
    path = folder / "flags.yaml"
    path.write_text(FLAGS + text)
    words = ["distill", "t.pt", "--config", str(path)]
    _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    return dict(bound.arguments)


@pytest.mark.parametrize("word", ["no", "'no'"])
def test_no_is_read_as_a_precision(word, tmp_path):
    assert told(tmp_path, f"precision: {word}")["training"] == {"precision": "no"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [("true", True), ("yes", True), ("On", True), ("false", False), ("no", False), ("off", False)],
)
def test_boolean_flags_accept_every_boolean_word_of_yaml(word, meant, tmp_path):
    found = told(tmp_path, f"audit: {word}\nkeep-class-order: {word}\ncompile: {word}")
    assert (found["audit"], found["keep_class_order"]) == (meant, meant)
    assert found["training"] == {"compile": meant}


def test_a_folder_may_be_named_off(tmp_path):
    assert told(tmp_path, "data_root: off")["data_root"] == Path("off")


def test_the_key_on_is_not_read_as_a_boolean(tmp_path):
    assert told(tmp_path, "defence: clp\non: student")["on"] == "student"
    with pytest.raises(InputError, match=r"holds no flags; expected lines such as 'epochs: 30'$"):
        told(tmp_path, "defence: clp\ntrue: student")


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path):
    assert told(tmp_path, "data_root: 1e5\nlr: 1e-3")["data_root"] == Path("1e5")


def test_a_run_of_an_older_version_keeps_the_defaults_that_it_left_out(tmp_path):
    """Such a version wrote the optimiser and no value that is the default of every optimiser."""
    config = tmp_path / "config.yaml"
    config.write_text(f"{FLAGS}lr: 0.001\noptimizer: adamw\n")
    given = {"lr": 0.001, "optimizer": "adamw"}
    # Flags that a user wrote get the defaults of the optimiser.
    assert with_values_left_out(given, config) == given
    (tmp_path / "run.json").write_text("{}")
    old = with_values_left_out(given, config)
    assert TrainingConfig(**with_defaults(old, "wrn-10-1")) == TrainingConfig(**given)
    config.write_text(f"{FLAGS}lr: 0.001\noptimizer: adamw\nweight_decay: 0.05\n")
    assert with_values_left_out(given, config) == given
    config.write_text(FLAGS)
    assert with_values_left_out({}, config) == with_values_left_out({}, None) == {}


def test_a_gradient_without_a_limit_is_recorded_and_read(tmp_path):
    """With AdamW, the default is a limit."""
    training = TrainingConfig(
        **with_defaults({"optimizer": "adamw", "clip_grad": None}, "wrn-10-1")
    )
    job = DistillJob(Path("t.pt"), "wrn-10-1", "wrn-10-1", training=training)
    flags = recorded_flags({name: job.flags()[name] for name in ("optimizer", "clip_grad")})
    assert flags == {"optimizer": "adamw", "clip_grad": "none"}
    assert told(tmp_path, yaml.safe_dump(flags))["training"] == {
        "optimizer": "adamw",
        "clip_grad": None,
    }
