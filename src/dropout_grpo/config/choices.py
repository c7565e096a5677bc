"""Values of options that several sections have."""

from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]
"""Shape of the learning rate after warm-up."""

ParamDtype = Literal["float32", "bfloat16"]
"""The dtype of the weights while they are trained, with torchtitan's name and values."""

TrackerName = Literal["tensorboard", "wandb", "trackio"]
"""The names of the trackers in accelerate and on PyPI."""
