"""The tool that trains networks with their defaults: older rows, and repeated trainings."""

from __future__ import annotations

import json
import sys

from robustkd.training.config import TrainingConfig
from tools import default_trainings


def test_a_network_below_the_floor_is_trained_once_more_with_the_default_number(
    tmp_path, monkeypatch
):
    out, asked = tmp_path / "rows.json", []
    old = {"network": "wrn-10-1", "data": "digits", "test accuracy %": "97.8 (95.6 to 98.9)"}
    out.write_text(json.dumps([old]))

    def fake(arch, name, source, epochs):
        asked.append((arch, epochs))
        accuracy = 50.0 if epochs == default_trainings.EPOCHS else 61.0
        return {
            "network": arch,
            "data": name,
            "epochs": epochs,
            "test accuracy %": f"{accuracy} (1.0 to 99.0)",
        }

    monkeypatch.setattr(default_trainings, "row", fake)
    monkeypatch.setattr(default_trainings, "NETWORKS", ("wrn-10-1", "resnet-20"))
    monkeypatch.setattr(sys, "argv", ["", str(out), "--data", "digits"])
    default_trainings.main()
    default_trainings.main()
    assert asked == [("resnet-20", default_trainings.EPOCHS), ("resnet-20", TrainingConfig.epochs)]
    assert [row["epochs"] for row in json.loads(out.read_text())] == [8, 8, 30]
