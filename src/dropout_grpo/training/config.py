"""Types of options that both trainers have. Like all config modules it does not import torch, so --help is fast."""

from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]
"""Shape of the learning rate after warm-up."""
