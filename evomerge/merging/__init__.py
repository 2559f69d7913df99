"""Methods, and the merger that builds a candidate in place."""
