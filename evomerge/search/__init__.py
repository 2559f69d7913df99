"""The loop, its log, and when it stops."""
