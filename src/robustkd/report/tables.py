"""Tables of results, for a terminal of 80 columns and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from robustkd.report.aggregate import Cell, Row, Statistic, by_cell

UNKNOWN = "\u2013"
"""The en dash shown for a value that was not measured."""

_ENTITIES = (
    ("&", "&amp;"),
    ("\\", "&#92;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("|", "\\|"),
    # A link or an image needs a bracket after a bracket; an address is a link by itself.
    ("](", "]&#40;"),
    ("][", "]&#91;"),
    ("]:", "]&#58;"),
    ("://", "&#58;//"),
    ("www.", "www&#46;"),
)
_MARKUP = re.compile(r"[`*~$@]|(?<![^\W_])_|_(?![^\W_])")
"""Further letters that can start markup; an underscore within a word cannot."""
_FULL_NAMES = ("Data", "Pair", "Attack")


def console_table(rows: Sequence[Row]) -> Table:
    """Table for the terminal, with percentages as mean ± sample standard deviation over seeds.

    If every method has one seed, the ASR has its 95 % Wilson interval instead. The column ``n``
    with the number of seeds appears only if the numbers differ.
    """
    seeds = sorted({row.acc.n for row in rows})
    intervals = any(row.asr is not None and row.asr.interval for row in rows)
    cells = by_cell(rows)
    table = Table(
        title=Text(common_name(list(cells)), style="bold"),
        caption=Text(_caption(seeds, intervals=intervals)),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    numbers = ["ACC %", "ASR %", "RA %", *(["n"] if len(seeds) > 1 else []), "params", "sec"]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for cell, members in cells.items():
        if len(cells) > 1:
            table.add_section()
            table.add_row(Text(own_name(cell, list(cells)), style="bold"))
        for row in members:
            style = "bold" if row.ours else ""
            table.add_row(Text(row.words), *_numbers(row, seeds), style=style)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """Table in GitHub-flavoured Markdown, with every interval and every number of seeds."""
    cells = list(by_cell(rows))
    varying = _varying(cells)
    head = [_FULL_NAMES[i] for i in varying]
    head += ["Method", "ACC %", "ASR %", "RA %", "n", "Parameters", "Seconds"]
    lines = [head, ["---"] * (len(varying) + 1) + ["---:"] * 6]
    lines += [
        [
            *(markdown(row.cell[i]) for i in varying),
            markdown(row.words),
            *map(spread, row.shares),
            str(row.acc.n),
            f"{row.params:,}",
            seconds(row),
        ]
        for row in rows
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_legend(rows: Sequence[Row]) -> str:
    """Sentences that explain the numbers in :func:`markdown_table`."""
    values = [value for row in rows for value in row.shares if value is not None]
    words = ["n is the number of seeds."]
    if any(value.sd is not None for value in values):
        words.append("Percentages of several seeds are mean ± sample standard deviation.")
    if any(value.sd is None and value.interval is not None for value in values):
        words.append("Brackets hold 95 % intervals, which cover the sampling of the test images.")
    return " ".join(words)


def percent(share: float) -> str:
    """Format a fraction as a percentage with one decimal, without the percent sign.

    >>> percent(0.639)
    '63.9'
    """
    return f"{100 * share:.1f}"


def spread(value: Statistic | None, *, unit: bool = False) -> str:
    """Format a mean in per cent, with its standard deviation or its Wilson interval if known.

    Args:
        value: The statistic; None if it was not measured.
        unit: Whether to write the percent sign.

    >>> half = Statistic(0.5, sd=None, n=1, lowest=0.5, highest=0.5, interval=(0.404, 0.596))
    >>> spread(half), spread(half, unit=True)
    ('50.0 [40.4, 59.6]', '50.0 % [40.4, 59.6]')
    """
    if value is None:
        return UNKNOWN
    mean = f"{percent(value.mean)} %" if unit else percent(value.mean)
    if value.sd is not None:
        return f"{percent(value.mean)} ± {percent(value.sd)}{' %' if unit else ''}"
    if value.interval is not None:
        return f"{mean} [{', '.join(map(percent, value.interval))}]"
    return mean


def p_value(value: float | None) -> str:
    """Format a p-value.

    >>> p_value(0.25), p_value(0.0123), p_value(3e-12), p_value(None)
    ('0.25', '0.012', '< 0.0001', '–')
    """
    if value is None:
        return UNKNOWN
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def short_count(count: int) -> str:
    """Format a number of parameters in at most six characters.

    >>> short_count(938), short_count(77_850), short_count(5_870_000)
    ('938', '77.8 k', '5.9 M')
    """
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:.0f} {unit}"
    return str(count)


def seconds(row: Row) -> str:
    """Format the mean duration, with one decimal below ten seconds; zero means not measured."""
    mean = row.seconds.mean
    if mean == 0:
        return UNKNOWN
    return f"{mean:.1f}" if mean < 9.95 else f"{mean:.0f}"


def common_name(cells: Sequence[Cell]) -> str:
    """Name of what all ``cells`` have in common, e.g. data and pair of a grid over attacks."""
    return _join(cells[0][i] for i in range(3) if i not in _varying(cells)) if cells else ""


def own_name(cell: Cell, cells: Sequence[Cell]) -> str:
    """Name of what distinguishes ``cell`` from the other ``cells``."""
    return _join(cell[i] for i in _varying(cells))


def _varying(cells: Sequence[Cell]) -> list[int]:
    return [i for i in range(3) if len({cell[i] for cell in cells}) > 1]


def _join(names: Iterable[str]) -> str:
    return " · ".join(names)


def _numbers(row: Row, seeds: Sequence[int]) -> list[str]:
    # Three intervals, or one interval and two deviations, do not fit in 80 columns.
    single = max(seeds) == 1
    shares = [_narrow(value, interval=single and value is row.asr) for value in row.shares]
    count = [str(row.acc.n)] if len(seeds) > 1 else []
    return [*shares, *count, short_count(row.params), seconds(row)]


def _narrow(value: Statistic | None, *, interval: bool) -> str:
    if value is None or value.sd is not None or interval:
        return spread(value)
    return percent(value.mean)


def _caption(seeds: Sequence[int], *, intervals: bool) -> str:
    if not seeds:
        return "no runs"
    if seeds == [1]:
        return "one seed; in brackets the 95 % interval" if intervals else "one seed"
    if len(seeds) == 1:
        return f"mean ± standard deviation over n = {seeds[0]} seeds"
    return "mean ± standard deviation over n seeds"


def markdown(name: str) -> str:
    r"""Escape a text for one cell of a Markdown table, so that it has no markup, link or mention.

    >>> markdown("a_b *c* [x](y)"), markdown("_d_ @me")
    ('a_b &#42;c&#42; [x]&#40;y)', '&#95;d&#95; &#64;me')
    """
    for text, entity in _ENTITIES:
        name = name.replace(text, entity)
    name = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", name)
    return " ".join(name.split())
