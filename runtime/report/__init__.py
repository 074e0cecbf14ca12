"""What a run shows."""

from runtime.report.report import RunReport, console_table, write_report

__all__ = ["RunReport", "console_table", "write_report"]
