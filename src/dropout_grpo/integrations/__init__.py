"""Backends for other people's tools. Each needs an optional extra and is imported by that tool alone."""
