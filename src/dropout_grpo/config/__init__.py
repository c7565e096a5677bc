"""All options: the sections of a recipe, their ranges and needs, and the recipe file. Does not import torch."""
