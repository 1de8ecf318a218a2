"""Facts of a run as labels and values, for the report, the model card and the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from robustkd.core.errors import printable
from robustkd.core.methods import label_of, look_up
from robustkd.core.targets import NEXT, NEXT_WORDS
from robustkd.report.aggregate import Row
from robustkd.report.records import Records
from robustkd.report.results import ResultRow, Results
from robustkd.report.tables import UNKNOWN, percent, short_count, spread

Kind: TypeAlias = Literal["distill", "attack", "demo", "grid"]
"""Command that wrote the results; ``grid`` for any other set of results."""

Facts: TypeAlias = Sequence[tuple[str, str]]

_TEACHER = "teacher_file"
_OWN_SECTION = (
    "audit",
    "by_class",
    "classes",
    "data",
    "detox",
    "epochs",
    "kept",
    "left_out",
    "networks",
)
_SPLITS = {"train": "training", "validation": "validation", "test": "test"}
_FILE_LABELS: Mapping[str, str] = {
    "name": "File name",
    "bytes": "Size",
    "sha256": "SHA-256",
    "format": "Format",
    "matched": "Tensors of the network, all found in the file",
    "filled": "Batch counters that the file lacks",
    "by_order": "Tensors matched by their order alone",
    "candidates": "Networks in the file",
    "key": "Network that was read",
    "wrappers": "Wrappers around the weights that were removed",
    "ignored": "Other keys, which were not read",
    "converted": "Tensors converted to float32, by type",
    "normalisation": "Mean and standard deviation taken from",
    "mean": "Mean of each channel",
    "std": "Standard deviation of each channel",
    "limits": "Limits of the process that read the file",
}


_WORDS: Mapping[str, str] = {
    "attacking": "attack",
    "detoxing": "detoxification",
    "lr": "learning rate",
    "teaching": "training of the teacher",
}
"""Words for names of settings that are not words."""


class Compared(NamedTuple):
    """One line of the comparison of teacher and student."""

    label: str
    teacher: str
    student: str


def kind_of(results: Results) -> Kind:
    """Return which command wrote the results."""
    methods = {run.method for run in results.runs}
    if _TEACHER in results.records:
        return "distill"
    if methods == {"teacher"} and "surrogate" in results.config:
        return "attack"
    return "demo" if {"seeds", "detoxing"} <= set(results.config) else "grid"


def student_row(rows: Sequence[Row]) -> Row | None:
    """Return the only student of a run; None if there are none or several."""
    students = [row for row in rows if row.method != "teacher"]
    return students[0] if len(students) == 1 else None


def asked(results: Results, records: Records) -> Facts:
    """Return inputs and settings of the run: teacher, data, student, method and options."""
    runs, config = results.runs, results.config
    facts = [
        ("Teacher", _teacher(results)),
        ("Student", _text(config.get("student"))),
        ("Data", _data(runs, records)),
        ("Attack", ", ".join(_different(run.attack for run in runs if run.asr is not None))),
        *_methods(runs),
        ("Defence", _defence(results)),
        ("Seed", ", ".join(_different(str(run.seed) for run in runs))),
    ]
    # The flags are shown as the command that repeats the run.
    shown = {"arch", "student", "teacher", "data", "attack", "method", "seed", "seeds", "flags"}
    settings = {key: value for key, value in config.items() if key not in shown}
    if settings.get("target") == NEXT:
        settings["target"] = NEXT_WORDS
    facts += [(setting_label(name), value) for name, value in flat(settings)]
    return [(label, value) for label, value in facts if value not in ("", "none")]


def setting_label(name: str) -> str:
    """Return the dotted name of a setting as words.

    >>> setting_label("training.batch_size"), setting_label("detoxing.lr")
    ('Training, batch size', 'Detoxification, learning rate')
    """
    group, _, last = printable(name).rpartition(".")
    group, last = (_WORDS.get(each, each).replace("_", " ") for each in (group, last))
    label = f"{group}, {last}" if group else last
    return label[:1].upper() + label[1:]


def teacher_facts(results: Results) -> Iterator[tuple[str, str]]:
    """Label and value of each recorded fact on the teacher's file; empty values are left out."""
    found = results.records.get(_TEACHER)
    if not isinstance(found, Mapping):
        return
    for name, value in found.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{count} from {kind}" for kind, count in flat(value))
        elif name == "bytes" and isinstance(value, int):
            text = f"{size(value)} ({value:,} bytes)"
        else:
            text = plain(value)
        if text not in ("", "0"):
            yield _FILE_LABELS.get(name, setting_label(str(name))), text


def compared(results: Results, records: Records, rows: Sequence[Row]) -> Sequence[Compared]:
    """Lines of the comparison of teacher and student; empty without exactly one student."""
    student = student_row(rows)
    teacher = next((row for row in rows if row.method == "teacher"), None)
    if student is None or teacher is None:
        return []
    config, networks = results.config, records.networks
    lines = [
        Compared("Architecture", _text(config.get("arch")), _text(config.get("student"))),
        Compared(
            "Accuracy on test images",
            spread(teacher.acc, unit=True),
            spread(student.acc, unit=True),
        ),
        Compared("Parameters", f"{teacher.params:,}", f"{student.params:,}"),
    ]
    if set(networks) == {"teacher", "student"}:
        known = networks["teacher"], networks["student"]
        lines.append(Compared("File size", *(size(network.size) for network in known)))
        lines.append(Compared("MACs for one image", *(_macs(network.macs) for network in known)))
    return [line for line in lines if {line.teacher, line.student} - {"", UNKNOWN}]


def environment_facts(results: Results) -> Facts:
    """Versions and machine properties."""
    return [(printable(name), plain(value)) for name, value in results.environment.items()]


def other_records(results: Results) -> Facts:
    """Records that have no section of their own."""
    kept: dict[str, object] = {}
    for key, value in results.records.items():
        if key in _OWN_SECTION or key == _TEACHER:
            continue
        if isinstance(value, Mapping):
            value = {name: part for name, part in value.items() if name not in _OWN_SECTION}
        if value != {}:
            kept[key] = value
    return list(flat(kept))


def flat(nested: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested mappings to pairs of dotted name and value.

    >>> list(flat({"a": {"b": 1, "c": [2, 3]}, "d": None, "e": {}}))
    [('a.b', '1'), ('a.c', '2, 3'), ('d', 'none'), ('e', '')]
    """
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield printable(f"{prefix}{key}"), plain(value)


def plain(value: object) -> str:
    """Format a JSON value as printable text, with the values of objects after their keys.

    >>> plain([True, 0.5, None]), plain([{"a": 1, "b": 2}, {"a": 3}])
    ('yes, 0.5, none', 'a 1, b 2; a 3')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(key))} {plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        nested = any(isinstance(part, Mapping) for part in value)
        return ("; " if nested else ", ").join(map(plain, value))
    return printable(str(value))


def size(count: int | None) -> str:
    """Format a number of bytes in binary units.

    >>> size(900), size(325_000), size(None)
    ('900 bytes', '317 KiB', '–')
    """
    if count is None:
        return UNKNOWN
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            scaled = count / 1024**power
            return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:.0f} {unit}"
    return f"{count} bytes"


def _macs(count: int | None) -> str:
    return UNKNOWN if count is None else short_count(count)


def _teacher(results: Results) -> str:
    found = results.records.get(_TEACHER)
    name = found.get("name") if isinstance(found, Mapping) else None
    arch = results.config.get("arch", results.config.get("teacher"))
    pairs = _different(run.pair for run in results.runs)
    known = [_text(part) for part in (name, arch) if part]
    return ", ".join(known) or ", ".join(pairs)


def _data(runs: Sequence[ResultRow], records: Records) -> str:
    name = ", ".join(_different(run.data for run in runs))
    parts = [name]
    if records.classes:
        parts.append(f"{len(records.classes)} classes")
    if records.shape:
        parts.append(f"{' x '.join(map(str, records.shape))} values per image")
    counts = [f"{count:,} {_SPLITS[split]}" for split, count in records.sizes.items()]
    return "; ".join([", ".join(parts), *([f"images: {', '.join(counts)}"] if counts else [])])


def _methods(runs: Sequence[ResultRow]) -> Iterator[tuple[str, str]]:
    for method in _different(run.method for run in runs):
        if method != "teacher":
            known = look_up(method)
            summary = f": {known.summary}" if known else ""
            yield "Method", f"{label_of(method)}{summary}"


def _defence(results: Results) -> str:
    """Describe the defence that cleaned a network, in one line; empty if there was none."""
    record = results.records.get("defence")
    if not isinstance(record, Mapping):
        return ""
    name, on, summary, source = (
        _text(record.get(key)) for key in ("name", "on", "summary", "source")
    )
    figures = [
        f"{percent(value)} % {when}"
        for when in ("before", "after")
        if isinstance(value := record.get(f"accuracy_{when}"), float) and 0 <= value <= 1
    ]
    told = f"; validation accuracy {', '.join(figures)}" if figures else ""
    return f"{name} on the {on}: {summary} ({source}){told}"


def _different(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _text(value: object) -> str:
    return "" if value is None else plain(value)
