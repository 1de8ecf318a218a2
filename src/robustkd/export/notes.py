"""Notes that a user should read before shipping an export."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd.evaluation.measurement import Measured
from robustkd.export.latency import Running
from robustkd.export.machine import Machine

_LOST = 0.005
"""Largest loss of accuracy by int8, as a fraction of all images, for which there is no note."""
_FEWEST = 200
"""Number of validation images below which there is a note."""
_BUSY = 1.5
"""Load per core above which latencies are unreliable."""


def notes(
    float_measured: Measured,
    int8_measured: Measured | None,
    running: Mapping[str, Running],
    sizes: Mapping[str, int],
) -> list[str]:
    """Return notes on the exported files.

    Args:
        float_measured: Measurement of the float ONNX file.
        int8_measured: Measurement of the int8 file; None if there is none.
        running: Costs of the files by kind, ``onnx`` and ``int8``.
        sizes: Sizes of the files in bytes, likewise.
    """
    found = []
    if float_measured.asr is None:
        found.append("attack success could not be measured: no trigger was given")
    if int8_measured is None:
        return found
    lost = float_measured.acc.value - int8_measured.acc.value
    if lost > _LOST:
        found.append(
            f"int8 is {100 * lost:.1f} points less accurate than float: {int8_measured.acc} "
            f"against {float_measured.acc} of {float_measured.acc.n} test images"
        )
    found += _higher_asr(float_measured, int8_measured)
    quick, slow = running["onnx"].one_thread.p50_ms, running["int8"].one_thread.p50_ms
    if slow > quick:
        found.append(
            f"int8 is slower than float on this machine: {slow:.3g} ms against {quick:.3g} ms for "
            "one image with one thread (median)"
        )
    if sizes["int8"] >= sizes["onnx"]:
        found.append("the int8 file is not smaller than the float file")
    return found


def few(judged: int, *, int8: bool) -> list[str]:
    """Return a sentence if few validation images judged the files.

    Args:
        judged: Number of validation images.
        int8: If True, the recipe of the int8 file was chosen on them.
    """
    if judged >= _FEWEST:
        return []
    chosen = ", and the int8 recipe was chosen on them" if int8 else ""
    return [
        f"the files were compared with the student on {judged} validation images only{chosen}; "
        f"use at least {_FEWEST}"
    ]


def busy(machine: Machine) -> list[str]:
    """Return a sentence if other processes made the latencies longer.

    Args:
        machine: Description by :func:`robustkd.export.machine.machine` right after the timing.
    """
    load, cores = machine["load"], machine["cores"]
    # The export itself uses up to all cores.
    if load is None or load <= _BUSY * cores:
        return []
    return [
        f"the machine was busy (load {load:.1f} on {cores} cores): latencies, above all p95, are "
        "too long"
    ]


def _higher_asr(float_measured: Measured, int8_measured: Measured) -> list[str]:
    """Return a sentence if the int8 file's ASR is above the interval of the float file's ASR."""
    before, after = float_measured.asr, int8_measured.asr
    if before is None or after is None or after.value <= before.wilson()[1]:
        return []
    return [f"int8 has a higher attack success rate than float: {after} against {before}"]
