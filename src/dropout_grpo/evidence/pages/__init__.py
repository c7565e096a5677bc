"""How documents get their numbers: marked blocks, one Markdown table, one style of figure."""
