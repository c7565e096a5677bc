"""Helpers of the tests: tiny models, oracles, stand-ins."""
