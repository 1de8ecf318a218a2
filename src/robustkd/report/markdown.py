"""The model card and the summary of a run, in Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.core.errors import printable
from robustkd.core.files import write_text
from robustkd.report import tables
from robustkd.report.pages import Content, load, out_folder

if TYPE_CHECKING:
    from jinja2 import Template

_MARKUP = re.compile(r"[<>`*|~$@\\]|(?<![^\W_])_|_(?![^\W_])")
"""Letters that can start markup, formulas or mentions; an underscore within a word cannot."""
_LINKS = (("](", "]&#40;"), ("][", "]&#91;"), ("]:", "]&#58;"), ("://", "&#58;//"))
_ADDRESS = ("www.", "www&#46;")
_DATA_SETS = 10
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Verbatim(str):
    """Text of our own that is written into Markdown as it is."""

    __slots__ = ()


def write_model_card(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``MODEL_CARD.md`` of a run, with the metadata that the Hugging Face Hub reads.

    Args:
        folder: The run folder.
        out: Folder of the file, which is created; None for the run folder.

    Returns:
        Path of the file.

    Raises:
        InputError: If a file of the folder is missing or damaged.
        WriteError: If the file cannot be written.
    """
    text = model_card(load(folder))
    path = out_folder(folder, out) / "MODEL_CARD.md"
    write_text(path, text)
    return path


def write_summary(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write ``summary.md`` of a run: the verdict and the tables, on less than a page.

    Args:
        folder: The run folder.
        out: Folder of the file, which is created; None for the run folder.

    Returns:
        Path of the file.

    Raises:
        InputError: If a file of the folder is missing or damaged.
        WriteError: If the file cannot be written.
    """
    text = summary(load(folder))
    path = out_folder(folder, out) / "summary.md"
    write_text(path, text)
    return path


def model_card(content: Content) -> str:
    """Return the text of the model card."""
    return _template("MODEL_CARD.md.j2").render(
        run=content,
        front=Verbatim(_front_matter(content)),
        command=Verbatim(content.command(private=True)),
        table=Verbatim(tables.markdown_table(content.rows)),
        words=tables,
    )


def summary(content: Content) -> str:
    """Return the text of the summary."""
    return _template("summary.md.j2").render(
        run=content, table=Verbatim(tables.markdown_table(content.rows)), words=tables
    )


def escaped(text: object) -> str:
    r"""Return a text as one line of Markdown without markup, links, HTML or mentions.

    >>> escaped("a_b *c* <i>"), escaped("[x](https://e.org)\n_y_")
    ('a_b &#42;c&#42; &#60;i&#62;', '[x]&#40;https&#58;//e.org)&#92;n_y&#95;')
    """
    if isinstance(text, Verbatim):
        return text
    line = printable(str(text)).replace("&", "&amp;")
    line = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)
    for link, entity in (*_LINKS, _ADDRESS):
        line = line.replace(link, entity)
    return line


def _front_matter(content: Content) -> str:
    """Return the metadata as YAML; the licence is left to the user."""
    import yaml

    # The names of folders and of our own data sets are not names on the Hub, which have a slash.
    names = dict.fromkeys(run.data for run in content.results.runs)
    known = list(filter(_ON_THE_HUB.fullmatch, names))
    metadata = {
        "library_name": "robustkd",
        "pipeline_tag": "image-classification",
        "license": "other",
        "tags": [
            "image-classification",
            "knowledge-distillation",
            *(["backdoor"] if content.kind == "attack" else ["backdoor-defense"]),
            "robustkd",
        ],
        **({"datasets": known[:_DATA_SETS]} if known else {}),
        "metrics": ["accuracy"],
    }
    text: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustkd.report"),
        autoescape=False,  # noqa: S701 - Markdown; `finalize` escapes every value
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
