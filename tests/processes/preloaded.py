"""What the server of processes has done before it forks any: each of them finds it done."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pkgutil import walk_packages

from hydra._internal import core_plugins
from hydra.core.override_parser.overrides_parser import OverridesParser

import evomerge as package

gc.disable()  # nothing of this is garbage
# What a verb loads only when it needs it.
for _module in walk_packages(package.__path__, "evomerge."):
    if not _module.name.endswith(("__main__", "gpu_kernel")):  # the latter needs Triton
        import_module(_module.name)
LOADED = tuple(sys.modules)
"""All modules that are there once everything of the package is imported."""
# Models and tasks are imported, Hydra reads a line, transformers compiles a thousand expressions, and the report its
# templates: a fifth of a second of a small search. Hydra looks for plugins in each process, which may have others.
for _name in (
    *(_module.name for _module in walk_packages(core_plugins.__path__, "hydra._internal.core_plugins.")),
    *("tests.kit.models", "datasets", "lm_eval.tasks", "lm_eval.models.huggingface"),
):
    import_module(_name)
OverridesParser.create().parse_overrides(["experiment=smoke", "fitness.items=3", "fitness.tasks={mood: mood.jsonl}"])
import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("bert")
_pages = import_module("evomerge.report.page")._environment()
for _template in _pages.list_templates(["j2"]):
    _pages.get_template(_template)
gc.freeze()
gc.enable()
