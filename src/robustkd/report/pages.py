"""Everything that the report, the model card and the summary of a run show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustkd.core.files import make_folder
from robustkd.report import facts
from robustkd.report.aggregate import Row, aggregate, by_cell
from robustkd.report.command import repeating
from robustkd.report.drop import Drop
from robustkd.report.facts import Compared, Facts, Kind
from robustkd.report.records import Records, read_records
from robustkd.report.results import Results, read
from robustkd.report.tables import common_name
from robustkd.report.verdict import headline, main_drop


@dataclass(frozen=True, slots=True)
class Content:
    """Checked content of a run folder.

    Attributes:
        folder: The run folder.
        results: Content of ``results.json``.
        records: Its checked records.
        rows: Results aggregated over seeds.
        kind: Command that wrote the results.
    """

    folder: Path
    results: Results
    records: Records
    rows: Sequence[Row]
    kind: Kind

    @property
    def title(self) -> str:
        """Data, pair and attack that all results have in common."""
        cells = list(by_cell(self.rows))
        return common_name(cells) or f"{len(cells)} settings"

    @property
    def headline(self) -> str:
        """The results in one or two sentences."""
        return headline(self.rows)

    @property
    def drop(self) -> Drop | None:
        """Loss of accuracy of the student that the headline is about."""
        return main_drop(self.rows) if len(by_cell(self.rows)) == 1 else None

    @property
    def large_drop(self) -> bool:
        """Whether this loss is large."""
        return self.drop is not None and self.drop.large

    @property
    def triggered(self) -> bool:
        """Whether any attack success rate was measured."""
        return any(row.asr is not None for row in self.rows)

    @property
    def robust(self) -> bool:
        """Whether hardening, which can cost accuracy, was part of the run."""
        return any(row.ours for row in self.rows)

    @property
    def asked(self) -> Facts:
        """Inputs and settings of the run."""
        return facts.asked(self.results, self.records)

    @property
    def compared(self) -> Sequence[Compared]:
        """Teacher and student side by side."""
        return facts.compared(self.results, self.records, self.rows)

    @property
    def teacher_file(self) -> Facts:
        """Facts about the teacher's file."""
        return list(facts.teacher_facts(self.results))

    @property
    def environment(self) -> Facts:
        """Versions and machine properties."""
        return facts.environment_facts(self.results)

    @property
    def other_records(self) -> Facts:
        """Records that have no section of their own."""
        return facts.other_records(self.results)

    def command(self, *, private: bool = False) -> str:
        """Return the command line that repeats the run; empty if it is unknown."""
        return repeating(self.results, self.folder, private=private)


def load(folder: str | Path) -> Content:
    """Read and check the results of a run folder.

    Raises:
        InputError: If they are missing or damaged.
    """
    folder = Path(folder)
    results = read(folder)
    records = read_records(results, folder / "results.json")
    return Content(folder, results, records, aggregate(results.runs), facts.kind_of(results))


def out_folder(folder: str | Path, out: str | Path | None) -> Path:
    """Return the folder of the texts of a run, created if it does not exist.

    Args:
        folder: The run folder.
        out: Another folder; None for the run folder.

    Raises:
        InputError: If it cannot be made.
    """
    return Path(folder) if out is None else make_folder(Path(out))
