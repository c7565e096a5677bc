"""The studies whose results are recorded, one module per study."""
