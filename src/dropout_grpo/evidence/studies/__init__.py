"""Runs of record: one module a study."""
