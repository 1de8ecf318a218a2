"""Record a run in a Jupyter notebook: ``python -m tools.notebook``.

The images and the teacher are those of ``tools.journey``. The cells and the text that they show are
written to docs/results/notebook.md. Needs ``pip install nbclient ipykernel``.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.journey import make_images, make_teacher

PAGE = Path("docs/results/notebook.md")
CELLS = (
    'import robustkd\n\nfinished = robustkd.run("teacher", "images", "wrn-10-1", epochs=6)',
    "finished.results.runs[-1].acc, finished.folder",
    "student = robustkd.models.load(finished.folder / 'student.safetensors')\n"
    "images = robustkd.load_data('images')\n"
    "batch = next(iter(images.batches('test', batch_size=4)))\n"
    "[images.classes[k] for k in student(batch.images).argmax(1)], batch.labels",
)
_START = """\
# In a notebook

<!-- Written by `python -m tools.notebook`. Do not edit. -->

A run from Python, with the cells and the text that they show in a Jupyter notebook without
`ipywidgets`. With `ipywidgets`, a bar shows the progress within each epoch as well. Images and
teacher are those of [the journey in the terminal](journey.md).
"""


def executed(cells: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Run cells in a new kernel; yield each with the text that it shows.

    Raises:
        CellExecutionError: If a cell raises an error.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=600, resources=where).execute()
    for cell in book.cells:
        parts = [
            output.get("text") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        ]
        yield cell.source, "\n".join(part.rstrip() for part in parts if part.strip())


def main(words: Sequence[str] | None = None) -> None:
    """Make the files, run the notebook and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.notebook", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    page: Path = parser.parse_args(words).page
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        make_teacher(folder / "teacher", folder / "images")
        shown = list(executed(CELLS, folder))
    blocks = [f"\n```py\n{cell}\n```\n\n```text\n{text}\n```\n" for cell, text in shown]
    page.write_text(_START + re.sub(r"/\S*/site-packages/", "", "".join(blocks)))


if __name__ == "__main__":
    main()
