"""Cells of a grid: experiments that are identified by the hash of their configuration.

A configuration contains the given values and the settings of the method. If a default or the code
changes in a way that affects results, increase the ``revision`` of an attack, or ``_HARDENED``,
``_REMOVED`` or ``FORMAT`` in this module.

Networks are cached, so that the students of one teacher share it, attacks share a clean teacher,
and a student without a teacher is trained once for all attacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from robustkd.attacks import find
from robustkd.attacks.registry import added_settings
from robustkd.benchmark.attacked_teachers import Rehearsal
from robustkd.benchmark.rows import names_of_rows
from robustkd.core.method_names import NetworkDefence, split_name
from robustkd.core.method_settings import DetoxOptions, stated
from robustkd.core.methods import Method, find_method
from robustkd.core.targets import Target
from robustkd.core.types import Settings, Split
from robustkd.student.safeguards import stated_safeguard
from robustkd.teacher.defences.cleaning import settings_of
from robustkd.training.config import Precision, TrainingOptions

TEACHER = "teacher"
"""Method name of the cell that measures the teacher itself."""
FORMAT = 1
"""Version of the meaning of configurations; part of every hash."""
_REMOVED = 1
"""Version of the perturbations that a detoxification removes; part of the hash of its students."""
_HARDENED = 2
"""Version of hardening; part of the hash for hardened students and attackers who train them."""
_SEARCHED: int = 1
"""Version of the search of the teacher; part of the hash of methods that search it, from 2 on."""


@dataclass(frozen=True)
class Setting:
    """Data and environment that cells share.

    Attributes:
        data: Name of the data source; for a folder, its own name and the hash of its content.
        sizes: Number of images per split; a split that is not named is used completely.
        augment: If True, all networks are trained with the usual augmentation of the data; if
            False, on the images as they are.
        precision: Mixed precision of all trainings, as accelerate names it. Masks of adaptive
            attackers are trained in full precision.
        threads: Number of threads of torch, on which the last bits of results depend.
        seed: Seed of everything random.
        path: Path of the folder, if the data is one. It is no part of the configuration, so that
            results keep their names when the folder is moved.
    """

    data: str
    sizes: Mapping[Split, int] = field(default_factory=dict)
    augment: bool = False
    precision: Precision = "no"
    threads: int = 1
    seed: int = 0
    path: str | None = None

    def configuration(self) -> dict[str, object]:
        """Return everything that results depend on, as JSON values."""
        content = asdict(self)
        del content["path"]
        return content


@dataclass(frozen=True)
class TeacherCell:
    """A backdoored teacher.

    Attributes:
        setting: Data and environment.
        arch: Architecture of the teacher.
        attack: Name of the attack.
        attacking: Arguments of the attack and of its training.
        target: Target class of the attack; ``next`` for the next class of each image.
        surrogate: Architecture of the attacker's surrogates, for attacks that train any.
        rehearsal: Expected method of the defender, for adaptive attacks; None for all others.
    """

    setting: Setting
    arch: str
    attack: str
    attacking: Settings
    target: Target = 0
    surrogate: str | None = None
    rehearsal: Rehearsal | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the attack in results, one for each trigger."""
        return names_of_rows(self.attack, self.attacking)

    def configuration(self) -> dict[str, object]:
        """Return everything that the teacher depends on, as JSON values."""
        return {"format": FORMAT, **self.given(), **self.made_by()}

    def given(self) -> dict[str, object]:
        """Return the values of the attributes, as JSON values."""
        return {**asdict(self), "setting": self.setting.configuration()}

    def made_by(self) -> dict[str, object]:
        """Return the versions of the code that the teacher depends on."""
        second = _version(self.attacking["second"]) if "second" in self.attacking else {}
        return {
            **_version(self.attack),
            **({"second": second} if second else {}),
            **self.rehearsed(),
        }

    def rehearsed(self) -> dict[str, object]:
        """Return the settings of the defence that an adaptive attacker has used."""
        if self.rehearsal is None:
            return {}
        parts = _parts(self.rehearsal.method, self.rehearsal.detoxing)
        if "train_surrogate" not in find(self.attack).takes:
            parts = {name: parts[name] for name in ("detox", "removes") if name in parts}
        return {"rehearsed": parts}


def _version(attack: str) -> dict[str, object]:
    """Return the version of the code of an attack; empty for the first version."""
    revision, added = find(attack).revision, added_settings(attack)
    return {
        **({"revision": revision} if revision else {}),
        **({"settings": added} if added else {}),
    }


@dataclass(frozen=True)
class Cell:
    """One method on one backdoored teacher.

    Attributes:
        teacher: The backdoored teacher.
        student: Architecture of the student.
        method: Name of a method, with a defence if it has one, see
            :mod:`robustkd.core.method_names`; or ``teacher`` to measure the teacher itself.
        training: Arguments of the student's training.
        detoxing: Arguments of detoxification that depend on the size of the data only.
    """

    teacher: TeacherCell
    student: str
    method: str
    training: TrainingOptions = field(default_factory=TrainingOptions)
    detoxing: DetoxOptions = field(default_factory=DetoxOptions)

    @property
    def pair(self) -> str:
        """Architectures of teacher and student as one text."""
        return f"{self.teacher.arch} to {self.student}"

    @property
    def name(self) -> str:
        """Readable name that ends in the hash of the configuration."""
        words = (self.teacher.attack, self.method, f"seed-{self.teacher.setting.seed}")
        return f"{'.'.join(words)}.{digest(self.configuration())}"

    def configuration(self) -> dict[str, object]:
        """Return everything that the result depends on, as JSON values."""
        teacher = self.teacher.made_by()
        if self.method == TEACHER:
            own = replace(self, training={}, detoxing={})
            return {"format": FORMAT, **own.given(), **teacher}
        # Methods without detoxification do not depend on its arguments.
        cleans = find_method(self.method).detox is not None
        relevant = self if cleans else replace(self, detoxing={})
        return {
            "format": FORMAT,
            **relevant.given(),
            **teacher,
            "preset": _parts(self.method, self.detoxing),
        }

    def given(self) -> dict[str, object]:
        """Return the values of the attributes, as JSON values."""
        return {**asdict(self), "teacher": self.teacher.given()}


def _parts(method: str, detoxing: Settings) -> dict[str, object]:
    """Return the settings of a method as JSON values, without those that ``detoxing`` replaces."""
    how = find_method(method)
    detox = stated(how.detox)
    if detox is not None:
        detox = {name: value for name, value in detox.items() if name not in detoxing}
    hardening = stated(how.hardening)
    if hardening is not None:
        hardening["revision"] = _HARDENED
        if "found" in hardening and _SEARCHED > 1:
            hardening["search"] = _SEARCHED
    parts: dict[str, object] = {
        "losses": dict(how.losses),
        "detox": detox,
        "hardening": hardening,
    }
    return {**parts, **_later_parts(how)}


def _later_parts(how: Method) -> dict[str, object]:
    """Return the other settings that are not the default, so that stored results keep names."""
    return {
        **({"until": dict(how.until)} if how.until else {}),
        **({} if how.removes == "variance" else {"removes": [how.removes, _REMOVED]}),
        **({} if how.augment is None else {"augment": how.augment}),
        **({"safeguard": stated_safeguard(how.safeguard)} if how.safeguard else {}),
        **({} if how.defence is None else {"defence": defence_parts(how.defence)}),
    }


def defence_parts(use: NetworkDefence) -> dict[str, object]:
    """Return name, network and settings of a defence, as JSON values."""
    return {"name": use.name, "on": use.on, "settings": settings_of(use.name)}


def without_defence(cell: Cell) -> Cell:
    """Return the cell of the same method without the defence that its name has."""
    return replace(cell, method=split_name(cell.method).base)


def digest(configuration: Mapping[str, object]) -> str:
    """Return the first sixteen hexadecimal digits of the hash of a configuration.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(configuration, sort_keys=True, default=dict)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
