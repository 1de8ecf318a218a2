"""The commands as a user runs them: output, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import yaml

from robustkd import data, models
from robustkd.attacks import ATTACKS, TRIGGERS, BadNets, load_trigger, save_trigger
from robustkd.benchmark import attacked_teachers
from robustkd.core.errors import TrainingError
from robustkd.core.methods import ALIASES, METHODS
from robustkd.pipeline import run as main_line
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import Proportion
from tests.cli.conftest import Said
from tests.data.images.image_files import write_classes
from tests.marks import slow

pytestmark = pytest.mark.usefixtures("few_digits")

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
SMALL = data.load("digits", train=200, validation=20, test=20)


class Files(NamedTuple):
    """A teacher that is worth distilling, and what else a user may hold."""

    teacher: Path
    seven: Path
    trigger: Path
    far: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    made = Files(*(folder / f"{name}.safetensors" for name in Files._fields))
    teacher = models.build(models.Spec("wrn-10-1", 10, (1, 16, 16)), seed=0)
    fit(Supervised(teacher), SMALL, epochs=4, batch_size=32)
    models.save(teacher, made.teacher)
    models.save(models.build(models.Spec("wrn-10-1", 7, (1, 16, 16)), seed=0), made.seven)
    save_trigger(BadNets(size=3), 0, made.trigger)
    save_trigger(BadNets(size=3), 10, made.far)
    return made


FACT = re.compile(
    r"teacher: \S+, (safetensors|torch zip), [\d,]+ bytes, sha256 [0-9a-f]{12}; \d+ tensors "
    r"matched; accuracy \d+\.\d % \[\S+, \S+\] on \d+ validation images of digits\n"
)
"""What is said before the training."""


def shell(*arguments: object, cwd: Path) -> Said:
    """Runs a command as a process of its own."""
    command = [sys.executable, "-m", "robustkd.cli", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, cwd=cwd, env=ENVIRONMENT
    )
    return Said(done.returncode, done.stdout, done.stderr)


def distilling(teacher: Path, **changes: object) -> list[object]:
    options = {
        "arch": "wrn-10-1",
        "data": "digits",
        "student": "wrn-10-1",
        "out": "run",
        "method": "ofd",
        "epochs": 1,
    } | changes
    flags = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    return ["distill", teacher, *(part for flag in flags for part in flag), "--no-audit"]


# What works.


def test_distill_as_a_process_then_evaluate(robustkd, files, tmp_path):
    out = tmp_path / "a[/b] :cat:"
    said = shell(*distilling(files.teacher, out=out), cwd=tmp_path)
    assert said.code == 0
    assert FACT.fullmatch(said.err)
    student = out / "student.safetensors"
    assert f"\nStudent: {student}\nReport: {student.with_name('report.html')}\n" in said.out
    told = " ".join(said.out.split())
    assert "Large drop of accuracy: the ordinary student has " in told
    assert "The attack success rate could not be measured, as no trigger is known. Next: " in told
    config = shlex.quote(str(out / "config.yaml"))
    longer = f"robustkd distill --config {config} --epochs 2 --out another-run"
    assert said.out.splitlines()[-1] == f"  {longer}"
    assert "Audit" not in said.out
    assert yaml.safe_load((out / "config.yaml").read_text())["audit"] is False
    assert "--no-audit" in (out / "MODEL_CARD.md").read_text()
    said = robustkd("evaluate", student, "--data", "digits", "--json")
    assert (said.code, said.err) == (0, "")
    figures = json.loads(said.out)
    assert figures["n_acc"] == 357
    assert (figures["asr"], figures["ra"], figures["n_asr"]) == (None, None, None)
    rows = json.loads((out / "results.json").read_text())["runs"]
    assert figures["acc"] == rows[1]["acc"]


def test_distill_from_a_plain_checkpoint(robustkd, files, tmp_path):
    """As another project saved it: halved, wrapped, and without a word on normalisation."""
    state = models.load(files.teacher).half().network.state_dict()
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 4, "state_dict": state}, tmp_path / "teacher.pt")
    command = distilling(tmp_path / "teacher.pt", method="no-teacher")
    said = robustkd(*command, "--mean", 0.5, "--std", 0.5, "--json")
    assert said.code == 0
    assert FACT.fullmatch(said.err)
    facts = json.loads(said.out)["records"]["teacher_file"]
    assert (facts["wrappers"], facts["ignored"]) == (["state_dict", "module."], ["'epoch'"])
    assert (facts["normalisation"], facts["matched"]) == ("given by the user", len(state))
    page = Path("run/report.html").read_text()
    assert "<h2>Teacher file</h2>" in page
    assert facts["sha256"] in page


def test_distill_prints_the_results_as_json(robustkd, files):
    said = robustkd(*distilling(files.teacher, method="no-teacher"), "--json")
    assert said.code == 0
    assert FACT.fullmatch(said.err)
    assert json.loads(said.out) == json.loads(Path("run/results.json").read_text())


def test_evaluate_counts_under_a_trigger(robustkd, files):
    command = ("evaluate", files.teacher, "--data", "digits", "--trigger", files.trigger)
    said = robustkd(*command, "--json")
    found = json.loads(said.out)
    others = 357 - data.load("digits").test.labels.tolist().count(0)
    assert found["n_asr"] == others
    asr, ra = (Proportion(round(found[key] * others), others) for key in ("asr", "ra"))
    acc = Proportion(round(found["acc"] * 357), 357)
    assert robustkd(*command).out.splitlines() == [
        f"ACC  {acc}  of 357 test images",
        f"ASR  {asr}  of {others} triggered images of other classes",
        f"RA   {ra}",
    ]
    assert robustkd(*command[:4]).out.splitlines() == [
        f"ACC  {acc}  of 357 test images",
        "ASR  not measured: no trigger was given",
    ]


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


def test_own_code_is_named_on_the_command_line(robustkd, files, tmp_path):
    own = "tools.network_pairs:example_network"
    said = robustkd("list", "--taps", own, "--image", "1", "16", "16", "--json")
    assert json.loads(said.out)[own]["parameters"] == "24,170"
    model = models.build(models.Spec(models.OwnCode(own), 10, (1, 16, 16)), seed=0)
    models.save(model, tmp_path / "m")
    said = robustkd("evaluate", tmp_path / "m", "--data", "digits", "--arch", own, "--json")
    assert said.code == 0
    refused(
        robustkd("evaluate", tmp_path / "m", "--data", "digits"),
        3,
        f"{tmp_path / 'm'} says that its architecture is {own!r}, which is code; if it is your "
        "own, name it with --arch, or as models.OwnCode in Python",
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


def test_help_and_version_need_no_torch(tmp_path):
    code = (
        "import sys; from robustkd.cli import main\n"
        "for flags in (['--help'], ['distill', '--help'], ['--version'], []): main(flags)\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("demo", "distill", "evaluate", "list", "--arch", "--json", "\n0."):
        assert word in done.stdout


def test_a_mistyped_name_is_refused_without_torch(tmp_path):
    known = ["distill", "t", "--arch", "wrn-10-1", "--out", "run"]
    student, digits = ["--student", "wrn-10-1"], ["--data", "digits"]
    mistakes = [
        [*known, *digits, "--student", "wrn-10-l"],
        [*known, *digits, *student, "--method", "defualt"],
        [*known, *digits, *student, "--defence", "ftsam"],
        [*known, *student, "--data", "digit"],
        ["attack", "badnets", "--arch", "wrn-10-l", *digits, "--out", "attack"],
        ["auditt"],
    ]
    code = (
        "import sys; from robustkd.cli import main\n"
        f"for words in {mistakes}:\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    said = done.stderr.splitlines()
    assert [line.count("did you mean") + line.count("Did you mean") for line in said] == [1] * 6


# A run again, or on.


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


def test_a_run_needs_a_new_folder(robustkd, files):
    command = distilling(files.teacher)
    where = command.index("--out")
    refused(
        robustkd(*command[:where], *command[where + 2 :]),
        2,
        "--out is missing; give a new folder for the run",
    )
    refused(
        robustkd("distill", "--resume", "none"),
        3,
        "none is not the folder of a run: it has no config.yaml",
    )


def test_a_dry_run_prints_the_plan_and_makes_no_folder(robustkd, files):
    command = *distilling(files.teacher, method="default", epochs=3), "--dry-run"
    plan = json.loads(robustkd(*command, "--json").out)
    assert plan["distil"]["steps"] == 3 * 5
    assert plan["teacher"]["sha256"] == sha256(files.teacher.read_bytes()).hexdigest()
    words = robustkd(*command).out.split()
    assert {"distil", "estimate", "validate", "15", "MiB"} <= set(words)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_used_folder_is_refused_before_anything_is_read(robustkd, flags):
    Path("run").mkdir()
    Path("run/old").touch()
    refused(
        robustkd(*distilling(Path("no.safetensors")), *flags),
        2,
        "output folder run is not empty; give a new one with --out",
    )


def test_control_characters_in_names_are_escaped(robustkd, files):
    hostile = "\x1b]0;:cat:[b]\n.pt"
    Path(hostile).write_bytes(files.teacher.read_bytes())
    said = robustkd(*distilling(hostile), "--dry-run")
    assert said.code == 0
    assert "  name            \\x1b]0;:cat:[b]\\n.pt " in said.out
    refused(
        robustkd(*distilling("\x1b[2J\n")),
        3,
        "\\x1b[2J\\n cannot be read: No such file or directory; expected a safetensors file or a "
        "torch checkpoint",
    )


# Mistakes: exit code 2 for the command, 3 for what it was given to read.


def refused(said: Said, code: int, message: str) -> None:
    assert said == Said(code, "", f"robustkd: {message}\n")


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


def test_mistakes_as_processes_leave_no_traceback(files, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    refused(
        shell(*distilling(files.teacher), cwd=tmp_path),
        2,
        "output folder run is not empty; give a new one with --out",
    )
    said = shell("evaluate", cwd=tmp_path)
    refused(said, 2, f'Command "evaluate" parameter MODEL requires an argument. {SEE}')


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


# Attacking, for research.


def attacking(name: str = "badnets", **changes: object) -> list[object]:
    options = {
        "arch": "wrn-10-1",
        "data": "digits",
        "out": "made",
        "target": 3,
        "epochs": 1,
    } | changes
    flags = ((f"--{key.replace('_', '-')}", value) for key, value in options.items())
    return ["attack", name, *(part for flag in flags for part in flag)]


def test_attack_writes_a_teacher_and_a_trigger_that_evaluate_confirms(robustkd):
    said = robustkd(*attacking(), "--json")
    assert (said.code, said.err) == (0, "")
    (run,) = json.loads(said.out)["runs"]
    assert json.loads(Path("made/results.json").read_text()) == json.loads(said.out)
    written = sorted(path.name for path in Path("made").iterdir())
    assert written == ["results.json", "teacher.safetensors", "trigger.safetensors"]
    found = json.loads(
        robustkd(
            *("evaluate", "made/teacher.safetensors", "--data", "digits"),
            *("--trigger", "made/trigger.safetensors", "--json"),
        ).out
    )
    assert {name: run[name] for name in found} == found


def test_an_attack_on_the_next_class_is_stored_evaluated_and_reported(robustkd):
    said = robustkd(*attacking(target="next"))
    assert (said.code, said.err) == (0, "")
    words = "of 357 triggered images, classified as the next class of each image"
    assert words in " ".join(said.out.split())
    content = json.loads(Path("made/results.json").read_text())
    assert content["config"]["target"] == content["config"]["flags"]["target"] == "next"
    (run,) = content["runs"]
    assert run["n_asr"] == 357
    assert load_trigger("made/trigger.safetensors")[1] == "next"
    evaluating = ("evaluate", "made/teacher.safetensors", "--data", "digits")
    shown = (*evaluating, "--trigger", "made/trigger.safetensors")
    found = json.loads(robustkd(*shown, "--json").out)
    assert {name: run[name] for name in found} == found
    assert words in " ".join(robustkd(*shown).out.split())
    # One class in place of the target in the file: fewer images count.
    assert json.loads(robustkd(*shown, "--target", 3, "--json").out)["n_asr"] < 357
    refused(
        robustkd(*evaluating, "--target", "next"),
        2,
        "--target is given without --trigger; add it, or leave both out",
    )
    assert robustkd("report", "made").code == 0
    assert "the next class of each image" in Path("made/report.html").read_text()


@pytest.mark.parametrize(
    ("arch", "given", "rates"),
    [
        ("mobilenet-v2-0.25", {"surrogate": "wrn-10-1"}, (0.02, 0.1)),
        ("wrn-10-1", {"surrogate": "mobilenet-v2-0.25"}, (0.1, 0.02)),
        ("mobilenet-v2-0.25", {"lr": 0.3}, (0.3, 0.3)),
    ],
)
def test_an_attacker_trains_each_network_at_its_default_rate_unless_one_is_given(
    robustkd, monkeypatch, arch, given, rates
):
    asked = []

    def spy(*_: object, **how: object) -> None:
        asked.append((how["settings"]["lr"], how["rehearsal"].training["lr"]))
        raise TrainingError("enough")

    monkeypatch.setattr(attacked_teachers, "run_attack", spy)
    assert robustkd(*attacking("adaptive-harden", arch=arch, **given)).code == 1
    assert asked == [rates]
    assert not Path("made").exists()


def test_attack_prints_accuracy_and_success_and_takes_arguments_of_the_attack(robustkd):
    said = robustkd(*attacking("ckd", epochs=1), "--set.cap", "0.1", "--set.trigger_steps", "2")
    assert said.code == 0
    lines = said.out.splitlines()
    assert re.fullmatch(r"ACC  \d+\.\d%  of 357 test images", lines[0])
    assert re.fullmatch(r"ASR  \d+\.\d%  of \d+ triggered images of other classes", lines[1])
    assert lines[2] == "Teacher: made/teacher.safetensors"
    record = json.loads(Path("made/results.json").read_text())
    assert (record["config"]["cap"], record["records"]["teacher"]["cap"]) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bednets", {}, "unknown attack 'bednets'; did you mean 'badnets'?"),
        ("badnets", {"arch": "wrn-11-1"}, None),
        (
            "badnets",
            {"target": 10},
            "--target is '10'; expected the name of a class, 0 to 9, or next",
        ),
        (
            "ckd",
            {"target": "next"},
            "--target is next, and attack 'ckd' has one target class; give its number, or use one "
            f"of {', '.join(name for name, row in ATTACKS.items() if row.next_class)}",
        ),
        (
            "badnets",
            {"arch": "torchvision/alexnet"},
            "'torchvision/alexnet' cannot be run on the images of digits, of shape (1, 16, 16): "
            "Given input size: (192x1x1). Calculated output size: (192x0x0). Output size is too "
            "small",
        ),
        ("badnets", {"set.colour": 3}, "attack 'badnets' has no argument 'colour'"),
        ("badnets", {"set.seed": 3}, "attack 'badnets' has no argument 'seed'"),
        ("badnets", {"set.epochs": 3}, "--set.epochs is '3'; use --epochs instead"),
        ("badnets", {"set.batch_size": 3}, "--set.batch-size is '3'; use --batch-size instead"),
        ("badnets", {"set.lr": 0.1}, "--set.lr is '0.1'; use --lr instead"),
        ("flow", {"set.family": "tone"}, "attack 'flow' has no argument 'family'"),
        ("badnets", {"epochs": 0}, "--epochs is 0; expected at least 1"),
    ],
)
def test_a_mistake_in_attack_is_reported_in_one_line(name, changes, message, robustkd):
    said = robustkd(*attacking(name, **changes))
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    if message is not None:
        assert said.err == f"robustkd: {message}\n"
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("text", "flags", "code", "message"),
    [
        ("a: [", [], 3, "grid.yaml cannot be read as YAML: while parsing"),
        ("seeds: 3", [], 2, "grid.yaml: data is missing; expected data sets with"),
        ("seeds: 3", ["--workers", "0"], 2, "--workers is 0; expected at least 1"),
        (
            "seeds: 3",
            ["--workers", "2", "--executor", "ray"],
            2,
            "--workers is given with --executor ray, which uses the whole cluster; leave it out",
        ),
        *(
            (
                "seeds: 3",
                ["--tables-only", *flag],
                2,
                f"{flag[0]} is given with --tables-only, which runs no cell; leave one of them out",
            )
            for flag in (["--workers", "1"], ["--executor", "local"], ["--cache", "c"])
        ),
    ],
)
def test_a_mistake_in_a_grid_is_reported_in_one_line(text, flags, code, message, robustkd):
    Path("grid.yaml").write_text(text)
    said = robustkd("bench", "grid.yaml", *flags)
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"robustkd: {message}")
    assert said.err.count("\n") == 1


# Students that could be chosen.


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


# A teacher of more classes than the data.


def test_outputs_of_a_teacher_are_chosen_by_the_list_of_classes(robustkd, files, tmp_path):
    folder = write_classes(tmp_path / "pictures", {"high": 20, "low": 20}, size=16)
    whole = models.build(models.Spec("wrn-10-1", 5, (3, 16, 16)), seed=0)
    fit(Supervised(whole), data.load(folder), epochs=6, batch_size=8)
    torch.save(whole.network.state_dict(), tmp_path / "teacher.pt")
    command = distilling(tmp_path / "teacher.pt", data=folder, method="kd")
    mean = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    refused(
        robustkd(*command, *mean),
        3,
        f"{tmp_path / 'teacher.pt'} is a model of 5 classes; the data has 2: use the data that it "
        "was trained for, or name its outputs with --class-names",
    )
    (tmp_path / "names.txt").write_text("high\nlow\nother\nnone\nany\n")
    said = robustkd(*command, *mean, "--class-names", tmp_path / "names.txt", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["records"]["teacher_file"]["outputs"] == [0, 1]
    assert models.load(tmp_path / "run" / "student.safetensors").spec.class_names == ("high", "low")


# Several state dicts in one file.


@pytest.mark.slow
def test_the_better_weights_are_used_unless_the_key_is_given(robustkd, files, tmp_path):
    good = models.load(files.teacher).network.state_dict()
    # Two classes are never the answer.
    never = torch.tensor([1e3, 1e3, *[0.0] * 8])
    worse = {name: value - never if name == "head.bias" else value for name, value in good.items()}
    torch.save({"state_dict": worse, "state_dict_ema": good}, tmp_path / "teacher.pt")
    command = distilling(tmp_path / "teacher.pt", method="no-teacher")
    plain = ("--mean", 0.5, "--std", 0.5)
    said = robustkd(*command, *plain, "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)["records"]["teacher_file"]
    assert told["key"] == "state_dict_ema"
    assert len(told["candidates"]) == 2
    assert "; chosen: 'state_dict_ema' of 'state_dict' (accuracy " in said.err
    command = distilling(tmp_path / "teacher.pt", method="no-teacher", out="again")
    said = robustkd(*command, *plain, "--teacher-key", "state_dict", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["records"]["teacher_file"]["key"] == "state_dict"
    assert "teacher_key: state_dict\n" in Path("again/config.yaml").read_text()
    refused(
        robustkd(*distilling(tmp_path / "teacher.pt", out="third"), "--teacher-key", "model"),
        2,
        f"--teacher-key is 'model'; {tmp_path / 'teacher.pt'} has 'state_dict', 'state_dict_ema': "
        "give one of these, or leave it out",
    )
