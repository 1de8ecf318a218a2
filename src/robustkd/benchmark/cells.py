"""The cells of a grid: each a pure function of its configuration, whose hash is its name.

A configuration holds what is given and what presets say. Where a default or the code changes so
that results do, the ``revision`` of an attack, or ``_HARDENED`` or ``FORMAT`` here, is raised.

Networks are kept in a store, so that the students of one teacher share it, and so that a student
that never meets a teacher is trained once for all attacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from robustkd.attacks import find
from robustkd.benchmark.attacked_teachers import Rehearsal
from robustkd.core.methods import DetoxOptions, find_method, stated
from robustkd.core.types import Settings, Split
from robustkd.training.config import TrainingOptions
from robustkd.training.precision import Precision

TEACHER = "teacher"
"""The method of the cell that measures the teacher itself."""
FORMAT = 1
"""Part of every hash: what the same configuration means changes with it."""
_HARDENED = 2
"""The same for students that are hardened, and for attackers who rehearse on one."""


@dataclass(frozen=True)
class Setting:
    """What all cells of a setting share.

    Attributes:
        data: Name of the data source.
        sizes: Images kept per split; a split that is not named is whole.
        augment: Whether everybody trains on randomly cropped and flipped images.
        precision: Of every network's training, attacker's and user's, as accelerate names it; the
            masks that an attacker rehearses learn in full precision.
        threads: Of torch, as the last bits of every figure depend on it.
        seed: Of everything random.
    """

    data: str
    sizes: Mapping[Split, int] = field(default_factory=dict)
    augment: bool = False
    precision: Precision = "no"
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TeacherCell:
    """A backdoored teacher.

    Attributes:
        setting: Where it is trained.
        arch: Its architecture.
        attack: Name of the attack.
        attacking: Arguments of the attack, those of every teacher's training among them.
        target: Class that triggered images are sent to.
        surrogate: Architecture of the attacker's own students, for attacks that have any.
        rehearsal: What attacks that know us expect of the defender; None for all others.
    """

    setting: Setting
    arch: str
    attack: str
    attacking: Settings
    target: int = 0
    surrogate: str | None = None
    rehearsal: Rehearsal | None = None

    def configuration(self) -> dict[str, object]:
        """All that the teacher follows from, in JSON values."""
        return {"format": FORMAT, **asdict(self), **self.made_by()}

    def made_by(self) -> dict[str, object]:
        """What of today's code the teacher follows from: its attack's revision, and our method."""
        revision = find(self.attack).revision
        return {**({"revision": revision} if revision else {}), **self.rehearsed()}

    def rehearsed(self) -> dict[str, object]:
        """What an attacker who knows us has met of us: other teachers come of another defence."""
        if self.rehearsal is None:
            return {}
        parts = _parts(self.rehearsal.method)
        if "train_surrogate" not in find(self.attack).takes:
            parts = {"detox": parts["detox"]}
        return {"rehearsed": parts}


@dataclass(frozen=True)
class Cell:
    """One method on one backdoored teacher.

    Attributes:
        teacher: What is distilled from.
        student: Architecture of the student.
        method: Name of a preset, or ``teacher`` to measure the teacher itself.
        training: Arguments of every student's training.
        detoxing: Arguments of detoxification that depend on the data's size alone.
    """

    teacher: TeacherCell
    student: str
    method: str
    training: TrainingOptions = field(default_factory=TrainingOptions)
    detoxing: DetoxOptions = field(default_factory=DetoxOptions)

    @property
    def pair(self) -> str:
        """Teacher and student in one word."""
        return f"{self.teacher.arch} to {self.student}"

    @property
    def name(self) -> str:
        """What it is, for people, and the hash of its configuration, for everything else."""
        words = (self.teacher.attack, self.method, f"seed-{self.teacher.setting.seed}")
        return f"{'.'.join(words)}.{digest(self.configuration())}"

    def configuration(self) -> dict[str, object]:
        """All that the result follows from, in JSON values."""
        teacher = self.teacher.made_by()
        if self.method == TEACHER:
            own = asdict(replace(self, training={}, detoxing={}))
            return {"format": FORMAT, **own, **teacher}
        # A method that cleans nothing is the same however long the others clean.
        cleans = find_method(self.method).detox is not None
        relevant = self if cleans else replace(self, detoxing={})
        return {
            "format": FORMAT,
            **asdict(relevant),
            **teacher,
            "preset": _parts(self.method),
        }


def _parts(method: str) -> dict[str, object]:
    """What a preset does, in JSON values."""
    how = find_method(method)
    hardening = stated(how.hardening)
    if hardening is not None:
        hardening["revision"] = _HARDENED
    parts: dict[str, object] = {
        "losses": dict(how.losses),
        "detox": stated(how.detox),
        "hardening": hardening,
    }
    # Stated where it is not the usual value, so that stored results keep their names.
    return parts if how.until == 1 else {**parts, "until": how.until}


def digest(configuration: Mapping[str, object]) -> str:
    """Sixteen hexadecimal digits of the configuration's hash.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(configuration, sort_keys=True, default=dict)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
