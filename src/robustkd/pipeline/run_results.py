"""Student file, ``results.json`` and report at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd import models, report
from robustkd.core.environment import environment
from robustkd.core.types import DataSource
from robustkd.data.images.left_out import skipped_files
from robustkd.models.complexity import operations
from robustkd.pipeline import run_files
from robustkd.pipeline.audits import audit_both
from robustkd.pipeline.facts import (
    CleanAccuracy,
    class_record,
    data_record,
    measure_clean,
)
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.opening import form
from robustkd.pipeline.prepare import Prepared
from robustkd.pipeline.run_folder import Run
from robustkd.pipeline.student import Made
from robustkd.report.arrays import write_arrays
from robustkd.report.results import ResultRow, Results


def pair_name(job: DistillJob) -> str:
    """Return the architectures of teacher and student as one text."""
    return f"{job.arch} to {job.student}"


def write_results(
    job: DistillJob,
    clean: DataSource,
    ready: Prepared,
    made: Made,
    untrusted: CleanAccuracy,
    run: Run,
    *,
    audited: bool,
) -> Results:
    """Write the student, ``results.json`` and the report, after the audit if there is one."""
    provenance = job.provenance(clean.name)
    if ready.student_file is not None:
        provenance["student_weights_sha256"] = ready.student_file.sha256
    with run.writing(run_files.STUDENT) as path:
        models.save(made.student, path, provenance=provenance)
        size = path.stat().st_size
    student = measure_clean(made.student, clean)
    audits = _audits(ready, made, clean, run) if audited else {}
    results = Results(
        runs=(
            _untriggered_row(job, clean, "teacher", untrusted, 0.0),
            _untriggered_row(job, clean, job.name, student, made.seconds),
        ),
        environment=environment(),
        config={"arch": job.arch, "student": job.student, **provenance},
        records={
            "teacher_file": ready.file.record()
            | {"mean": list(ready.teacher.spec.mean), "std": list(ready.teacher.spec.std)},
            **({"student_weights": own.record()} if (own := ready.student_file) else {}),
            **made.record,
            "classes": list(clean.classes),
            "data": data_record(clean),
            **({"preprocessing": read} if (read := form(clean)) else {}),
            **({"augmentation": found} if (found := ready.augmentation.record) else {}),
            "networks": {
                "teacher": {
                    "bytes": ready.file.bytes,
                    "macs": operations(ready.teacher, clean.image_shape),
                },
                "student": {"bytes": size, "macs": operations(made.student, clean.image_shape)},
            },
            "by_class": class_record(untrusted, student),
            **({"audit": audits} if audits else {}),
            **({"left_out": skipped} if (skipped := skipped_files(clean)) else {}),
        },
    )
    with run.writing(run_files.RESULTS) as path:
        results.write(path)
    report.write_report(run.folder)
    return results


def _audits(ready: Prepared, made: Made, clean: DataSource, run: Run) -> Mapping[str, object]:
    """Audit teacher and student, store pictures of what was found, and return the record."""
    found = audit_both(ready.teacher, made.student, clean)
    if found.arrays:
        with run.writing(run_files.ARRAYS) as path:
            write_arrays(path, found.arrays)
    return found.record


def _untriggered_row(
    job: DistillJob, clean: DataSource, method: str, measured: CleanAccuracy, seconds: float
) -> ResultRow:
    """Return one row of the results; without a trigger, the attack success rate is unknown."""
    return ResultRow(
        data=clean.name,
        pair=pair_name(job),
        attack="trigger unknown",
        method=method,
        seed=job.seed,
        acc=measured.acc.value,
        asr=None,
        ra=None,
        params=measured.parameters,
        seconds=seconds,
        n_acc=measured.acc.n,
    )
