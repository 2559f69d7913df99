"""The report: one self-contained HTML page for a run or for several, and PNG files on request.

In: run directories, also of searches that still go on. Out: `report.html` and `report/*.png`. Numbers come from
`facts` and `grids`, warnings from `concerns`; `charts` and `bars` lay them out, and `page` writes them. Everything here
is derived: it can be deleted and made again.
"""

from evomerge.report.page import write_report, write_sweep

__all__ = ["write_report", "write_sweep"]
