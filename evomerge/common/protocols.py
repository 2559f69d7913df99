"""What an object lacks that somebody else wrote, held against a protocol."""

from __future__ import annotations

import inspect


def lacking(thing: object, protocol: type) -> list[str]:
    """Return the members of a protocol itself, without those that it inherits, which an object does not have."""
    methods = [name for name, value in vars(protocol).items() if inspect.isfunction(value)]
    public = [name for name in methods if name == "__call__" or not name.startswith("_")]
    return [name for name in (*inspect.get_annotations(protocol), *public) if not hasattr(thing, name)]
