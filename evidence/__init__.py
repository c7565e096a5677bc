"""All that proves the package: checks of the theory, the benchmark, the studies, the rivals, and their pages.

It works in a checkout only and is not installed.
"""
