"""Settings, the untyped tree of the command line, end in runs/: what lies below takes typed objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "evomerge"
KNOW_SETTINGS = ("runs", "cli", "api.py")


def below() -> Iterator[tuple[str, ast.Module]]:
    """The modules that must know no settings."""
    for file in sorted(ROOT.rglob("*.py")):
        name = file.relative_to(ROOT)
        if name.parts[0] not in KNOW_SETTINGS:
            yield name.as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def untyped(argument: ast.arg) -> bool:
    kind = ast.unparse(argument.annotation) if argument.annotation else ""
    return (
        (argument.arg == "settings" and kind.startswith(("Mapping", "dict")))
        or "Config]" in kind
        or "DictConfig" in kind
    )


def test_no_function_takes_settings() -> None:
    found = {
        (name, node.name)
        for name, module in below()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(map(untyped, [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]))
    }
    assert not found


def test_nothing_below_imports_hydra() -> None:
    for name, module in below():
        for node in ast.walk(module):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [one for one in names if one.partition(".")[0] in ("omegaconf", "hydra")], name
