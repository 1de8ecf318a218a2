"""Measure every defence on backdoored networks: accuracy and attack success, before and after.

Attackers train on all training images, of which 5 % are poisoned; the defender has these images
without poison, or a part of them. ``kd``, ``bcu`` and ``abd`` distil the network into a copy of
itself: the copy has the backdoor from the start, as in the paper of BCU, and ``kd`` is the control
without a defence.

The results are written to one table. Finished cells are kept, so that an interrupted run can be
continued.

    python benchmarks/defences.py --data digits --seeds 3
    python benchmarks/defences.py --data fashion-mnist --train 5000 --defender 1000
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import Teaching, find
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, read_json, write_json, write_text
from robustkd.core.methods import find_method
from robustkd.core.types import DataSource
from robustkd.evaluation.measurement import measure
from robustkd.pipeline.student import make_student
from robustkd.student.safeguards import SAFEGUARDS
from robustkd.teacher.defences import registry
from robustkd.training.config import TrainingConfig

TARGET = 8
SETTINGS = ("data", "train", "defender", "test", "arch", "epochs", "distil_epochs")
"""Options on which a row depends, so that a continued table has the same for all rows."""
WITHIN = ("kd", *SAFEGUARDS)
"""Methods that distil the network into a copy of itself."""


def main() -> None:
    """Run what is missing and write ``DATA.json`` and ``DATA.md``."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    path = make_folder(given.out) / f"{given.name or given.data}.json"
    content = read_json(path) if path.exists() else {"rows": []}
    rows: list[dict[str, Any]] = content["rows"]
    config = {name: str(value) for name, value in vars(given).items() if name != "out"}
    known = content.get("config", {})
    other = [name for name in SETTINGS if known.get(name, config[name]) != config[name]]
    if other:
        sys.exit(
            f"{path} was measured with another {', '.join(other)}; use another --name or --out"
        )
    for row in _missing(given, rows):
        rows.append(row)
        write_json(path, {"rows": rows, "config": config, "environment": environment()})
        sys.stderr.write(f"{row}\n")
    text = table(rows)
    write_text(path.with_suffix(".md"), text)
    sys.stdout.write(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument(
        "--name", default="", help="name of the output files; default: that of the data"
    )
    parser.add_argument(
        "--train", type=int, default=None, help="number of training images of the attacker"
    )
    parser.add_argument(
        "--defender", type=int, help="number of these that the defender has; default: all of them"
    )
    parser.add_argument("--test", type=int, default=None)
    parser.add_argument("--arch", default="wrn-10-2")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of the attacker")
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blend"])
    parser.add_argument("--defences", nargs="+", default=[*registry.DEFENCES, *WITHIN])
    parser.add_argument("--distil-epochs", type=int, default=20, help="epochs of kd, bcu and abd")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/defences"))
    return parser.parse_args()


def _missing(given: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the missing rows; the teacher of a seed is trained once."""
    done = {(row["attack"], row["seed"], row["defence"]) for row in rows}
    attacker = data.load(given.data, train=given.train, test=given.test)
    defender = data.load(given.data, train=given.defender or given.train, test=given.test)
    build = models.builder(attacker)
    for seed in range(given.seeds):
        for name in given.attacks:
            wanted = [d for d in ("none", *given.defences) if (name, seed, d) not in done]
            if not wanted:
                continue
            teaching = Teaching(epochs=given.epochs, seed=seed)
            attack, make = find(name).attack, lambda: build(given.arch, seed)  # noqa: B023
            poisoned = attack(make, attacker, target=TARGET, teaching=teaching)
            for defence in wanted:
                cleaned, record, seconds = _cleaned(
                    defence, poisoned.teacher, defender, seed, given.distil_epochs
                )
                found = measure(cleaned, attacker, trigger=poisoned.trigger, target=TARGET)
                yield {
                    "attack": name,
                    "seed": seed,
                    "defence": defence,
                    **found.fields(),
                    "seconds": round(seconds, 1),
                    "record": record,
                }


def _cleaned(
    name: str, network: nn.Module, clean: DataSource, seed: int, epochs: int
) -> tuple[nn.Module, dict[str, Any], float]:
    started = time.perf_counter()
    if name == "none":
        return network, {}, 0.0
    if name in WITHIN:
        made = make_student(
            network,
            copy.deepcopy(network),
            clean,
            find_method(name),
            training=TrainingConfig(epochs=epochs, batch_size=64),
            seed=seed,
            label=name,
        )
        return made.student, {}, time.perf_counter() - started
    done = registry.find(name).defence(network, clean, seed=seed)
    return done.network, done.record, time.perf_counter() - started


def table(rows: list[dict[str, Any]]) -> str:
    """Format a Markdown table: ACC and ASR in percent by defence, with spread over seeds."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    heads = [f"{attack} {figure}" for attack in attacks for figure in ("ACC", "ASR")]
    lines = [
        f"| Defence | {' | '.join(heads)} | Seconds | Seeds |\n",
        f"| --- |{' ---: |' * (len(heads) + 2)}\n",
    ]
    for defence in dict.fromkeys(row["defence"] for row in rows):
        own = [row for row in rows if row["defence"] == defence]
        cells = []
        for attack in attacks:
            mine = [row for row in own if row["attack"] == attack]
            cells += [shown([100 * row[figure] for row in mine]) for figure in ("acc", "asr")]
        seconds = mean(row["seconds"] for row in own)
        count = len({row["seed"] for row in own})
        lines.append(f"| {defence} | {' | '.join(cells)} | {seconds:.0f} | {count} |\n")
    return "".join(lines)


def shown(values: list[float]) -> str:
    """Format the mean, and for several values the standard deviation, in percent.

    >>> shown([1.0]), shown([1.0, 3.0]), shown([])
    ('1.0', '2.0 ± 1.4', '-')
    """
    if not values:
        return "-"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
