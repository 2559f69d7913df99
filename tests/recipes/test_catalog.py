from __future__ import annotations

from dataclasses import replace

import pytest

from evomerge.common.errors import ConfigError
from evomerge.merging.methods import DareTies, Linear, Ties
from evomerge.recipes import card
from evomerge.recipes.catalog import METHODS, TRANSFORMS, make_method
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runs.config import CONF
from evomerge.transforms.ties import TrimElect

ROWS = {"model": {"a": 0.5}}


def recipe(**method) -> Recipe:
    coefficients = {"weight": ROWS} if method["name"] == "linear" else {"weight": ROWS, "density": ROWS}
    return Recipe(Source("base", "0"), {"a": Source("a", "1")}, method, "model", coefficients)


def test_names_become_methods():
    assert isinstance(make_method(recipe(name="linear")), Linear)
    assert make_method(recipe(name="linear")).transform is None
    ties, dare = make_method(recipe(name="ties", normalize=True)), make_method(recipe(name="dare_ties", seed=7))
    assert isinstance(ties, Ties)
    assert ties.normalize is True
    assert isinstance(dare, DareTies)
    assert (dare.seed, dare.normalize) == (7, False)
    frozen = make_method(recipe(name="linear", transform={"name": "ties", "density": 0.3}))
    assert isinstance(frozen.transform, TrimElect)
    assert frozen.transform.density == 0.3


def test_every_method_of_a_search_is_here():
    found = [(CONF / "method" / file.name).read_text() for file in (CONF / "method").glob("*.yaml")]
    targets = {
        line.split(": ")[1].rpartition(".")[2] for text in found for line in text.splitlines() if "_target_" in line
    }
    assert targets == {cls.__name__ for cls in (*METHODS.values(), *TRANSFORMS.values())}
    assert METHODS.keys() == card.METHODS.keys() == card.TAGS.keys()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "tis"}, "recipe: Unknown method 'tis': did you mean 'ties'"),
        ({"name": "evomerge.merging.methods.Linear"}, "Unknown method"),
        (
            {"name": "ties", "normalise": True},
            "Unknown setting of the method ties 'normalise': did you mean 'normalize'",
        ),
        ({"name": "linear", "_target_": "os.system"}, "Unknown setting of the method linear '_target_'"),
        (
            {"name": "ties", "normalize": {"_target_": "os.getcwd"}},
            "normalize of the method ties is .*: write a number",
        ),
        ({"name": "dare_ties", "seed": "${oc.env:HOME}"}, "seed of the method dare_ties is .*: write a number"),
        ({"name": "dare_ties", "seed": 0.5}, "recipe: method.seed=0.5 is no int"),
        ({"name": "linear", "transform": "ties"}, "the method linear cannot have the transform 'ties'"),
        ({"name": "linear", "transform": {"name": "dare"}}, "Unknown transform 'dare'"),
        ({"name": "linear", "transform": {"density": 0.2}}, "Unknown transform 'None'"),
        ({"name": "linear", "transform": {"name": "ties", "density": 2}}, "recipe: method.transform.density=2"),
        ({"name": "ties", "transform": {"name": "ties"}}, "the method ties cannot have the transform"),
    ],
)
def test_what_is_refused(method, message):
    with pytest.raises(ConfigError, match=message):
        make_method(recipe(**method))


def test_coefficients_of_other_variables():
    with pytest.raises(
        ConfigError, match="it has coefficients of weight, and the method ties needs weight and density"
    ):
        make_method(replace(recipe(name="ties"), coefficients={"weight": ROWS}))
    with pytest.raises(ConfigError, match="coefficients of weight and density, and the method linear needs weight"):
        make_method(replace(recipe(name="linear"), coefficients={"weight": ROWS, "density": ROWS}))
