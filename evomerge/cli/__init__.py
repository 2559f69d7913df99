"""The command: its verbs, its settings, and what it shows on a terminal."""
