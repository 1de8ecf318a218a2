"""Runs that are resumed on the command line."""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from robustkd import models
from robustkd.pipeline import run as main_line
from tests.cli.commands import distilling, refused

pytestmark = pytest.mark.usefixtures("few_digits")


def test_a_finished_run_has_nothing_to_resume(robustkd, files):
    said = robustkd(*distilling(files.teacher), "--json")
    before = {path: path.read_bytes() for path in Path("run").glob("*.*")}
    again = robustkd("distill", "--resume", "run", "--json")
    assert (again.code, again.out, again.err) == (0, said.out, "run is already finished\n")
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == {Path("run/run.log")}


def test_a_flag_named_like_a_command_is_read_from_the_config_of_a_run(robustkd, files, tmp_path):
    assert robustkd(*distilling(files.teacher)).code == 0
    config = tmp_path / "run" / "config.yaml"
    assert "audit: false" in config.read_text().splitlines()
    config.write_text(config.read_text().replace("audit: false", "audit: perhaps"))
    refused(
        robustkd("distill", "--resume", "run"),
        2,
        'Invalid value for [audit] from file run/config.yaml: unable to convert "perhaps" into '
        "bool. (see robustkd --help)",
    )


def test_a_run_is_resumed_with_the_same_teacher_and_settings(robustkd, files, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(files.teacher.read_bytes())
    assert robustkd(*distilling(teacher)).code == 0
    ending = "use the same, or start a new run with --out"
    refused(
        robustkd("distill", "--resume", "run", "--epochs", 5),
        2,
        f"run was started with settings epochs 1, now it is 5; {ending}",
    )
    was = sha256(teacher.read_bytes()).hexdigest()
    model = models.load(teacher)
    model.network.head.bias.data += 1e-3
    models.save(model, teacher)
    now = sha256(teacher.read_bytes()).hexdigest()
    refused(
        robustkd("distill", "--resume", "run"),
        3,
        f"run was started with teacher sha256 {was!r}, now it is {now!r}; {ending}",
    )


def test_the_command_that_resumes_a_run_has_the_flags_that_are_not_stored(
    robustkd, files, monkeypatch
):
    """With another number of threads, the student would differ in its last bits."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    for service in ("wandb", "mlflow"):
        module = ModuleType(service)
        module.__spec__ = ModuleSpec(service, None)
        monkeypatch.setitem(sys.modules, service, module)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.setattr(main_line, "make_student", stop)
    flags = "--device cpu --threads 1 --track wandb --track mlflow"
    command = f"robustkd distill --resume run {flags}"
    said = robustkd(*distilling(files.teacher), *flags.split())
    assert said.err.endswith(f"robustkd: interrupted; resume with: {command}\n")
    said = robustkd(*command.split()[1:])
    assert (said.code, said.err.splitlines()[-1].partition("with: ")[2]) == (130, command)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--out", "new"),
            "--out cannot be used with --resume, which takes it from the run; leave it out",
        ),
        (
            ("--config", "c"),
            "--config cannot be used with --resume, which takes it from the run; leave it out",
        ),
        (
            ("--dry-run",),
            "--dry-run plans a new run; leave out either --dry-run or --resume",
        ),
    ],
)
def test_flags_that_conflict_with_resume_are_refused(flags, message, robustkd, files):
    Path("run").mkdir()
    Path("c").write_text("epochs: 1")
    flat = {"teacher": str(files.teacher), "arch": "a", "student": "b", "data": "digits"}
    Path("run/config.yaml").write_text(yaml.safe_dump(flat))
    refused(robustkd("distill", "--resume", "run", *flags), 2, message)
