r"""Compare forms of the detoxification: what does each remove of a backdoor's inheritance?

Every form cleans the teachers of a grid's attacks by feature masks, and a student learns from the
cleaned teacher by OFD. The measure is the share of the excess that a form removes,

.. math:: 1 - \frac{a_{form} - a_{none}}{a_{ofd} - a_{none}}

where a is the attack success rate of the student of the form, of an ordinary student, and of one
without a teacher. The forms use clean images alone:

- ``paper``: the preset, masks up to 0.2 and the variance over all images;
- ``paper, long`` and ``perturbed, long``: ``paper`` and ``perturbed`` with their former search of
  lambda, which begins at 1 and not at 16; all forms below have it, too, apart from ``perturbed``;
- ``cap-1``: masks up to 1, which can remove a position completely;
- ``within``: masks up to 1 and the variance within classes;
- ``additive-0.2`` and ``additive-0.9``: patterns that are added to the features, with the variance
  of activations, as in the code of the paper's authors;
- ``inversion``: no masks; directions of features that lead to a class unusually easily are removed;
- ``perturbed``: the method ``paper-perturbed``, masks up to 1 that remove what universal
  perturbations of the teacher add to the features;
- ``perturbed-0.2``: the same with masks up to 0.2;
- ``paper, matched`` and ``perturbed, matched``: the variance of the student's features also follows
  that of the cleaned teacher's;
- ``perturbed, learned``: a student of the method ``learned`` learns from the cleaned teacher;
- ``learned``: the teacher is not cleaned.

Interrupt it and run it again as you like; processes with different seeds or attacks may share a
folder.

    python benchmarks/cleaning.py --attacks ckd latent adba blend tone
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from cleaning_forms import FORMS, Form
from torch import nn

from robustkd import models
from robustkd.attacks import load_trigger
from robustkd.benchmark import load_grid, run_cell
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import TEACHER, Cell, digest
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.errors import UsageError
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import METHODS
from robustkd.data import CropFlip, InMemory, load
from robustkd.evaluation.measurement import measure
from robustkd.pipeline.student import make_student
from robustkd.training.config import TrainingConfig

NONE, ORDINARY = "no-teacher", "ofd"
"""Methods between which the share of a form is measured."""
BEFORE = "paper, long"
"""Form that the others are compared with."""
_SMALLEST = 0.1
"""Smallest excess of an ordinary student for which the share of a form means something."""


def main() -> None:
    """Run the missing students, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=Path, default=Path("benchmarks/transformations.yaml"))
    parser.add_argument("--attacks", nargs="+", default=["ckd", "latent", "adba", "blend", "tone"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--cache", type=Path, help="folder of trained teachers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cleaning"))
    parser.add_argument("--tables-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    file = make_folder(given.out) / "cleaning.json"
    if not given.tables_only:
        store = Store(given.cache or given.out / "cache")
        for cell in teachers(given.grid, given.attacks, given.seeds):
            for method in (NONE, ORDINARY, *given.forms):
                key = (cell.teacher.attack, cell.teacher.setting.seed, method)
                if key not in {(row["attack"], row["seed"], row["method"]) for row in read(file)}:
                    row = run(cell, method, store)
                    write_json(file, [*read(file), row])
    write_text(given.out / "cleaning.md", table(read(file)))
    write_text(given.out / "shares.md", shares_table(read(file)))


def read(file: Path) -> list[dict[str, Any]]:
    """Return the rows that a file has by now; another process may have added some."""
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return rows


def teachers(grid: Path, attacks: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of a grid that measure a teacher, for the attacks and seeds."""
    of_teachers = {
        (cell.teacher.attack, cell.teacher.setting.seed): cell
        for cell in load_grid(grid)
        if cell.method == TEACHER
    }
    wanted = [(attack, seed) for seed in seeds for attack in attacks]
    missing = [cell for cell in wanted if cell not in of_teachers]
    if missing:
        raise UsageError(f"{grid} has no attack {missing[0][0]!r} with seed {missing[0][1]}")
    return [of_teachers[cell] for cell in wanted]


def run(cell: Cell, method: str, store: Store) -> dict[str, Any]:
    """Make the student of a method or a form, and measure it."""
    run_cell(cell, store)
    folder = store.root / digest(cell.teacher.configuration())
    teacher: nn.Module = models.load(folder / "model.safetensors").eval()
    trigger, target = load_trigger(folder / "trigger.safetensors")
    setting = cell.teacher.setting
    source = load(setting.path or setting.data, **setting.sizes)
    if not setting.augment:
        source = replace(source, augmentation=CropFlip())
    training = TrainingConfig(**{"precision": setting.precision, **cell.training})
    seed = setting.seed
    record: dict[str, Any] = {}
    fresh = models.builder(source)(cell.student, seed + 1)
    started = time.perf_counter()
    form = form_of(method)
    if form.cleaning is not None:
        teacher, record = form.cleaning(teacher, source, setting.precision, seed)
        record["teacher ASR"] = asr(teacher, source, trigger, target)
    how = form.student
    student = make_student(teacher, fresh, source, how, training=training, seed=seed).student
    seconds = time.perf_counter() - started
    found = measure(student, source, trigger=trigger, target=target)
    return {
        "attack": cell.teacher.attack,
        "seed": seed,
        "method": method,
        "ACC": round(found.acc.value, 4),
        "ASR": asr(student, source, trigger, target),
        "seconds": round(seconds, 1),
        **record,
    }


def form_of(method: str) -> Form:
    """Return a form by its name, or the form of a method whose teacher is not cleaned."""
    return FORMS[method] if method in FORMS else Form(None, METHODS[method])


def asr(model: nn.Module, source: InMemory, trigger: Any, target: int) -> float:  # noqa: ANN401
    """Attack success rate, rounded."""
    found = measure(model, source, trigger=trigger, target=target).asr
    if found is None:
        raise UsageError("no image of another class than the target")
    return round(found.value, 4)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format ASR by attack, and what a form costs, as Markdown.

    Accuracy and time are compared with the ordinary students of the same teachers.
    """
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    more = ["ACC points lost", "time", "n"]
    lines = [["student", *attacks, *more], ["---", *["---:"] * (len(attacks) + len(more))]]
    for method in (NONE, ORDINARY, *FORMS):
        chosen = [row for row in rows if row["method"] == method]
        if not chosen:
            continue
        cells = [_cell([row["ASR"] for row in chosen if row["attack"] == name]) for name in attacks]
        pairs = [(row, other) for row in chosen if (other := _same(row, rows).get(ORDINARY))]
        costs = ["-", "-"]
        if pairs:
            lost = fmean(other["ACC"] - row["ACC"] for row, other in pairs)
            time_ratio = median(row["seconds"] / other["seconds"] for row, other in pairs)
            costs = [f"{100 * lost:.1f}", f"{time_ratio:.1f}"]
        lines.append([method, *cells, *costs, str(len(chosen))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shares_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the share of the excess that each form removes, by attack, as Markdown.

    The last columns have the means of the form and of ``paper, long`` for the teachers of both, and
    their number.
    """
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    lines = [["form", *attacks, "mean", f"{BEFORE} there", "n"]]
    lines.append(["---", *["---:"] * (len(attacks) + 3)])
    for method in FORMS:
        chosen = [
            (row, share)
            for row in rows
            if row["method"] == method and (share := removed(row, rows)) is not None
        ]
        if not chosen:
            continue
        cells = [
            _cell([share for row, share in chosen if row["attack"] == name]) for name in attacks
        ]
        pairs = [
            (share, removed(_same(row, rows)[BEFORE], rows))
            for row, share in chosen
            if BEFORE in _same(row, rows)
        ]
        means = [
            _cell([share for share in each if share is not None])
            for each in zip(*pairs, strict=True)
        ]
        lines.append([method, *cells, *(means or ["-", "-"]), str(len(pairs))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def removed(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """Share of the excess that a row removes; None if the ordinary student has hardly any."""
    same = _same(row, rows)
    if not {NONE, ORDINARY} <= same.keys():
        return None
    none, ordinary = same[NONE]["ASR"], same[ORDINARY]["ASR"]
    return (
        None if ordinary - none < _SMALLEST else float(1 - (row["ASR"] - none) / (ordinary - none))
    )


def _same(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of the same teacher by method."""
    teacher = (row["attack"], row["seed"])
    return {other["method"]: other for other in rows if (other["attack"], other["seed"]) == teacher}


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{round(100 * fmean(values), 1) + 0.0}{spread}"  # not -0.0


if __name__ == "__main__":
    main()
