"""Quick audit of teacher and student at the end of a run."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import nn

from robustkd.core.devices import default_device
from robustkd.core.errors import RobustKDError
from robustkd.core.types import DataSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audited:
    """Audits of a run.

    Attributes:
        record: Audits of ``teacher`` and ``student`` with their time, or why there are none, as
            JSON values.
        arrays: Pictures of what was found, by their key in ``arrays.npz``.
    """

    record: Mapping[str, object]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def audit_both(teacher: nn.Module, student: nn.Module, clean: DataSource) -> Audited:
    """Make the quick audit of teacher and student beside the same reference networks.

    The seed is that of ``robustkd audit`` and ``robustkd verify``, which therefore repeat the
    result. An error is recorded and not raised, since the student is finished.
    """
    started = time.perf_counter()
    try:
        found = _audits({"teacher": teacher, "student": student}, clean)
    except RobustKDError as error:
        _log.warning("the audit could not be made: %s", error)
        return Audited({"failed": _one_line(str(error))})
    except Exception as error:
        # A network of the user's own code may fail in ways that nobody can list, and memory can
        # run out. Neither is a reason to lose the results of a long training.
        _log.exception("the audit failed")
        return Audited({"failed": _one_line(f"{type(error).__name__}: {error}")})
    seconds = round(time.perf_counter() - started, 1)
    return Audited({**found.record, "seconds": seconds}, found.arrays)


def _one_line(message: str) -> str:
    return " ".join(message.split())[:200]


def _audits(networks: Mapping[str, nn.Module], clean: DataSource) -> Audited:
    # Statistics need scipy, which takes a second to import.
    from robustkd.evaluation.audit import QUICK, audit, make_references

    effort = QUICK.for_classes(len(clean.classes))
    references = make_references(clean, effort)
    record: dict[str, object] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for who, network in networks.items():
        here = copy.deepcopy(network).to(default_device())
        found = audit(here, clean, quick=True, references=references)
        record[who] = found.record()
        _log.info("audit of the %s: %s (%s)", who, found.verdict.word, found.verdict.reason)
        if found.pictures is not None:
            arrays[f"audit/{who}/before"] = found.pictures.before.numpy()
            arrays[f"audit/{who}/after"] = found.pictures.after.numpy()
    return Audited(record, arrays)
