"""The benchmark: the engine against three other ways of doing the same job, measured in one run."""
