"""One style for all figures of the documents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#2b5c9e", "#c05a12", "#2f7d4f", "#6a4c93"
INK, MUTED, LIGHT, RULE = "#1c2733", "#5d666f", "#9ca3af", "#d9dcdf"

_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
    "svg.hashsalt": "dropout-grpo",  # equal data give an equal file
}


def save(file: Path, draw: Callable[[], Figure]) -> None:
    """Draws a figure in the common style and writes it as SVG. Equal data give an equal file.

    Args:
        file: where to write; its folder is made.
        draw: makes the figure. It is called here so that the style holds for everything it draws.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
