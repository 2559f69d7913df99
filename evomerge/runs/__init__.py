"""From settings to a problem, and the run directory."""
