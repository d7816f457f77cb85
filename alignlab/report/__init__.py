"""One self-contained HTML page made of result files."""

from alignlab.report.page import write_report

__all__ = ["write_report"]
