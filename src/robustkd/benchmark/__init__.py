"""Where attacks meet defences: measuring, the protocols, the demo, and the grid."""

from robustkd.benchmark.adaptive import informed
from robustkd.benchmark.bench import Counts, run_grid, write_tables
from robustkd.benchmark.cells import Cell, Setting, TeacherCell, run_cell
from robustkd.benchmark.demo import run_demo
from robustkd.benchmark.grid import load_grid
from robustkd.benchmark.measure import Measured, measure
from robustkd.benchmark.protocol import PROTOCOLS, Protocol, protocol

__all__ = [
    "PROTOCOLS",
    "Cell",
    "Counts",
    "Measured",
    "Protocol",
    "Setting",
    "TeacherCell",
    "informed",
    "load_grid",
    "measure",
    "protocol",
    "run_cell",
    "run_demo",
    "run_grid",
    "write_tables",
]
