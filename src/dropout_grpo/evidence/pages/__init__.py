"""Documents whose tables and figures are made from result files."""
