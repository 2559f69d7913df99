"""Trackers: a search shown elsewhere while it runs, written from its trial log."""
