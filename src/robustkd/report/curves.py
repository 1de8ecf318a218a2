"""Training curves of the report, as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.report.figures import INK, inline_svg, own_settings
from robustkd.report.records import Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES = {
    "--line-1": "#1d1f24",
    "--line-2": "#0072b3",
    "--line-3": "#c24e00",
    "--line-4": "#00795a",
    "--line-5": "#a0468c",
    "--line-6": "#8a6d00",
}
"""Colours by CSS variable; the style sheet has lighter ones for dark pages."""
_DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
_WIDTH, _HEIGHT = 4.6, 3.3
_MOST_POINTS = 400
_MARKED = 30
_WIDE_RANGE = 20
_LONGEST_LABEL = 24
_PERCENT = ("acc", "validation")
_NO_LOSS = ("epoch", "lr")
_LABELS = {
    "loss": "total",
    "ce": "cross-entropy",
    "kd": "soft targets (kd)",
    "harden": "hardening",
    "acc": "training images",
    "validation": "validation images",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its title, unit, and description in one sentence; ``svg`` is inline SVG."""

    title: str
    unit: str
    text: str
    svg: str


@dataclass(frozen=True, slots=True)
class _Line:
    label: str
    values: Sequence[tuple[float, float]]


def charts(trainings: Sequence[Training]) -> Iterator[Chart]:
    """Charts of loss and accuracy over epochs.

    One training has a line per part of its loss; several have one line each.

    Args:
        trainings: The trainings; of many, the first six are shown.
    """
    if not trainings:
        return
    shown = trainings[: len(_SERIES)]
    one = shown[0] if len(trainings) == 1 else None
    if one is not None:
        names = list(dict.fromkeys(name for epoch in one.epochs for name in epoch))
        losses = [name for name in names if name not in (*_PERCENT, *_NO_LOSS)]
        losses.sort(key=lambda name: name != "loss")
        yield from _chart("Loss", "mean of each epoch", [_line(one, name) for name in losses], one)
        accuracies = [_line(one, name, 100.0) for name in reversed(_PERCENT) if name in names]
        yield from _chart("Accuracy", "%", accuracies, one)
        return
    for title, unit, name, scale in (
        ("Training loss", "mean of each epoch", "loss", 1.0),
        ("Validation accuracy", "%", "validation", 100.0),
    ):
        yield from _chart(title, unit, [_line(each, name, scale, each.label) for each in shown])


def _line(training: Training, name: str, scale: float = 1.0, label: str = "") -> _Line:
    points = [
        (epoch.get("epoch", place + 1.0), scale * epoch[name])
        for place, epoch in enumerate(training.epochs)
        if name in epoch
    ]
    # Few enough points for a small page; the last one is always among them.
    stride = -(-len(points) // _MOST_POINTS)
    return _Line(label or _LABELS.get(name, name), points[::-1][:: max(1, stride)][::-1])


def _chart(
    title: str, unit: str, lines: Sequence[_Line], training: Training | None = None
) -> Iterator[Chart]:
    """Yield the chart of some lines; nothing if they have no points."""
    lines = [line for line in lines if line.values][: len(_SERIES)]
    if not lines:
        return
    kept = training.kept if training is not None else None
    ends = (f"{line.label} {line.values[0][1]:.3g} to {line.values[-1][1]:.3g}" for line in lines)
    first, last = lines[0].values[0][0], lines[0].values[-1][0]
    text = f"{title} from epoch {first:.0f} to {last:.0f}: {'; '.join(ends)}"
    text += f". Kept: epoch {kept}." if kept is not None else "."
    yield Chart(title, unit, text, _drawn(lines, kept, text, logarithmic=unit != "%"))


def _drawn(lines: Sequence[_Line], kept: int | None, text: str, *, logarithmic: bool) -> str:
    # Imported here, after the module figures, which imports matplotlib safely.
    from matplotlib.figure import Figure

    values = [value for line in lines for _, value in line.values]
    with own_settings():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        for line, colour, dashes in zip(lines, _SERIES.values(), _DASHES, strict=False):
            axes.plot(
                *zip(*line.values, strict=True),
                color=colour,
                linestyle=dashes,
                linewidth=1.6,
                marker="o" if len(line.values) <= _MARKED else None,
                markersize=3,
                label=_shortened(line.label),
            )
        if kept is not None:
            axes.axvline(kept, color=INK, alpha=0.35, linewidth=1)
            place = (kept, 1.01)
            axes.text(*place, "kept", transform=axes.get_xaxis_transform(), ha="center", color=INK)
        if logarithmic and min(values) > 0 and max(values) > _WIDE_RANGE * min(values):
            axes.set_yscale("log")
            _plain_numbers(axes)
        _plain_axes(axes)
        legend = figure.legend(
            loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9
        )
        for label in legend.get_texts():
            label.set_parse_math(False)
        return inline_svg(figure, text, _colours())


def _plain_axes(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=INK)
    axes.tick_params(length=0, which="both", labelcolor=INK)
    axes.grid(color=INK, alpha=0.15, linewidth=0.7)
    axes.spines[:].set_visible(False)


def _plain_numbers(axes: Axes) -> None:
    """Label a logarithmic scale with numbers such as 0.5 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _colours() -> Mapping[str, str]:
    return {colour: f"var({name}, {colour})" for name, colour in _SERIES.items()}


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
