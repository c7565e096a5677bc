"""Values of options that several sections have."""

from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]
"""Shape of the learning rate after warm-up."""

TrackerName = Literal["tensorboard", "wandb", "trackio"]
"""The names of the trackers in accelerate and on PyPI."""
