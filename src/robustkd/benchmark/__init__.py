"""Where attacks meet defences: measuring, the protocols, and the demo."""

from robustkd.benchmark.demo import run_demo
from robustkd.benchmark.measure import Measured, measure
from robustkd.benchmark.protocol import PROTOCOLS, Protocol, protocol

__all__ = ["PROTOCOLS", "Measured", "Protocol", "measure", "protocol", "run_demo"]
