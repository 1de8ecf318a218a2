"""Charts and pictures of the report, as text to be embedded in the HTML page.

Charts are inline SVG that uses the font and the text colour of the page. Images are PNG data URIs
with one pixel per value. The same input gives the same text, byte for byte.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import cycle
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from robustkd.core.surroundings import elsewhere
from robustkd.report.aggregate import Row, Statistic, place
from robustkd.report.tables import UNKNOWN, percent, spread

# On import, matplotlib reads a file matplotlibrc from the working directory, and versions before
# 3.11 evaluate code in it. Such a file may come from an attacker, and charts need no settings.
with elsewhere() if os.path.lexists("matplotlibrc") else nullcontext():
    from matplotlib import colormaps, image, rc_context, rcdefaults, rcParams
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels: TypeAlias = Float[np.ndarray, "channels height width"]
Measure: TypeAlias = Literal["acc", "asr"]

_COLOURS = {"acc": "#0072b2", "asr": "#d55e00"}  # Okabe and Ito's blue and vermillion
INK = "#010203"
"""Placeholder of a colour, which is replaced by the text colour of the page."""
_HEAT = "magma"
_WIDTH, _BAR, _LEFT = 4.6, 0.34, 0.38  # Inches, inches, and a share of the width.
_LONGEST_LABEL = 22
# The colours of Okabe and Ito; the marker shapes serve readers who cannot tell colours apart.
_STYLES = (
    ("x", "#555555"),
    ("o", "#d55e00"),
    ("s", "#e69f00"),
    ("D", "#56b4e9"),
    ("^", "#0072b2"),
    ("v", "#009e73"),
    ("P", "#cc79a7"),
    ("*", "#000000"),
    ("<", "#f0e442"),
)


@contextmanager
def own_settings() -> Iterator[None]:
    """Context manager with matplotlib's defaults and settings for reproducible SVG files."""
    with rc_context():
        rcdefaults()
        rcParams.update({"svg.hashsalt": "robustkd", "svg.fonttype": "none"})
        yield


def bars(rows: Sequence[Row], measure: Measure) -> str:
    """Bar chart with one horizontal bar, error bar and number per method, as inline SVG.

    The error bar is the sample standard deviation over seeds or, for one seed, the Wilson
    interval. The scale is always 0 to 100 %.

    Args:
        rows: Methods of one setting, in display order.
        measure: ``acc`` or ``asr``.
    """
    with own_settings():
        figure = Figure(figsize=(_WIDTH, 0.42 + _BAR * len(rows)))
        # Fixed margins align the charts of one page.
        bottom = 0.32 / figure.get_figheight()
        axes = figure.add_axes((_LEFT, bottom, 0.89 - _LEFT, 1 - bottom - 0.02))
        for place, row in enumerate(rows):
            _bar(axes, place, row, measure)
        _bare(axes, [_shortened(row.words) for row in rows])
        return inline_svg(figure, _said(rows, measure))


def scatter(rows: Sequence[Row]) -> str:
    """Scatter plot of ACC against ASR with one point per method and setting, as an SVG file.

    The best methods are in the upper left corner: high accuracy and low attack success rate.
    """
    shown: dict[str, list[Row]] = {}
    for row in rows:
        if row.asr is not None and row.method != "teacher":
            shown.setdefault(row.method, []).append(row)
    with own_settings():
        # The legend is below the plot, so that a narrow screen shows both.
        lines = (len(shown) + 1) // 2
        figure = Figure(figsize=(4.8, 3.4 + 0.2 * lines), layout="constrained")
        axes = figure.add_subplot()
        others, ours = cycle(_STYLES), cycle(_STYLES[4:] + _STYLES[:4])
        for method in sorted(shown, key=place):
            members = shown[method]
            style = next(ours if members[0].ours else others)
            axes.errorbar(
                [100 * row.asr.mean for row in members if row.asr],
                [100 * row.acc.mean for row in members],
                xerr=[100 * (row.asr.sd or 0) for row in members if row.asr],
                fmt=style[0],
                color=style[1],
                elinewidth=0.6,
                alpha=0.85,
                label=members[0].words,
            )
        axes.set(xlabel="attack success rate (ASR) %", ylabel="accuracy (ACC) %", xlim=(-3, 103))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if shown:
            figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", facecolor="white", metadata=nothing)
    return buffer.getvalue().strip()


def picture(pixels: Pixels) -> str:
    """Image with values in [0, 1] as a data URI; drawn in grey unless it has three channels."""
    if len(pixels) == 3:
        return _png(np.moveaxis(pixels, 0, -1))
    grey = pixels.mean(axis=0)
    return _png(np.stack([grey] * 3, axis=-1))


def heat_map(values: Pixels, *, top: float) -> str:
    """Heat map of the mean over channels, black (0) to pale yellow (``top``), as a data URI."""
    scaled = np.clip(values.mean(axis=0) / top, 0, 1) if top > 0 else values.mean(axis=0) * 0
    return _png(colormaps[_HEAT](scaled)[..., :3])


def heat_scale() -> str:
    """Colour scale of `heat_map`, from 0 on the left to ``top`` on the right, as a data URI."""
    return heat_map(np.linspace(0, 1, 128)[None, None, :], top=1.0)


def _bar(axes: Axes, place: int, row: Row, measure: Measure) -> None:
    value = row.acc if measure == "acc" else row.asr
    shown = UNKNOWN
    if value is not None:
        shown = percent(value.mean)
        mean = 100 * value.mean
        strong = 1.0 if row.ours else 0.45
        axes.barh(place, mean, height=0.62, color=_COLOURS[measure], alpha=strong, linewidth=0)
        if (ends := _ends(value)) is not None:
            around = [[mean - 100 * ends[0]], [100 * ends[1] - mean]]
            axes.errorbar(mean, place, xerr=around, ecolor=INK, elinewidth=1, capsize=2.5)
    weight = "bold" if row.ours else "normal"
    label = axes.text(122, place, shown, ha="right", va="center", weight=weight, color=INK)
    label.set_parse_math(False)


def _ends(value: Statistic) -> tuple[float, float] | None:
    if value.sd is not None:
        return max(0.0, value.mean - value.sd), min(1.0, value.mean + value.sd)
    return value.interval


def _bare(axes: Axes, names: Sequence[str]) -> None:
    """Reduce the axes to names, a light grid, and a scale in per cent."""
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.45, -0.55), xticks=range(0, 101, 25))
    axes.set_yticks(range(len(names)), names, parse_math=False, color=INK)
    axes.tick_params(length=0, labelsize=10, labelcolor=INK)
    axes.tick_params(axis="y", pad=72 * _WIDTH * _LEFT)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"


def _said(rows: Sequence[Row], measure: Measure) -> str:
    """Return the content of a bar chart in words."""
    values = ((row.words, row.acc if measure == "acc" else row.asr) for row in rows)
    told = "; ".join(f"{name} {spread(value)}" for name, value in values)
    return f"{measure.upper()} in per cent: {told}."


def inline_svg(figure: Figure, text: str, colours: Mapping[str, str] | None = None) -> str:
    """Draw a figure as SVG for embedding: no prologue, fixed size or ids; the page's text colour.

    Call it within :func:`own_settings`.

    Args:
        figure: The figure.
        text: Description for people who cannot see the figure.
        colours: Replacements of colours, such as CSS variables.
    """
    # The ids of a figure are unique in a page of several figures.
    rcParams["svg.hashsalt"] = f"robustkd {text}"
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    own = {colour: f"var(--{name}, {colour})" for name, colour in _COLOURS.items()}
    for colour, variable in {**own, **(colours or {}), INK: "currentColor"}.items():
        svg = svg.replace(colour, variable)
    said = html.escape(text)
    return svg.replace("<svg", f'<svg role="img" aria-label="{said}"', 1).strip()


def _png(pixels: Float[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    whole = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image.imsave(buffer, whole, format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
