"""Dry run: a few steps of every phase, to estimate time and memory without writing anything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, pairwise
from statistics import fmean, median
from typing import TypeAlias

import torch
from torch import nn

from robustkd import models
from robustkd.core.memory import process_peak_mib
from robustkd.core.method_names import Side
from robustkd.core.method_settings import DetoxSettings
from robustkd.core.methods import Method
from robustkd.core.types import Batch, DataSource, Split
from robustkd.data.images.left_out import counted, skipped_files
from robustkd.data.wrapper import Wrapper
from robustkd.pipeline import detox_objective as perturbing
from robustkd.pipeline.detox_objective import detox_objective
from robustkd.pipeline.hardening import find_for
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.opening import form
from robustkd.pipeline.prepare import Prepared, prepare
from robustkd.pipeline.student import make_student
from robustkd.student import found
from robustkd.teacher.defences.brief import brief
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.teacher.defences.registry import find
from robustkd.training.inference import accuracy_on, frozen_copy
from robustkd.training.last_batch import steps_per_epoch

_log = logging.getLogger(__name__)

_BATCHES = 3
_WHOLE = 1.3
"""Time of an audit relative to its search alone, as measured with two networks."""

Phases: TypeAlias = dict[str, dict[str, float | int]]
"""For each phase: ``steps``, ``seconds per step`` and ``seconds``."""


@dataclass
class _Few(Wrapper):
    """Data source that gives the first batches of another source and measures their time."""

    source: DataSource
    images: int
    took: list[float] = field(default_factory=list)
    _moments: list[float] = field(default_factory=list)
    _steps: int = 0
    _complete: bool = False

    def size(self, split: Split) -> int:
        return min(self.images, self.source.size(split))

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        batches = self.source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle, augment=augment
        )
        self._end_pass()
        for batch in islice(batches, -(-self.size(split) // batch_size)):
            if augment is not None and not self._moments:
                self._moments = [time.perf_counter()]
                self._steps = steps_per_epoch(self.size(split), batch_size)
            yield batch
            if augment is not None:
                self._moments.append(time.perf_counter())
        self._complete = augment is not None

    def _end_pass(self) -> None:
        """Note the times of the steps of the last pass over training images.

        A training may fetch a batch ahead. The first time between its requests then contains no
        step, and the last step ends after the last request. So the time until the present is
        counted as well, and the longest times are those of the steps.
        """
        ends = [*self._moments, *([time.perf_counter()] if self._complete else [])]
        self.took += sorted(end - start for start, end in pairwise(ends))[-self._steps :]
        self._moments, self._complete = [], False

    @contextmanager
    def timed(
        self,
        phases: Phases,
        name: str,
        steps: int,
        average: Callable[[list[float]], float] = median,
    ) -> Iterator[None]:
        """Estimate the time of ``steps`` steps from the average time of batches in the block."""
        self._end_pass()
        self.took.clear()
        started = time.perf_counter()
        yield
        self._end_pass()
        if not steps:  # without training batches
            steps, self.took = 1, [time.perf_counter() - started]
        one = average(self.took)
        phases[name] = {"steps": steps, "seconds per step": one, "seconds": steps * one}


def rehearse(
    job: DistillJob, clean: DataSource, *, audited: bool = True
) -> dict[str, Mapping[str, object]]:
    """Load everything and take a few steps of each phase, without writing anything.

    Args:
        job: What the run makes.
        clean: The user's images.
        audited: If True, the audits at the end are part of the plan.

    Returns:
        The plan in sections: ``teacher``, ``student``, ``data``, each phase, and ``estimate``.

    Raises:
        UsageError: If the run itself would raise it; see
            :func:`robustkd.pipeline.run.distill_file`.
        InputError: Likewise.
        TrainingError: Likewise.
    """
    started = time.perf_counter()
    ready = prepare(job, clean)
    clean = ready.clean
    loading = time.perf_counter() - started
    phases = _phases(job, ready, clean)
    if audited:
        phases |= _audits((ready.teacher, ready.student), clean)
    seconds = loading + sum(phase["seconds"] for phase in phases.values())
    return {
        "teacher": {"arch": job.arch, **ready.file.record(), "accuracy": ready.accuracy.value},
        "student": {
            "arch": job.student,
            "parameters": models.parameters(ready.student),
            "learning rate": job.training.lr,
        },
        "data": {
            "name": clean.name,
            "classes": len(clean.classes),
            "shape": list(clean.image_shape),
            **{split: clean.size(split) for split in ("train", "validation", "test")},
            **form(clean),
            **({"left out": counted(skipped)} if (skipped := skipped_files(clean)) else {}),
            **({"augmentation": used} if (used := ready.augmentation.record.get("used")) else {}),
        },
        **phases,
        "estimate": {"method": job.name, "seconds": seconds, "peak MiB": _peak_mib()},
    }


def _phases(job: DistillJob, ready: Prepared, clean: DataSource) -> Phases:
    """Return the estimated steps and seconds of each phase of the run."""
    phases: Phases = {}
    how, teacher, training = job.how, ready.teacher, job.training
    batch_size = training.batch_size
    few = _Few(clean, _BATCHES * max(batch_size, DetoxSettings().batch_size))
    source: nn.Module = teacher

    def clean_by_defence(network: nn.Module, on: Side) -> nn.Module:
        if how.defence is None or how.defence.on != on:
            return network
        defence = find(how.defence.name).defence
        # Steps of different parts of a defence differ, so the median would leave some parts out.
        with few.timed(phases, f"clean the {on}", defence.batches(clean.size("train")), fmean):
            return brief(defence)(network, few, seed=job.seed).network

    source = clean_by_defence(source, "teacher")
    if how.detox is not None:
        full = how.detox
        short = asdict(replace(full, steps=_BATCHES, raises=0, lowerings=0, bisections=0))
        objective = None
        if how.removes == "perturbations":
            started = time.perf_counter()
            objective = detox_objective(how, source, few, seed=job.seed, steps=1)
            one = time.perf_counter() - started
            phases["perturb"] = _phase(perturbing.STEPS, one)
        with few.timed(phases, "detoxify", full.most_steps):
            source = detoxify(source, few, objective=objective, seed=job.seed, **short).teacher
    if how.hardening is not None and how.hardening.found and how.losses:
        phases["search"] = _search(how, source, few, job.seed)
        how = replace(how, hardening=replace(how.hardening, found=()))
    steps = training.epochs * steps_per_epoch(clean.size("train"), batch_size)
    with few.timed(phases, "distil", steps):
        make_student(
            source,
            ready.student,
            few,
            replace(how, detox=None, defence=None),
            # Steps of one epoch without a warm-up take about as long.
            training=replace(training, epochs=1, warmup_epochs=0.0, compile=False),
            seed=job.seed,
        )
    clean_by_defence(ready.student, "student")
    started = time.perf_counter()
    accuracy_on(ready.student, few, "validation")
    one = (time.perf_counter() - started) * clean.size("validation") / few.size("validation")
    phases["validate"] = _phase(training.epochs, one)
    return phases


def _search(how: Method, teacher: nn.Module, few: DataSource, seed: int) -> dict[str, float | int]:
    """Estimate the search of the teacher, whose measurement takes long beside one step."""
    seconds = []
    for steps in (1, 3):
        started = time.perf_counter()
        find_for(how, teacher, few, seed=seed, steps=steps)
        seconds.append(time.perf_counter() - started)
    whole = found.search_steps(found.STEPS)
    one = max(0.0, seconds[1] - seconds[0]) / 2
    total = seconds[0] + (whole - len(found.STRENGTHS)) * one
    return {"steps": whole, "seconds per step": total / whole, "seconds": total}


def _phase(steps: int, one: float) -> dict[str, float | int]:
    return {"steps": steps, "seconds per step": one, "seconds": steps * one}


def _audits(networks: Sequence[nn.Module], clean: DataSource) -> Phases:
    """Return the estimated time of the audits, from one step of the search for each network.

    An audit that fails is no part of the plan, since it does not end the run either.
    """
    # The audit needs scipy, which takes a second to import.
    from robustkd.evaluation.audit import QUICK
    from robustkd.evaluation.audit.references import train_references
    from robustkd.evaluation.audit.search import search

    effort = QUICK.for_classes(len(clean.classes))
    one = replace(effort, strengths=effort.strengths[:1], steps=1)
    few = _Few(clean, effort.batch * len(clean.classes))
    seen = min(effort.reference_images, few.size("train"))
    try:
        started = time.perf_counter()
        beside = train_references(few, replace(effort, reference_images=seen))
        references = (time.perf_counter() - started) * effort.reference_images / seen
        started = time.perf_counter()
        for network in (*networks, *beside):
            others = [each for each in beside if each is not network]
            search(frozen_copy(network), few, one, seed=0, beside=others)
        step = time.perf_counter() - started
    except Exception as error:
        # As in the run, where no error of the audit may cost the user the student.
        _log.warning("the time of the audit is not in the estimate: %s", error)
        return {}
    steps = effort.search_steps
    seconds = references + _WHOLE * steps * step
    return {"audit": {"steps": steps, "seconds per step": seconds / steps, "seconds": seconds}}


def _peak_mib() -> float:
    """Return the peak memory of this process, plus that of the accelerator if there is one."""
    peak = 0.0
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 2**20
    return peak + process_peak_mib()
