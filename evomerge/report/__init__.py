"""The report: one self-contained HTML page for a run, for several or for a comparison, and PNG files on request.

In: run directories, also of searches that still go on. Out: `report.html` and `report/*.png`. Numbers come from
`facts` and `grids`, warnings from `concerns`; `charts` and `bars` lay them out, and `page` writes them. Everything here
is derived: it can be deleted and made again.
"""

from evomerge.report.comparison import is_comparison
from evomerge.report.page import write_comparison, write_report, write_sweep

__all__ = ["is_comparison", "write_comparison", "write_report", "write_sweep"]
