"""When tests see the GPU. Imports no torch: the driver reads the environment when CUDA is first used."""

import re


def selects_gpu(expression: str) -> bool:
    """Whether a marker expression (``-m``) selects the tests marked gpu."""
    return re.search(r"\bgpu\b", expression.replace("not gpu", "")) is not None
