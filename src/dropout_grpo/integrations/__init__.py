"""Backends for other tools. Each needs an optional extra and is imported only by its tool."""
