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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import other_kinds
import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import Trigger, find
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import find_method, method_name
from robustkd.core.statistics import wilson
from robustkd.data import InMemory
from robustkd.data.augment import named
from robustkd.evaluation.audit import FULL, QUICK, STATISTICS, Audit, audit, make_references
from robustkd.evaluation.audit.references import Limited, References
from robustkd.evaluation.audit.verdict import LEVEL
from robustkd.evaluation.measurement import measure
from robustkd.pipeline.student import make_student
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

ATTACKS: dict[str, dict[str, Any]] = {
    "badnets": {"rate": 0.1},
    "blend": {"rate": 0.1},
    "tone": {},
    "flow": {},
    "latent": {},
    "ckd": {},
    # Attacks that were not used to choose the settings of the audit.
    "filter": {},
    "light": {},
    "smooth": {},
    "affine": {},
    "flow+tone": {},
    "backweak": {"implant_lr": 0.005},
    "adba": {},
    "adba-ft": {},
    "scar": {},
}
"""Attacks and their settings."""
CLEAN = "clean"
_ARCH = "wrn-10-1"
SURVIVES = 0.5
"""Smallest attack success rate of a backdoor that counts; also beyond that of the references."""
EASY = "leads references as well"
WEAK = f"ASR below {SURVIVES:.0%}"
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
    parser.add_argument("--arch", default=_ARCH)
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


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the shares of accused networks as Markdown, by attack and audit."""
    names = list(STATISTICS)
    head = ["networks", "audit", "n", "suspicious", "right class", "inconclusive", *names]
    lines = [f"| {' | '.join(head)} |\n", f"| --- | --- |{' ---: |' * (len(head) - 2)}\n"]
    for label, chosen in groups(rows).items():
        for kind in ("full", "quick"):
            found = [(row, row[kind]) for row in chosen]
            accused = [row for row, each in found if each["verdict"] == "suspicious"]
            right = [row for row in accused if row["target"] == row[kind]["suspect"]]
            unsure = sum(each["verdict"] == "inconclusive" for _, each in found)
            low, high = wilson(len(accused) / len(found), len(found))
            single = [_count([each["p_values"] for _, each in found], name) for name in names]
            cells = [
                label,
                kind,
                str(len(found)),
                f"{len(accused)} [{low:.0%}, {high:.0%}]",
                "-" if label.startswith(CLEAN) else str(len(right)),
                str(unsure),
                *single,
            ]
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def failure(row: Mapping[str, Any]) -> str:
    """Return why a network does not count as backdoored; empty if it does, or has no backdoor.

    With a probe, a backdoor that an ordinary student has inherited counts as well. A trigger that
    misleads networks without the backdoor shows a weakness of the data, and the success on the
    network is no inheritance.
    """
    if row["ASR"] is None:
        return ""
    success = max(row["ASR"], row.get("student ASR") or 0.0)
    if success < SURVIVES:
        return WEAK
    return EASY if success - fmean(row["reference ASR"]) < SURVIVES else ""


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows by attack, student and architecture; those that do not count apart."""
    made: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts = [row["attack"]]
        if row["student"]:
            parts.append(f"student by {row['student']}")
        if row["probe"]:
            parts.append("with a probe student")
        if row["arch"] != _ARCH:
            parts.append(row["arch"])
        if row.get("brief"):
            parts.append(f"{row['brief']} images")
        if failure(row):
            parts.append(failure(row))
        made.setdefault(", ".join(parts), []).append(row)
    order = [CLEAN, *ATTACKS]

    def place(pair: tuple[str, list[Mapping[str, Any]]]) -> tuple[int, int]:
        first, *further = pair[0].split(", ")
        return len(further), order.index(first)

    return dict(sorted(made.items(), key=place))


def _count(p_values: Sequence[Mapping[str, float | None]], name: str) -> str:
    """Return the number of p-values up to the level; a dash if the audit leaves it out."""
    known = [each[name] for each in p_values if name in each]
    if not known:
        return "-"
    return str(sum(p_value is not None and p_value <= LEVEL for p_value in known))


def curve(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[tuple[float, float]]:
    """Return the ROC curve of a statistic: false-positive and hit rate for each threshold.

    A network without a p-value is not found at any threshold, as if the p-value were 1.
    """
    alive = [row for row in rows if not failure(row) and name in row[kind]["p_values"]]
    values = [(row[kind]["p_values"][name], row["attack"] != CLEAN) for row in alive]
    known = [(1.0 if p_value is None else p_value, bad) for p_value, bad in values]
    bad = max(1, sum(each for _, each in known))
    good = max(1, sum(not each for _, each in known))
    points = [(0.0, 0.0)]
    for limit in sorted({p_value for p_value, _ in known}):
        hits = sum(each for p_value, each in known if p_value <= limit)
        wrong = sum(not each for p_value, each in known if p_value <= limit)
        points.append((wrong / good, hits / bad))
    return [*points, (1.0, 1.0)]


def area(points: Sequence[tuple[float, float]]) -> float:
    """Area under a ROC curve."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the ROC curves of all statistics for teachers, for both kinds of audit.

    Without backdoored networks, nothing is drawn.
    """
    other = ("student", "probe", "brief")
    rows = [row for row in rows if row["arch"] == _ARCH and not any(map(row.get, other))]
    if all(row["attack"] == CLEAN for row in rows):
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "robustkd"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, kind in zip(axes, ("full", "quick"), strict=True):
        for name in STATISTICS:
            if not any(name in row[kind]["p_values"] for row in rows):
                continue
            points = curve(rows, kind, name)
            axis.step(*zip(*points, strict=True), where="post", label=f"{name} {area(points):.2f}")
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axis.set(title=f"{kind} audit", xlabel="false-positive rate")
        axis.legend(title="area under the curve", fontsize="small", loc="lower right")
    axes[0].set_ylabel("hit rate")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
