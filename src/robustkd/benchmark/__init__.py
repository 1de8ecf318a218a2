"""Experiments with attacks and defences: protocols, the demo, and grids."""

from robustkd.benchmark.cells import Cell, Setting, TeacherCell
from robustkd.benchmark.demo import run_demo
from robustkd.benchmark.grid import load_grid
from robustkd.benchmark.protocol import PROTOCOLS, Protocol, protocol
from robustkd.benchmark.rehearsal import informed
from robustkd.benchmark.run_cell import run_cell
from robustkd.benchmark.runner import Counts, run_grid, write_tables

__all__ = [
    "PROTOCOLS",
    "Cell",
    "Counts",
    "Protocol",
    "Setting",
    "TeacherCell",
    "informed",
    "load_grid",
    "protocol",
    "run_cell",
    "run_demo",
    "run_grid",
    "write_tables",
]
