"""A sweep whose members run in parallel, each in a process of its own, pinned to its slot of the machine."""
