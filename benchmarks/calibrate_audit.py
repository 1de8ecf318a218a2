"""Calibrate the audit: how often it accuses clean networks, and how many backdoors it finds.

Networks are trained with and without a backdoor, and audited. The audit receives the network and
clean images; accuracy and attack success rate are measured afterwards. Rows of attacks that did not
succeed are listed apart, and so are those whose trigger misleads the references of the audit as
well. Interrupt it and run it again as you like.

    python benchmarks/calibrate_audit.py --data digits --clean 24 --seeds 3

``--arch`` takes the architectures of RobustKD, of torchvision and of timm, and those of
`other_kinds.py`, which have neither residual blocks nor batch normalisation. The references of the
audit are the same for all.

With ``--student METHOD``, a student is distilled from each network and audited in its place. With
``--probe``, the audits distil and audit a probe student as well. Teachers that hide their backdoor
resist their own trigger, so that the attack success rate of an ordinary student counts as well.

With ``--brief IMAGES``, networks without a backdoor see so many training images, once. They know
less than the references of the audit do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import other_kinds
import torch
from audit_rows import ARCH, ATTACKS, CLEAN, draw, table
from torch import nn

from robustkd import data, models
from robustkd.attacks import Trigger, find
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import find_method, method_name
from robustkd.data import InMemory
from robustkd.data.augment import named
from robustkd.evaluation.audit import FULL, QUICK, Audit, audit, make_references
from robustkd.evaluation.audit.references import Limited, References
from robustkd.evaluation.measurement import measure
from robustkd.pipeline.student import make_student
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_SIZES: dict[str, dict[str, int]] = {
    "digits": {},
    "fashion-mnist": {"train": 5_000, "validation": 1_000, "test": 1_000},
    "cifar10": {"train": 10_000, "validation": 2_000, "test": 1_000},
}
_PATHS = {"cifar10": "data/cifar10"}
"""Data that are read from a folder of images, as in ``cifar.yaml``."""
EFFORTS = {"full": FULL, "quick": QUICK}
ORDINARY = "mix"
"""Method of the students that show whether a hidden backdoor is inherited."""
_EPOCHS = {"digits": 8, "fashion-mnist": 3, "cifar10": 8}
_STUDENT_EPOCHS = {"digits": 20, "fashion-mnist": 5, "cifar10": 10}
_TESTED = (
    *("recognised", "images", "shortfall", "other class"),
    *("reference share", "reference images"),
)
"""Measurements from which the p-value of the led share follows."""
_TARGETS = (1, 8, 3, 0, 2, 4, 5, 6, 7, 9)


def main() -> None:
    """Audit the missing networks; write rows, tables and a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=_SIZES, default="digits")
    parser.add_argument("--arch", default=ARCH)
    parser.add_argument("--student", metavar="METHOD", help="audit a student of this method")
    parser.add_argument("--probe", action="store_true", help="audit a probe student as well")
    parser.add_argument("--brief", type=int, metavar="IMAGES", help="train clean networks briefly")
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--clean", type=int, default=16, help="number of clean networks")
    parser.add_argument("--seeds", type=int, default=3, help="number of networks of each attack")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/audit"))
    parser.add_argument("--figures", type=Path, default=Path("docs/results"))
    parser.add_argument("--raw", type=Path, help="folder for the complete evidence")
    parser.add_argument("--tables-only", action="store_true")
    given = parser.parse_args()
    if given.brief and given.seeds:
        parser.error("--brief is for networks without a backdoor; add --seeds 0")
    if given.student is not None:
        given.student = method_name(given.student)
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    file = make_folder(given.out) / f"{given.data}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    if not given.tables_only:
        run_missing(rows, given, file)
    write_text(file.with_suffix(".md"), table(rows))
    draw(rows, make_folder(given.figures) / f"audit-{given.data}.svg")


def run_missing(rows: list[dict[str, Any]], given: argparse.Namespace, file: Path) -> None:
    """Train and audit the networks that have no row, alternately of each kind."""
    wanted = [(CLEAN, seed) for seed in range(given.clean)]
    wanted += [(name, seed) for seed in range(given.seeds) for name in given.attacks]
    wanted.sort(key=lambda cell: cell[1])
    known = {
        (row["attack"], row["seed"], row["arch"], row["student"], row["probe"], row.get("brief"))
        for row in rows
    }
    how = (given.arch, given.student, given.probe, given.brief)
    missing = [cell for cell in wanted if (*cell, *how) not in known]
    if not missing:
        return
    source = load(given.data)
    references = {kind: make_references(source, effort) for kind, effort in EFFORTS.items()}
    for name, seed in missing:
        row, audits = audited(source, given, name, seed, references)
        rows.append(row)
        write_json(file, {"data": given.data, "rows": rows})
        if given.raw is not None:
            raw = {kind: each.record() for kind, each in audits.items()}
            what = given.student or ("probe" if given.probe else "teacher")
            brief = () if given.brief is None else (str(given.brief),)
            parts = (given.data, given.arch, what, name, str(seed), *brief)
            write_json(make_folder(given.raw) / f"{'-'.join(parts)}.json", raw)


def audited(
    source: InMemory,
    given: argparse.Namespace,
    name: str,
    seed: int,
    references: Mapping[str, References],
) -> tuple[dict[str, Any], dict[str, Audit]]:
    """Train one network and audit it; return its row, and the audits by their kind."""
    started = time.perf_counter()
    if given.brief is None:
        network, trigger, target = trained(name, source, given.arch, seed, _EPOCHS[given.data])
    else:
        network, trigger, target = briefly_trained(source, given.arch, seed, given.brief), None, 0
    if given.student is not None:
        network = student_of(network, source, given.student, given.arch, seed)
    seconds = time.perf_counter() - started
    audits = {
        kind: audit(
            network,
            source,
            effort=effort,
            references=references[kind],
            probe=given.probe,
            seed=seed,
        )
        for kind, effort in EFFORTS.items()
    }
    measured = measure(network, source, trigger=trigger, target=target)
    clean = [
        measure(each, source, trigger=trigger, target=target).asr
        for each in references["full"].networks
        if trigger is not None
    ]
    heir = None
    if given.probe and trigger is not None:
        student = student_of(network, source, ORDINARY, given.arch, seed)
        heir = measure(student, source, trigger=trigger, target=target).asr
    row = {
        "attack": name,
        "seed": seed,
        "arch": given.arch,
        "student": given.student,
        "probe": given.probe,
        **({} if given.brief is None else {"brief": given.brief}),
        "target": None if name == CLEAN else target,
        "ACC": round(measured.acc.value, 4),
        "ASR": None if measured.asr is None else round(measured.asr.value, 4),
        "reference ASR": [round(each.value, 4) for each in clean if each is not None],
        "student ASR": None if heir is None else round(heir.value, 4),
        "training_seconds": round(seconds, 1),
        **{kind: row_of(each) for kind, each in audits.items()},
    }
    return row, audits


def load(name: str) -> InMemory:
    """Load the images, without augmentation, since the trainings are short."""
    found = data.load(_PATHS.get(name, name), **_SIZES[name])
    return replace(found, augmentation=data.CropFlip())


def builder(source: InMemory) -> Callable[[str, int], nn.Module]:
    """Return a function from architecture and seed to a network."""
    ours = models.builder(source)

    def made(arch: str, seed: int) -> nn.Module:
        if arch not in other_kinds.KINDS:
            return ours(arch, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return other_kinds.KINDS[arch].make(source.image_shape, len(source.classes))

    return made


def rate_of(arch: str) -> float:
    """Return the initial learning rate of an architecture."""
    if arch in other_kinds.KINDS:
        return other_kinds.KINDS[arch].rate
    return models.learning_rate(arch)


def trained(
    name: str, source: InMemory, arch: str, seed: int, epochs: int
) -> tuple[nn.Module, Trigger | None, int]:
    """Train a network, with the backdoor of an attack or without one."""
    build = builder(source)
    rate = rate_of(arch)
    if arch in other_kinds.KINDS:
        epochs *= other_kinds.KINDS[arch].longer
    target = _TARGETS[seed % len(_TARGETS)]
    if name == CLEAN:
        network = build(arch, seed)
        fit(Supervised(network), source, epochs=epochs, lr=rate, seed=seed, label="clean")
        return network.eval(), None, 0
    settings = {**ATTACKS[name], "epochs": epochs, "lr": rate, "seed": seed}
    made = find(name)(lambda: build(arch, seed), source, target=target, **settings)
    return made.teacher, made.trigger, made.target


def briefly_trained(source: InMemory, arch: str, seed: int, images: int) -> nn.Module:
    """Train a network without a backdoor on so many images, each of which it sees once."""
    network = builder(source)(arch, seed)
    fit(
        Supervised(network),
        Limited(source, images),
        epochs=1,
        batch_size=32,
        lr=rate_of(arch),
        seed=seed,
        label="clean",
    )
    return network.eval()


def student_of(
    teacher: nn.Module, source: InMemory, method: str, arch: str, seed: int
) -> nn.Module:
    """Distil a student of the same architecture by a method, without knowing of the attack."""
    how = find_method(method)
    training = TrainingConfig(epochs=_STUDENT_EPOCHS[source.name], batch_size=64, lr=rate_of(arch))
    if how.augment is not None:
        source = replace(source, augmentation=named(how.augment, source.augmentation))
    fresh = builder(source)(arch, seed + 1)
    return make_student(teacher, fresh, source, how, training=training, seed=seed).student.eval()


def row_of(found: Audit) -> dict[str, Any]:
    """Return the verdict, and p-value and suspect of each statistic."""
    return {
        "verdict": found.verdict.word,
        "suspect": found.verdict.suspect,
        "seconds": round(found.seconds, 1),
        "p_values": {name: each.p_value for name, each in found.evidence.items()},
        "suspects": {name: each.suspect for name, each in found.evidence.items()},
        "led share": {
            name: value
            for name, value in found.evidence["led share"].details.items()
            if name in _TESTED
        },
        "mean share": dict(found.evidence["mean share"].details),
    }


if __name__ == "__main__":
    main()
