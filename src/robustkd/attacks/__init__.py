"""Triggers, and the attacks that implant them: for research, and for nobody's defence to see.

No module of a defence imports this package, and none here imports a defence.
"""

from robustkd.attacks.additive import Additive
from robustkd.attacks.base import Attack, Backdoored, Teaching
from robustkd.attacks.files import TRIGGERS, load_trigger, save_trigger
from robustkd.attacks.poison import Poisoned
from robustkd.attacks.table import ATTACKS, find
from robustkd.attacks.triggers import SIG, BadNets, Blend, MaskedPattern, Trigger
from robustkd.attacks.warp import Warp

__all__ = [
    "ATTACKS",
    "SIG",
    "TRIGGERS",
    "Additive",
    "Attack",
    "Backdoored",
    "BadNets",
    "Blend",
    "MaskedPattern",
    "Poisoned",
    "Teaching",
    "Trigger",
    "Warp",
    "find",
    "load_trigger",
    "save_trigger",
]
