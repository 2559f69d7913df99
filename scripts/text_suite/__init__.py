"""Parts of `scripts/build_suite.py`: packages (download), readers, tasks (what is trained how), splits, room (the table)."""
