"""Measure every hostile teacher file: ``python -m tools.hostile_table``, then ``make docs``.

The script writes ``benchmarks/results/hostile/teacher-files.json``: one row per case, with the exit
code and the message of ``robustkd distill``, its seconds (without the start of Python and torch),
and the peak memory in MiB of the process that reads the file, or none if it was not started.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tests.teacher.untrusted.attempt import Ending, distil
from tests.teacher.untrusted.hostile import CASES, Case
from tests.teacher.untrusted.samples import saved, trained

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "hostile" / "teacher-files.json"


def row(name: str, case: Case) -> dict[str, object]:
    """Run one case, and return its row."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        teacher = folder / case.name
        case.make(teacher, folder / "canary")
        ending = distil(teacher, folder, case.around(teacher))
        line = ending.err.removeprefix("robustkd: ").strip().replace(str(teacher), teacher.name)
        if ending.code == 0:
            line = accepted(ending)
        if (folder / "canary").exists():
            raise SystemExit(f"{name}: the payload ran")
    return {
        "case": name,
        "exit_code": ending.code,
        "message": line,
        "seconds": round(ending.seconds, 2),
        "peak_mib": ending.verdict and ending.verdict.peak_mib and round(ending.verdict.peak_mib),
    }


def accepted(ending: Ending) -> str:
    """Describe a file that was read, from the results."""
    facts = json.loads(ending.out)["records"]["teacher_file"]
    converted = ", ".join(f"{count} of {kind}" for kind, count in facts["converted"].items())
    return f"read: {facts['matched']} tensors matched; converted to float32: {converted or 'none'}"


def honest() -> dict[str, Case]:
    """Return unusual files that are accepted, made from a teacher of the digits."""
    state = trained()

    def typed(dtype: torch.dtype) -> bytes:
        return saved({n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()})

    def case(content: bytes) -> Case:
        return Case(lambda path, _: path.write_bytes(content), "")

    shared = torch.cat([state["bn.weight"], state["bn.bias"]])
    tied = state | {"bn.weight": shared[:64], "bn.bias": shared[64:]}
    kinds = (torch.float64, torch.float16, torch.bfloat16)
    return {
        **{f"{str(kind).removeprefix('torch.')} weights": case(typed(kind)) for kind in kinds},
        "shared storages": case(saved(tied)),
    }


def main() -> None:
    """Run every case and write the rows."""
    rows = [row(name, case) for name, case in ({"warm-up": CASES["NaN weights"]} | CASES).items()]
    rows = rows[1:] + [row(name, case) for name, case in honest().items()]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
