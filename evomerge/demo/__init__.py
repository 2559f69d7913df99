"""The toy suite and its trainer."""
