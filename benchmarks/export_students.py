"""Export four kinds of students, and measure the exported files.

Each student is trained for a few epochs on Fashion-MNIST, from labels alone and with a BadNets
trigger on a part of the images, so that its attack success rate is high, and then exported.

    python benchmarks/export_students.py --out benchmarks/results/export

Finished students are kept, so that an interrupted run can be continued.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robustkd import data, models
from robustkd.attacks import BadNets
from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.core.files import make_folder, read_json, write_json, write_text
from robustkd.data import InMemory
from robustkd.export import export_student
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

STUDENTS = (
    ("wrn-10-1", 28),
    ("mobilenet-v2-0.25", 28),
    ("timm/test_efficientnet", 64),
    ("timm/test_vit", 64),
)
"""Architectures with the size of their images."""
TARGET = 8
"""Target class of the attack: bags."""


def main() -> None:
    """Train, export, and write ``results.json`` and ``table.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=5_000)
    parser.add_argument("--validation", type=int, default=2_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("build/export"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export"))
    given = parser.parse_args()
    make_folder(given.work)
    found = [exported(arch, size, given) for arch, size in STUDENTS]
    make_folder(given.out)
    write_json(given.out / "results.json", {"exports": found, "epochs": given.epochs})
    write_text(given.out / "table.md", table(found))


def exported(arch: str, size: int, given: argparse.Namespace) -> dict[str, Any]:
    """Export one student, and return the content of its ``export.json``."""
    folder = given.work / arch.replace("/", "-")
    if folder.exists():
        return read_json(folder / "export.json")
    numbers = {"train": given.train, "validation": given.validation, "test": given.test}
    source = enlarged(data.load("fashion-mnist", **numbers), size)
    trigger = BadNets(size=max(3, size // 9))
    student = models.build(models.spec_for(arch, source), seed=0)
    poisoned = Poisoned(source, trigger, target=TARGET, rate=0.05, seed=0)
    lr = 0.02 if "vit" in arch else models.learning_rate(arch)
    fit(Supervised(student), poisoned, epochs=given.epochs, batch_size=64, lr=lr)
    return export_student(student, source, folder, trigger=trigger, target=TARGET, tell=print)


def enlarged(source: InMemory, size: int) -> InMemory:
    """Resample the images of a source to another size."""

    def resample(images: Tensor) -> Tensor:
        if images.shape[-1] == size:
            return images
        wide = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
        return wide.round().byte()

    held = {
        split: getattr(source, split)._replace(images=resample(getattr(source, split).images))
        for split in ("train", "validation", "test")
    }
    return replace(source, **held)


def table(found: list[dict[str, Any]]) -> str:
    """Format a Markdown table with a row for each student and file."""
    lines = [
        "| Student | File | ACC % | ASR % | n | Same class % | kB | MMACs | p50 ms | p95 ms |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        count = one["student"]["macs"]
        for kind, row in one["measured"].items():
            parity, running = one["parity"].get(kind), one["running"].get(kind)
            size = f"{one['files'][kind]['bytes'] / 1e3:.0f}" if running else ""
            times = running["latency"][0] if running else None
            cells = [
                *(one["student"]["arch"], kind, f"{100 * row['acc']:.1f}"),
                *(f"{100 * row['asr']:.1f}", f"{row['n_acc']:,}"),
                f"{100 * parity['agreement']:.2f}" if parity else "",
                *(size, "" if count is None else f"{count / 1e6:.2f}"),
                *(f"{times[key]:.3g}" if times else "" for key in ("p50_ms", "p95_ms")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
