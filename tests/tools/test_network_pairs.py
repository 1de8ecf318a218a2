"""One step of everything for pairs of every kind, on small images; one that fails stops nothing."""

from __future__ import annotations

import json
import math

import pytest

from robustkd import models
from robustkd.core.errors import UsageError
from tests.marks import slow
from tools import network_pairs
from tools.network_pairs import PAIRS, PairOfNetworks, try_pair
from tools.pairs_table import pairs_tables

OWN = PAIRS[-1].student
SMALL = (
    PairOfNetworks("pyramidnet-11-6-bottleneck", "resnet-8", 16),
    PairOfNetworks("timm/deit_tiny_patch16_224", "timm/mobilenetv3_small_050", 64),
    PairOfNetworks("mobilenet-v2-0.25", OWN, 16),
)


def test_every_pair_can_be_named():
    for pair in PAIRS:
        models.check_name(pair.teacher)
        models.check_name(pair.student)


@pytest.mark.parametrize(
    "pair", [slow(SMALL[0]), *SMALL[1:]], ids=lambda pair: f"{pair.teacher} to {pair.student}"
)
def test_a_pair_goes_through(pair):
    row = try_pair(pair, batch=2)
    assert set(row["seconds"]) == {"taps", "detox", "distil", "harden"}
    assert set(row["steps"]["distil"]) >= {"loss", "ce", "ofd"}
    assert set(row["steps"]["harden"]) > set(row["steps"]["distil"])
    assert all(math.isfinite(v) for step in row["steps"].values() for v in step.values())
    assert len(row["variance_ratio"]) == len(row["teacher_taps"])
    assert min(row["teacher_macs"], row["student_macs"]) > 0


def test_failures_are_reported_and_the_rest_continues(tmp_path, monkeypatch, capsys):
    def either(pair: PairOfNetworks) -> dict[str, object]:
        if pair.teacher == "wrn-10-1":
            raise UsageError("no stage found")
        return try_pair(pair, batch=2)

    monkeypatch.chdir(tmp_path)
    page = tmp_path / "docs" / "results" / "networks.md"
    page.parent.mkdir(parents=True)
    page.write_text("<!-- table: benchmarks/results/pairs.json pairs -->\n<!-- end -->\n")
    tried = (PairOfNetworks("wrn-10-1", "resnet-8", 8), PairOfNetworks("resnet-8", "wrn-10-1", 8))
    monkeypatch.setattr(network_pairs, "PAIRS", tried)
    monkeypatch.setattr(network_pairs, "try_pair", either)
    with pytest.raises(SystemExit) as ended:
        network_pairs.main()
    assert ended.value.code == 1
    written = tmp_path / "benchmarks" / "results" / "pairs.json"
    first, second = json.loads(written.read_text())["pairs"]
    assert first == {"teacher": "wrn-10-1", "student": "resnet-8", "error": "no stage found"}
    assert "| `wrn-10-1` | `resnet-8` | failed: no stage found |" in page.read_text()
    assert f"| {second['teacher_parameters'] / 1e6:.2f} to 0.08 |" in page.read_text()
    assert "wrn-10-1 to resnet-8: no stage found" in capsys.readouterr().err
    assert page.read_text() == f"<!-- table: {'benchmarks/results/pairs.json'} pairs -->\n" + (
        pairs_tables(written) + "<!-- end -->\n"
    )
