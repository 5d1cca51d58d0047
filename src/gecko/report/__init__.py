"""The report of a run: one HTML file, and the table and the sentence that the terminal ends with."""

from gecko.report.page import History, write_report
from gecko.report.table import closing_rows, result_rows

__all__ = ["History", "closing_rows", "result_rows", "write_report"]
