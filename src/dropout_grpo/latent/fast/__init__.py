"""The same results in less time: shared prompts, static shapes, CUDA graphs."""
