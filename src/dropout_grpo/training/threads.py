"""Makes waiting threads sleep, so that on a busy machine a computation slows down only in proportion to the load.

A product on several threads ends when the last thread ends. By default the threads of OpenMP wait in a busy loop for up
to milliseconds. If another process uses one core, one thread waits for this core while the other one keeps its own core
busy with waiting, thousands of times per second. docs/performance.md has the measurements.
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
