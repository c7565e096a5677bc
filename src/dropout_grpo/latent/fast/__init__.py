"""The same results, sooner: shared prompts, static shapes, CUDA graphs."""
