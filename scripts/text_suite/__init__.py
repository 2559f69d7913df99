"""Parts of `build_suite.py`: tasks (what is trained how), build (the steps), packages, readers, splits, room, show."""
