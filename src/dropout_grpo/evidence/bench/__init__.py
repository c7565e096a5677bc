"""The benchmark: the engine beside the plain way, published code's way and chain of thought, in one run."""
