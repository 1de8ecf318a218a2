"""The demo: a backdoored teacher, and students that inherit the backdoor or do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from robustkd import models
from robustkd.attacks import Backdoored, MaskedPattern, find, save_trigger
from robustkd.benchmark.protocol import Protocol
from robustkd.benchmark.rows import measured_runs
from robustkd.core.devices import device_of
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, new_folder
from robustkd.core.first_batch import first_batch
from robustkd.core.folders import Folder
from robustkd.core.methods import METHODS
from robustkd.core.targets import Target
from robustkd.core.triggers import victims
from robustkd.core.types import DataSource
from robustkd.pipeline.student import make_student
from robustkd.report.arrays import write_arrays
from robustkd.report.results import ResultRow, Results
from robustkd.teacher.defences.masks import DetoxifiedTeacher
from robustkd.training.config import TrainingConfig

METHODS_SHOWN = ("no-teacher", "ofd", "mix", "paper", "default")
"""Methods of the demo, besides the teacher itself.

``ofd`` has the losses of ``paper`` without its defence, and ``mix`` those of ``default``.
"""
_EXAMPLES = 8


@dataclass
class _Story:
    """State of one seed of the demo."""

    setting: Protocol
    seed: int
    data: DataSource
    folder: Path
    build: Callable[[str, int], models.Classifier]
    found: list[ResultRow] = field(default_factory=list)
    records: dict[str, object] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def attack(self) -> Backdoored:
        """Train the backdoored teacher, and save it with its trigger."""
        started = time.perf_counter()
        setting = self.setting
        made = find(setting.attack)(
            lambda: self.build(setting.teacher, self.seed),
            self.data,
            target=setting.target,
            seed=self.seed,
            **setting.attacking,
        )
        self.keep("teacher", made.teacher, made, time.perf_counter() - started, made.record)
        save_trigger(made.trigger, made.target, self.folder / "trigger.safetensors")
        return made

    def learn(self, method: str, backdoored: Backdoored) -> None:
        """Make a student by one method, which receives only the teacher and clean images."""
        made = make_student(
            backdoored.teacher,
            # The students of all methods have the same initial weights.
            self.build(self.setting.student, self.seed + 1),
            self.data,
            METHODS[method],
            training=TrainingConfig(**self.setting.training),
            detoxing=self.setting.detoxing,
            seed=self.seed,
            label=method,
            log=self.folder / f"{method}.metrics.jsonl",
        )
        self.keep(method, made.student, backdoored, made.seconds, made.record)
        if made.detoxified is not None:
            self.show_masks(method, made.detoxified)

    def keep(
        self,
        method: str,
        model: nn.Module,
        backdoored: Backdoored,
        seconds: float,
        record: Mapping[str, object],
    ) -> None:
        """Save a model, and record its results and its predictions for the images of the report."""
        provenance = {"method": method, "seed": self.seed, "attack": self.setting.attack}
        path = self.folder / f"{method}.safetensors"
        models.save(model, path, provenance=provenance)
        setting = self.setting
        self.found.extend(
            measured_runs(
                model,
                self.data,
                backdoored,
                names=(setting.attack,),
                data=setting.data,
                pair=setting.pair,
                method=method,
                seed=self.seed,
                seconds=seconds,
            )
        )
        self.records[f"{method}/{self.seed}"] = record
        images, _ = _samples(self.data, backdoored.target)
        with torch.inference_mode():
            said = model(backdoored.trigger(images).to(device_of(model))).argmax(1)
        self.arrays[f"predictions/{method}"] = said.cpu().numpy()

    def show_trigger(self, backdoored: Backdoored) -> None:
        """Record a few clean and triggered images, and the trigger if it has a mask."""
        images, labels = _samples(self.data, backdoored.target)
        self.arrays |= {
            "images": images.numpy(),
            "labels": labels.numpy(),
            "triggered": backdoored.trigger(images).numpy(),
        }
        if isinstance(backdoored.trigger, MaskedPattern):
            self.arrays |= {
                "trigger_mask": backdoored.trigger.mask.numpy(),
                "trigger_pattern": backdoored.trigger.pattern.numpy(),
            }

    def show_masks(self, method: str, teacher: DetoxifiedTeacher) -> None:
        """Record the masks of a detoxified teacher."""
        for location, mask in zip(teacher.locations, teacher.feature_masks, strict=True):
            self.arrays[f"mask/{method}/{location}"] = mask.mask.detach().cpu().numpy()


def run_demo(
    setting: Protocol,
    out: Path,
    *,
    seeds: int,
    root: Path | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> Path:
    """Run every method of the demo on one attack, and write the results.

    Args:
        setting: Data, pair, attack and training.
        out: New folder for ``results.json``, ``arrays.npz`` and, for each seed, a folder with
            models, trigger and metrics. It is created after the data has been loaded.
        seeds: Number of seeds, from 0 on.
        root: Folder of the data; None searches the usual places.
        tell: Function that receives one line after each model.

    Returns:
        ``out``.
    """
    data = setting.load(root)
    with new_folder(out) as folder:
        _run_seeds(setting, folder, data, seeds, tell)
    return out


def _run_seeds(
    setting: Protocol, out: Folder, data: DataSource, seeds: int, tell: Callable[[str], None]
) -> None:
    build = models.builder(data)
    found: list[ResultRow] = []
    records: dict[str, object] = {}
    for seed in range(seeds):
        folder = make_folder(out.path / f"seed-{seed}")
        story = _Story(setting, seed, data, folder, build)
        for line in _tell_story(story):
            tell(line)
        found += story.found
        records |= story.records
        if seed == 0:
            with out.writing("arrays.npz") as file:
                write_arrays(file, story.arrays)
        Results(
            runs=tuple(found),
            environment=environment(),
            config={**setting.settings(), "seeds": seeds},
            records={**records, "classes": list(data.classes)},
        ).write(out.path / "results.json")


def _tell_story(story: _Story) -> Iterator[str]:
    backdoored = story.attack()
    story.show_trigger(backdoored)
    yield _line(story.found[-1])
    for method in METHODS_SHOWN:
        story.learn(method, backdoored)
        yield _line(story.found[-1])


def _line(found: ResultRow) -> str:
    return (
        f"seed {found.seed}  {found.method:<10}  ACC {found.acc:6.1%}  "
        f"ASR {found.asr:6.1%}  RA {found.ra:6.1%}  {found.seconds:6.1f} s"
    )


def _samples(data: DataSource, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first test images that are not of the target class."""
    batch = first_batch(data, "test", batch_size=16 * _EXAMPLES)
    other = victims(batch.labels, target, len(data.classes))
    return batch.images[other][:_EXAMPLES], batch.labels[other][:_EXAMPLES]
