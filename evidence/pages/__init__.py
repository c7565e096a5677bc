"""Fills documents with results: marked blocks, Markdown tables, and figures in one style."""
