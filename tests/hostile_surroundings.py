"""Hostile run folders, data and other files around a command, each made by a recipe.

The tests run every case, and ``python -m tools.hostile_surroundings_table`` measures it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from robustkd import cli, models
from robustkd.core.files import write_json
from robustkd.core.folders import Folder
from robustkd.models.model_file import write_safetensors
from robustkd.pipeline.run_files import CHECKPOINT
from robustkd.pipeline.run_folder import Run
from robustkd.training.checkpoint import State, load_state, save_state
from tests.data.images.hostile_folders import sound
from tests.data.images.image_files import many_scans, one_colour_webp, picture, png
from tests.teacher.untrusted.samples import SPEC, saved, trained
from tests.teacher.untrusted.test_archives import AMBIGUOUS

ROOT = Path(__file__).parents[1]
MOST_SECONDS = 120
PRECIOUS = "precious\n"
_SIDE = 8192
_BOMB = "\n".join(
    ["x0: &x0 [1, 1]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 30))]
)
_KEYS = "\n".join(
    ["a0: &a0 {b: 1}", *(f"a{i}: &a{i} {{? *a{i - 1} : 1, c: *a{i - 1}}}" for i in range(1, 25))]
)


@dataclass(frozen=True)
class Place:
    """Where a case takes place.

    Attributes:
        folder: The working directory of the command.
        made: Folder of shared teachers and runs, made by `prepare`; cases only read it.
    """

    folder: Path
    made: Path

    @property
    def victim(self) -> Path:
        """A file of the user that must not change."""
        return self.folder / "home" / "bashrc"

    def run(self, kind: str = "stopped") -> Path:
        """Copy a run of the user, stopped at its first checkpoint or finished."""
        return Path(shutil.copytree(self.made / kind, self.folder / "run"))

    def distill(self, *flags: str) -> list[str]:
        """Return the command that distils a student on the digits."""
        return ["distill", str(self.made / "teacher.pt"), *DIGITS, "--out", "new", *flags]

    def coloured(self, *flags: str) -> list[str]:
        """Return the command that distils a student on the images in the folder ``data``."""
        teacher = str(self.made / "colour.safetensors")
        return ["distill", teacher, *COLOUR, "--out", "new", *flags]


DIGITS = ["--arch", "wrn-10-1", "--student", "wrn-10-1", "--data", "digits"]
DIGITS += ["--method", "no-teacher", "--epochs", "1", "--no-audit"]
COLOUR = ["--arch", "wrn-10-1", "--student", "wrn-10-1", "--data", "./data"]
COLOUR += ["--method", "no-teacher", "--epochs", "1", "--no-audit"]
RESUME = ["distill", "--resume", "run"]


@dataclass(frozen=True)
class Case:
    """One attempt.

    Attributes:
        name: The surface, a colon, and a description.
        make: Function that prepares the place and returns the arguments of the command.
        code: The expected exit code.
        says: Text that the message must contain.
    """

    name: str
    make: Callable[[Place], list[str]]
    code: int
    says: str


@dataclass(frozen=True)
class Ending:
    """How a command ended; see `attempt`."""

    code: int
    message: str
    seconds: float
    peak_mib: float


# Files shared by all cases.


def prepare(made: Path) -> Path:
    """Make a teacher of the digits, one of coloured images, a stopped run and a finished run."""
    from robustkd import data
    from robustkd.training.learners import Supervised
    from robustkd.training.loop import fit

    (made / "teacher.pt").write_bytes(saved(trained()))
    model = models.build(models.Spec("wrn-10-1", 2, (3, 16, 16)), seed=0)
    fit(Supervised(model), data.load_folder(sound(made / "data")), epochs=3, batch_size=16)
    models.save(model, made / "colour.safetensors")
    teacher = ["distill", str(made / "teacher.pt"), *DIGITS]
    cli.main([*teacher, "--out", str(made / "finished")])

    def stop(run: Run) -> bool:
        run.interrupts.asked = True
        return True

    before, Run.is_due = Run.is_due, stop  # type: ignore[method-assign]
    try:
        cli.main([*teacher, "--out", str(made / "stopped")])
    except SystemExit:
        pass  # the expected exit code is 130
    finally:
        Run.is_due = before  # type: ignore[method-assign]
    return made


def attempt(case: Case, folder: Path, made: Path) -> Ending:
    """Run a case in a forked process, which needs no imports of its own.

    Raises:
        AssertionError: If a file outside the run was changed, or a temporary file is left.
    """
    place = Place(folder, made)
    (folder / "home").mkdir()
    place.victim.write_text(PRECIOUS)
    (folder / "tmp").mkdir()
    arguments = case.make(place)
    started, child = time.monotonic(), os.fork()
    if not child:
        os._exit(_command(folder, arguments))
    _, status, used = os.wait4(child, 0)
    seconds = time.monotonic() - started
    said = (folder / "stderr").read_text(errors="replace")
    assert "Traceback" not in said, said
    assert (folder / "home" / "bashrc").read_text() == PRECIOUS
    assert os.listdir(folder / "home") == ["bashrc"]
    assert not (folder / "canary").exists()
    assert not os.listdir(folder / "tmp"), os.listdir(folder / "tmp")
    lines = [line for line in said.splitlines() if not line.startswith("teacher: ")]
    message = (lines or [""])[-1].removeprefix("robustkd: ").replace(f"{folder.resolve()}/", "")
    code = os.waitstatus_to_exitcode(status)
    return Ending(code, message, seconds, used.ru_maxrss / 1024)


def _command(folder: Path, arguments: list[str]) -> int:
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    signal.alarm(MOST_SECONDS)
    tempfile.tempdir = str(folder / "tmp")
    os.environ["TMPDIR"] = tempfile.tempdir
    os.environ["HF_HUB_OFFLINE"] = "1"
    code = 0
    try:
        cli.main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code or 0))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


# Run folders.


def linked(name: str, link: Callable[..., None] = os.symlink) -> Callable[[Place], list[str]]:
    """Replace a file of the run by a link to a file of the user."""

    def make(place: Place) -> list[str]:
        path = place.run() / name
        path.unlink(missing_ok=True)
        link(place.victim.resolve(), path)
        return RESUME

    return make


def replaced(name: str, put: Callable[[Path], object], *flags: str, kind: str = "stopped"):
    """Replace a file of the run by something else."""

    def make(place: Place) -> list[str]:
        path = place.run(kind) / name
        path.unlink(missing_ok=True)
        put(path)
        return [*RESUME, *flags]

    return make


def text(content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(raw)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 30)


def tensorboard(place: Place) -> list[str]:
    shutil.rmtree(place.run() / "tensorboard", ignore_errors=True)
    (place.folder / "run" / "tensorboard").symlink_to(place.victim.parent.resolve())
    return RESUME


MOMENTUM = "optimiser.0.momentum_buffer"


def attackers_checkpoint(*flags: str, **changes: object) -> Callable[[Place], list[str]]:
    """Change the weights of a checkpoint, and further values or tensors by name."""

    def make(place: Place) -> list[str]:
        path = place.run() / CHECKPOINT
        state = load_state(path)
        tensors = {
            name: value + 1 if value.is_floating_point() and ".normalise." not in name else value
            for name, value in state.tensors.items()
        }
        values = dict(state.values)
        for name, value in changes.items():
            if isinstance(value, torch.Tensor):
                tensors[name] = value
            else:
                values[name] = value
        save_state(State(tensors, values), path)
        return [*RESUME, *flags]

    return make


def edited_results(place: Place) -> list[str]:
    path = place.run("finished") / "results.json"
    content = json.loads(path.read_text())
    content["runs"][0]["acc"] = 1.0
    write_json(path, content)
    return RESUME


def environment(place: Place) -> list[str]:
    path = place.run() / "environment.json"
    write_json(path, json.loads(path.read_text()) | {"torch": "1\n$(touch canary)\n"})
    return RESUME


def another_user(place: Place) -> list[str]:
    place.run()
    shutil.move(place.folder / "run" / "seal.json", place.folder / "seal.json")
    content = json.loads((place.folder / "seal.json").read_text())
    write_json(place.folder / "run" / "seal.json", content | {"hmac": "0" * 64})
    (place.folder / "seal.json").unlink()
    return RESUME


def leftover(place: Place) -> list[str]:
    (place.folder / "new").mkdir()
    (place.folder / "new" / "config.yaml.partial").symlink_to(place.victim.resolve())
    return place.distill()


def in_use(place: Place) -> list[str]:
    import fcntl

    (place.folder / "new").mkdir()
    with Folder.at(place.folder / "new") as folder:
        descriptor = folder.append(".lock")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    IN_USE.append(descriptor)
    return place.distill()


IN_USE: list[int] = []


def finished(place: Place) -> list[str]:
    shutil.copytree(place.made / "finished", place.folder / "new")
    return place.distill()


RUN_FOLDERS = [
    ("nothing wrong", lambda place: [place.run(), *RESUME][1:], 0, ""),
    *(
        (f"{name} is a link to a file of the user", linked(name), 3, "it is a symbolic link")
        for name in (
            "run.log",
            ".lock",
            "config.yaml",
            "run.json",
            "seal.json",
            CHECKPOINT,
        )
    ),
    ("run.log is a hard link", linked("run.log", os.link), 3, "it has a second name"),
    ("tensorboard is a link to a folder of the user", tensorboard, 3, "it is a symbolic link"),
    ("config.yaml.partial is a link", linked("config.yaml.partial"), 0, ""),
    *(
        (f"{name} is {what}", replaced(name, put), 3, says)
        for name in ("config.yaml", "run.json", "seal.json", CHECKPOINT)
        for what, put, says in (
            ("a FIFO", os.mkfifo, "not a regular file"),
            ("a link to /dev/zero", endless, "it is a symbolic link"),
        )
    ),
    ("checkpoint of 100 GiB, sparse", replaced(CHECKPOINT, sparse), 3, "not written by"),
    ("run.json that is no JSON", replaced("run.json", text("{")), 3, "cannot be read"),
    ("run.json of 100,000 brackets", replaced("run.json", text("[" * 10**5)), 3, "cannot be read"),
    ("checkpoint with other weights", attackers_checkpoint(), 3, "was not written by this run"),
    ("edited results of a finished run", edited_results, 3, "was not written by this run"),
    ("run of another user", another_user, 3, "was not written by a run of yours"),
    ("run without a seal", replaced("seal.json", lambda _: None), 3, "seal.json"),
    ("commands in environment.json", environment, 0, ""),
    (
        "config.yaml that trusts itself",
        replaced("config.yaml", text("trust_run: true\n")),
        3,
        "sets trust_run",
    ),
    ("--out holds a link config.yaml.partial", leftover, 2, "is not empty"),
    ("--out is in use", in_use, 3, "is in use by another process"),
    ("--out is a finished run", finished, 2, "is not empty"),
]

CHECKPOINTS = [
    ("other weights, trusted", attackers_checkpoint("--trust-run"), 0, ""),
    (
        "another normalisation, trusted",
        attackers_checkpoint(
            "--trust-run", **{"learner.student.model.normalise.mean": torch.full((1, 1, 1), 9.0)}
        ),
        2,
        "the model has values of 'normalise.mean' that differ from its description",
    ),
    (
        "no JSON object",
        replaced(
            CHECKPOINT,
            lambda path: write_safetensors(path, {"a": torch.zeros(2)}, {"state": "[]"}),
            "--trust-run",
        ),
        3,
        "has no training state",
    ),
    (
        "records of text",
        attackers_checkpoint("--trust-run", records=[{"a": "x"}]),
        3,
        "no training state",
    ),
    ("a step that is text", attackers_checkpoint("--trust-run", step="x"), 3, "is damaged"),
    (
        "a generator's state of 3 bytes",
        attackers_checkpoint("--trust-run", **{"random.cpu": torch.zeros(3, dtype=torch.uint8)}),
        3,
        "is damaged",
    ),
    (
        "momentum of another shape",
        attackers_checkpoint("--trust-run", **{MOMENTUM: torch.zeros(7, 7)}),
        3,
        "is damaged",
    ),
]


# YAML.


def config(content: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / "config.yaml").write_text(content)
        return place.distill("--config", "config.yaml")

    return make


def grid(content: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / "grid.yaml").write_text(content)
        return ["bench", "grid.yaml"]

    return make


def many_cells(place: Place) -> list[str]:
    """Extend the grid of the smoke test to many seeds, and repeat one method many times."""
    content = (ROOT / "benchmarks" / "smoke.yaml").read_text()
    content = re.sub(r"^(seeds|methods):.*\n(?:  .*\n|- .*\n)*", "", content, flags=re.MULTILINE)
    seeds, methods = ", ".join(map(str, range(4000))), ", ".join(["ofd"] * 4000)
    return grid(f"{content}\nseeds: [{seeds}]\nmethods: [{methods}]\n")(place)


YAML = [
    ("aliases that expand to 2^29 values", grid(_BOMB), 3, "more than 10,000 values"),
    ("aliases as keys", grid(_KEYS), 3, "a list or a mapping as a key"),
    ("aliases in a configuration", config(_BOMB), 3, "has the name"),
    ("value within itself", grid("a: &x [*x]"), 3, "within itself"),
    ("configuration of 4 MB", config("x: " + "y" * 4_000_000), 3, "more than 262,144 bytes"),
    ("!!bool maybe", config("resume: !!bool maybe"), 3, "gives a value the type"),
    ("!!int without a number", config("epochs: !!int"), 3, "gives a value the type"),
    (
        "!!python/object/apply",
        config("!!python/object/apply:os.system [x]"),
        3,
        "type",
    ),
    ("timestamp", config("seed: 2020-13-45"), 3, "timestamp"),
    ("number of 180,001 characters", config("seed: 1" + ":59" * 60_000), 3, "a number of"),
    ("3,000 brackets", config("[" * 3000), 3, "nested lists or mappings"),
    ("key twice", config("seed: 1\nseed: 2\n"), 3, "twice"),
    ("grid of 16,000,000 cells in 66 kB", many_cells, 2, "expected at most 10,000"),
]


# Images.


def in_train(content: bytes, name: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        data = Path(shutil.copytree(place.made / "data", place.folder / "data"))
        (data / "train" / "dark" / name).write_bytes(content)
        return place.coloured()

    return make


def sparse_png(place: Place) -> list[str]:
    arguments = in_train(png(8, 8, bytes(8 * 25))[:33], "bad.png")(place)
    with (place.folder / "data/train/dark/bad.png").open("ab") as file:
        file.write(struct.pack(">I", 2**31 - 1) + b"abCd")
        file.truncate(8 << 30)
    return arguments


def many_chunks() -> bytes:
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    whole = png(8, 8, bytes(8 * 25))
    return whole[:33] + chunk * 1_000_000 + whole[33:]


BAD = "1 of 81 images cannot be decoded"
_SMALL = Image.fromarray(picture(0, 64))
IMAGES = [
    ("progressive JPEG of 12,000 scans", in_train(many_scans(_SMALL, 12_000), "b.jpg"), 3, BAD),
    ("WebP of 34 bytes and 8192 x 8192 pixels", in_train(one_colour_webp(_SIDE), "b.webp"), 0, ""),
    ("PNG with a chunk of 8 GiB, sparse", sparse_png, 3, BAD),
    ("PNG of 1,000,000 empty chunks", in_train(many_chunks(), "b.png"), 0, ""),
    (
        "PNG of 16 bits and 8192 x 8192 pixels",
        in_train(png(_SIDE, _SIDE, bytes(_SIDE * (1 + 2 * _SIDE)), bits=16, kind=0), "b.png"),
        0,
        "",
    ),
    (
        "PGM with a highest value of 254, 2000 x 2000",
        in_train(b"P5 2000 2000 254\n" + bytes(4_000_000), "b.pgm"),
        3,
        BAD,
    ),
]


# Archives.


def archive(make_archive: Callable[[], bytes]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / "teacher.pt").write_bytes(make_archive())
        return ["distill", "teacher.pt", *DIGITS, "--out", "new"]

    return make


ARCHIVES = [
    (kind, archive(make_archive), 3, f"teacher.pt {says}")
    for kind, (make_archive, says) in AMBIGUOUS.items()
]


# The working directory. `attempt` ends with an error if a module of it has left the canary.


def modules_beside(command: Callable[[Place], list[str]]) -> Callable[[Place], list[str]]:
    """Modules that leave a trace, in the working directory, with names that a process imports."""

    def make(place: Place) -> list[str]:
        trace = f"open({str(place.folder.resolve() / 'canary')!r}, 'a').write(__name__)\n"
        for name in ("multiprocessing", "json", "codecs", "pickletools", "torch", "numpy", "PIL"):
            (place.folder / f"{name}.py").write_text(trace)
        return command(place)

    return make


def tiny_grid(place: Place) -> list[str]:
    (place.folder / "tiny.yaml").write_text(TINY)
    return ["bench", "tiny.yaml", "--workers", "2", "--out", "new"]


def decoded_by_workers(place: Place) -> list[str]:
    shutil.copytree(place.made / "data", place.folder / "data")
    return place.coloured("--streaming", "--workers", "2")


def settings_of_charts(place: Place) -> list[str]:
    (place.folder / "matplotlibrc").write_text(
        "text.usetex: True\nbackend: module://json\n"
        "axes.prop_cycle: cycler('lw', range(100000)) * cycler('alpha', range(100000))\n"
    )
    return modules_beside(Place.distill)(place)


TINY = """\
data: {digits: {train: 40, validation: 20, test: 20}}
pairs: [[wrn-10-1, wrn-10-1]]
attacks: {badnets: , blend: }
methods: [no-teacher]
seeds: [0]
teaching: {epochs: 1}
training: {epochs: 1}
"""
WORKING_DIRECTORIES = [
    ("modules beside the reader of a teacher", modules_beside(Place.distill), 0, ""),
    ("modules beside workers of the benchmark", modules_beside(tiny_grid), 0, ""),
    ("modules beside workers that decode", modules_beside(decoded_by_workers), 0, ""),
    ("matplotlibrc with usetex and 10^10 styles", settings_of_charts, 0, ""),
]


# The hub, names, lists, and networks given to other commands.


def hub(place: Place) -> list[str]:
    shutil.copytree(place.made / "data", place.folder / "user" / "data")
    arguments = place.coloured()
    arguments[arguments.index("./data")] = "hf:user/data@0123abc"
    return arguments


def class_folder(name: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        data = Path(shutil.copytree(place.made / "data", place.folder / "data"))
        for split in ("train", "val", "test"):
            (data / split / "light").rename(data / split / name)
        return place.coloured()

    return make


def listed(flag: str, content: str | None) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        shutil.copytree(place.made / "data", place.folder / "data")
        if flag == "--split":  # the flag is only for data without folders for its splits
            shutil.move(place.folder / "data" / "train", place.folder / "train")
            shutil.rmtree(place.folder / "data")
            (place.folder / "train").rename(place.folder / "data")
        if content is None:
            return place.coloured(flag, "/dev/zero")
        (place.folder / "list").write_text(content)
        return place.coloured(flag, "list")

    return make


def teacher_named(name: bytes) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        path = os.fsdecode(os.path.join(os.fsencode(place.folder), name))
        shutil.copy(place.made / "teacher.pt", path)
        return ["distill", path, *DIGITS, "--out", "new"]

    return make


def student(**said: object) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        tensors = {"w": torch.ones(2)}
        write_safetensors(place.folder / "s.safetensors", tensors, {"spec": asdict(SPEC) | said})
        return ["evaluate", "s.safetensors", "--data", "digits"]

    return make


def trigger(put: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        put(place.folder / "t.safetensors")
        made = str(place.made / "finished" / "student.safetensors")
        return ["evaluate", made, "--data", "digits", "--trigger", "t.safetensors"]

    return make


def float8(path: Path) -> None:
    write_safetensors(path, {"delta": torch.zeros(4).to(torch.float8_e4m3fn)}, {"kind": "additive"})


HUB = [("a local folder of the name of a data set", hub, 3, "the working directory has a folder")]
NAMES = [
    ("class of 121 characters", class_folder("x" * 121), 3, "120 characters"),
    ("class that is no UTF-8", class_folder(os.fsdecode(b"\xff")), 3, "cannot be printed"),
    ("teacher whose path is no UTF-8", teacher_named(b"\xff.pt"), 3, "not a path in UTF-8"),
    (
        "--class-names of 200,000 lines",
        listed("--class-names", "".join(f"{i}\n" for i in range(200_000)) + "0\n"),
        3,
        "twice",
    ),
    ("--class-names of 1.5 MB in one line", listed("--class-names", "x" * 1_500_000), 3, "lacks"),
    ("--class-names /dev/zero", listed("--class-names", None), 3, ""),
    ("--split of 200,000 empty lists", listed("--split", "[" + "[]," * 200_000 + "1]"), 3, "split"),
    ("--split /dev/zero", listed("--split", None), 3, ""),
]
NETWORKS = [
    (
        "student of 400 bytes with 9,998 layers",
        student(arch="resnet-9998"),
        3,
        "cut off or malicious",
    ),
    ("student of 10^12 classes", student(classes=10**12), 3, "cut off or malicious"),
    ("trigger of float8", trigger(float8), 3, "values of the type 'F8_E4M3'"),
    ("trigger that is a FIFO", trigger(os.mkfifo), 3, "is not a file"),
    ("trigger that is a link to /dev/zero", trigger(endless), 3, ""),
]

CASES = [
    Case(f"{surface}: {name}", make, code, says)
    for surface, cases in (
        ("run folder", RUN_FOLDERS),
        ("checkpoint", CHECKPOINTS),
        ("YAML", YAML),
        ("image", IMAGES),
        ("archive", ARCHIVES),
        ("working directory", WORKING_DIRECTORIES),
        ("hub", HUB),
        ("name", NAMES),
        ("network", NETWORKS),
    )
    for name, make, code, says in cases
]
