"""Words that options of every trainer may be. As all config files: no torch, so that --help need not wait for it."""

from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]
"""Of the learning rate, after warm-up."""
