"""Audit: evidence of an unknown backdoor in a classifier, from clean data alone."""

from robustkd.evaluation.audit.effort import FULL, QUICK, Effort
from robustkd.evaluation.audit.evidence import Evidence
from robustkd.evaluation.audit.references import References, make_references, search_references
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
    "References",
    "Verdict",
    "audit",
    "make_references",
    "search_references",
]
