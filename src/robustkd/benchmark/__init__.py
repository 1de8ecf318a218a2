"""Where attacks meet defences: measuring, the protocols, and the demo."""

from robustkd.benchmark.adaptive import informed
from robustkd.benchmark.demo import run_demo
from robustkd.benchmark.measure import Measured, measure
from robustkd.benchmark.protocol import PROTOCOLS, Protocol, protocol

__all__ = ["PROTOCOLS", "Measured", "Protocol", "informed", "measure", "protocol", "run_demo"]
