"""A matplotlib figure as inline SVG that follows the page: its colours are the page's CSS variables.

matplotlib writes fixed colours, but the page has two themes. So a figure is drawn in stand-in colours, which
are then replaced by `var(--...)`, and the browser resolves those for light or dark.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Stand-ins, unlike any colour that matplotlib would choose, and the variables of templates/style.css that replace them.
INK, MUTED, RULE = "#010203", "#010204", "#010205"
ARM_COLOURS = ("#020201", "#020202", "#020203", "#020204")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    **{colour: f"var(--arm-{i})" for i, colour in enumerate(ARM_COLOURS)},
}

STYLE: dict[Any, Any] = {
    "font.size": 12.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelpad": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "svg.hashsalt": "dropout-grpo",  # equal data give an equal file
}


def inline_svg(figure: Figure, *, label: str, name: str) -> str:
    """`figure` as an <svg> element without links or fixed size.

    `label` is read aloud in its place. `name`, unique on the page, prefixes every id: matplotlib numbers the
    ids of every figure in the same way.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),  # no metadata at all
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML prologue and the DTD have no place in HTML
    svg = re.sub(r' (?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", svg, count=5)
    svg = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
