"""By which paths configurations and recipes name classes."""

from __future__ import annotations

from evomerge.common.code import called, target_of
from evomerge.merging.methods import METHODS
from evomerge.runs.choices import load_choice
from evomerge.runs.config import choices_of


def test_every_method_is_named_as_its_configuration_names_it() -> None:
    targets = {load_choice("method", name)["_target_"] for name in choices_of("method")}
    assert {target_of(method) for method in METHODS} == targets
    assert [called(method.name, method) for method in METHODS] == [method.name for method in METHODS]


def test_a_class_that_its_package_lacks_is_named_by_its_module() -> None:
    assert target_of(Inner) == f"{__name__}.Inner"


class Inner:
    """Lies in no package's namespace."""
