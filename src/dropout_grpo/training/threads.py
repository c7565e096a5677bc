"""How threads wait for each other: asleep, so that a busy machine slows a computation in proportion and no more.

A product on several threads ends when the last thread does. By default the threads of OpenMP wait in a loop for up to
milliseconds. If another process holds one core, a thread waits there for its turn while the other one fills its own
core with waiting, thousands of times a second. docs/performance.md has the figures.
"""

import os
import sys

_SPINS = "1000"  # about ten microseconds: the next product usually follows sooner on an idle machine
_SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": _SPINS, "KMP_BLOCKTIME": "0"}


def wait_asleep() -> bool:
    """Make the threads of OpenMP sleep while they wait, in this process and its children.

    Returns:
        False, with nothing changed, if the environment sets a policy or torch, which reads it once, is imported.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SETTINGS):
        return False
    os.environ.update(_SETTINGS)
    return True
