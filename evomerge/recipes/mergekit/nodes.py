"""YAML with line numbers: plain data in which every value knows where it stands.

In: text. Out: a `Node`. Messages about a file of somebody else's name its lines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest


@dataclass(frozen=True)
class Node:
    """A value of a YAML file.

    Attributes:
        value: a scalar, a list of nodes, or a mapping of texts to nodes.
        line: where it stands, from 1; of a mapping's value, the line of its key.
    """

    value: Any
    line: int

    @property
    def items(self) -> Mapping[str, Node]:
        """The entries of a mapping.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"there must be a mapping, not {self.plain()!r}")
        return self.value

    @property
    def list(self) -> list[Node]:
        """The entries of a list.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(self.value, list):
            raise self.error(f"there must be a list, not {self.plain()!r}")
        return self.value

    def text(self) -> str:
        """The text of a scalar.

        Raises:
            ConfigError: it is no scalar.
        """
        if isinstance(self.value, dict | list) or self.value is None:
            raise self.error(f"there must be a word, not {self.plain()!r}")
        return str(self.value)

    def get(self, key: str) -> Node | None:
        """The entry of a mapping; None where there is none, or null."""
        found = self.items.get(key)
        return None if found is None or found.value is None else found

    def plain(self) -> Any:
        """The value without line numbers."""
        if isinstance(self.value, dict):
            return {key: one.plain() for key, one in self.value.items()}
        return [one.plain() for one in self.value] if isinstance(self.value, list) else self.value

    def error(self, what: str) -> ConfigError:
        """Return an error that names the line."""
        return ConfigError(f"line {self.line}: {what}.")


@dataclass(frozen=True)
class Notes:
    """What should be known of a file, with the lines that it is about.

    Attributes:
        said: the sentences.
    """

    said: list[str] = field(default_factory=list)

    def add(self, node: Node | None, what: str) -> None:
        """Add a sentence once."""
        text = f"line {node.line}: {what}" if node else what
        if text not in self.said:
            self.said.append(text)

    def unread(self, node: Node, known: Collection[str], where: str) -> None:
        """Name the keys of a mapping that mergekit does not read either."""
        for key, value in node.items.items():
            if key not in known:
                near = "".join(f"; is {one} meant?" for one in nearest(key, known))
                self.add(value, f"{key} is no key of {where}, and is not read{near}")


def read_nodes(text: str) -> Node:
    """Return the nodes of a YAML text.

    Raises:
        ConfigError: it is no YAML, or a key stands twice in a mapping.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError("the file is empty.")
        return _node(loader, root, root.start_mark.line + 1)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, a list within itself
        raise ConfigError(f"this is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _node(loader: yaml.SafeLoader, node: yaml.Node, line: int) -> Node:
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(loader, each, each.start_mark.line + 1) for each in node.value], line)
    if not isinstance(node, yaml.MappingNode):
        return Node(loader.construct_object(node), line)
    loader.flatten_mapping(node)
    found: dict[str, Node] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        name = str(loader.construct_object(key))
        if name in found and found[name].line != at:
            raise ConfigError(f"line {at}: {name} stands there a second time; the first is in line {found[name].line}.")
        found[name] = _node(loader, value, at)
    return Node(found, line)
