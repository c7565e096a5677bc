"""The report of a run: one HTML file that opens offline. It reads run folders and knows nothing else."""

from dropout_grpo.report.page import watch_report, write_comparison, write_report

__all__ = ["watch_report", "write_comparison", "write_report"]
