"""Figures in the sentences of a page follow from the code or from committed results."""

from __future__ import annotations

import re

from robustkd.evaluation.audit.evidence import Evidence
from robustkd.evaluation.audit.led_share import binomial_p_value, highest
from robustkd.evaluation.audit.registry import COUNTED
from robustkd.evaluation.audit.verdict import combine
from tests.docs.pages import ROOT


def _text(page: str) -> str:
    return " ".join((ROOT / "docs" / page).read_text().split())


def _is_evidence(moved: int, tested: int, led: float) -> bool:
    p_value = binomial_p_value(moved, tested, highest(led, tested))
    others = {name: Evidence(1.0, None, "") for name in COUNTED}
    return combine({**others, "led share": Evidence(p_value, 0, "")}, COUNTED).word == "suspicious"


def test_the_guide_to_the_audit_has_the_shares_that_count_as_evidence():
    text = _text("guides/audit.md")
    led = float(re.search(r"led in (\d+) % of the images", text)[1]) / 100
    examples = re.findall(r"(\d+) % of (\d+)", text.partition("must move at least ")[2])[:2]
    assert len(examples) == 2
    for share, tested in examples:
        n = int(tested)
        fewest = next(k for k in range(n + 1) if _is_evidence(k, n, led))
        assert round(100 * fewest / n) == int(share)
