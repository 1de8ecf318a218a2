"""Audit: evidence of an unknown backdoor in a classifier, from clean data alone."""

from robustkd.evaluation.audit.effort import FULL, QUICK, Effort
from robustkd.evaluation.audit.evidence import Evidence
from robustkd.evaluation.audit.references import train_references
from robustkd.evaluation.audit.registry import COUNTED, STATISTICS
from robustkd.evaluation.audit.run import Audit, audit
from robustkd.evaluation.audit.verdict import LEVEL, Verdict

__all__ = [
    "COUNTED",
    "FULL",
    "LEVEL",
    "QUICK",
    "STATISTICS",
    "Audit",
    "Effort",
    "Evidence",
    "Verdict",
    "audit",
    "train_references",
]
