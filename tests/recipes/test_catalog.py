from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge.common.errors import ConfigError
from evomerge.merging.methods import DareTies, Della, Linear, Ties
from evomerge.recipes.catalog import METHODS, TRANSFORMS, make_chain, make_method
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runs.config import CONF
from evomerge.transforms.ties import TrimElect

ROWS = {"model": {"a": 0.5}}


PARAMETERS = ("w", "bias")
FOREIGN = "tests.kit.transforms."
CHOSEN = {"only": ["w*"], "rest": "average"}


def recipe(name: str = "linear", transform: Any = (), rows: Any = (), **settings: Any) -> Recipe:
    coefficients = {"weight": ROWS} if name == "linear" else {"weight": ROWS, "density": ROWS}
    made_of = Source("base", "0"), {"a": Source("a", "1")}, {"name": name, **settings}, "model", coefficients
    return Recipe(*made_of, transform=list(transform), rows=list(rows))


def test_names_become_methods():
    assert isinstance(make_method(recipe(name="linear")), Linear)
    ties, dare = make_method(recipe(name="ties", normalize=True)), make_method(recipe(name="dare_ties", seed=7))
    assert isinstance(ties, Ties)
    assert ties.normalize is True
    assert isinstance(dare, DareTies)
    assert (dare.seed, dare.normalize) == (7, False)
    summed = make_method(recipe(name="della", elect=None, epsilon=0.1))
    assert isinstance(summed, Della)
    assert (summed.elect, summed.epsilon) == (None, 0.1)


def test_names_become_transforms():
    assert make_chain(recipe(), PARAMETERS) == ()
    (first, second) = make_chain(
        recipe(transform=[{"name": "ties", "density": 0.3}, {"name": FOREIGN + "Scale", "by": 3, **CHOSEN}]),
        PARAMETERS,
    )
    assert isinstance(first.transform, TrimElect)
    assert (first.transform.density, first.only) == (0.3, ())
    assert second.about() == {"name": FOREIGN + "Scale", "by": 3, **CHOSEN}
    with pytest.raises(ConfigError, match="coefficients of the rows a, and its transforms make all: correct `rows`"):
        make_chain(recipe(transform=[{"name": FOREIGN + "Sum"}]), PARAMETERS)


def test_every_method_of_a_search_is_here():
    found = [file.read_text() for group in ("method", "transform") for file in (CONF / group).glob("*.yaml")]
    targets = {
        line.split(": ")[1].rpartition(".")[2] for text in found for line in text.splitlines() if "_target_" in line
    }
    assert targets == {cls.__name__ for cls in (*METHODS.values(), *TRANSFORMS.values())}


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
        ({"name": "dare_ties", "seed": "${oc.env:HOME}"}, r"method.seed=\$\{oc.env:HOME\} is no int"),
        ({"name": "dare_ties", "seed": 0.5}, "recipe: method.seed=0.5 is no int"),
        ({"name": "ties", "elect": "none"}, r"recipe: method.elect=none is not known: write one of sum, count\."),
        ({"name": "breadcrumbs", "gamma": 1}, "recipe: method.gamma=1 is no share: write a number from 0, below 1"),
        ({"name": "nuslerp"}, r"recipe: The method nuslerp merges 2 experts, and there is 1 \(a\): name 2"),
        ({"name": "os.path"}, "recipe: os.path is no method"),
        ({"name": "os.system"}, "recipe: os.system is no method"),
        ({"name": "no_such_package.Method"}, "cannot be imported .*: install the package"),
    ],
)
def test_what_is_refused(method, message):
    with pytest.raises(ConfigError, match=message):
        make_method(recipe(**method))


@pytest.mark.parametrize(
    ("method", "step", "message"),
    [
        ("linear", {"name": "dear"}, "recipe: Unknown transform 'dear'"),
        ("linear", {"name": "ties", "density": 2}, "recipe: The transform ties has density=2"),
        ("linear", {"name": "ties", "densty": 0.2}, "recipe: Unknown setting of the transform ties 'densty': did you"),
        ("linear", {"name": "ties", "density": [1]}, r"recipe: density of the transform ties is \[1\]: write a number"),
        ("linear", {"name": "ties", "only": "w"}, r'recipe: transform.ties.only=w: write a list.*\["\*.attention'),
        ("linear", {"name": "ties", "only": ["v"]}, "for the parameters 'v', and there are none.*The nearest are w"),
        ("linear", {"name": "ties", "only": ["w"], "rest": "mean"}, "ties.rest=mean: write keep or average or base"),
        (
            "linear",
            {"name": "ties", "rest": "average"},
            "rest=average is of the parameters that `only` leaves out, and",
        ),
        ("linear", {"name": "os.system", "command": 1}, "is no transform: derive the class from"),
        (
            "linear",
            {"name": FOREIGN + "Learned"},
            "needs labels, and evomerge gives a transform the task vectors alone",
        ),
        ("ties", {"name": "ties"}, "The method ties cannot have the transform ties: a transform makes rows"),
    ],
)
def test_what_is_refused_of_transforms(method, step, message):
    with pytest.raises(ConfigError, match=message):
        make_chain(recipe(method, transform=[step]), PARAMETERS)


def test_transforms_that_are_none():
    with pytest.raises(ConfigError, match="each of it needs a name"):
        recipe(transform=["ties"])
    with pytest.raises(ConfigError, match="each of it needs a name"):
        recipe(transform=[{"density": 0.2}])
    with pytest.raises(ConfigError, match="rows must be names, each once"):
        recipe(rows=["a", "a"])


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_masks_that_came_from_another_generator(version):
    """Where nothing is dropped, there are none."""
    old = replace(recipe(name="dare_ties"), version=version)
    with pytest.raises(ConfigError, match=rf"evomerge {version} wrote it.*another generator.*'evomerge<0\.3'.*again"):
        make_method(old)
    whole = {"weight": ROWS, "density": {"model": {"a": 1.0}}}
    assert isinstance(make_method(replace(old, coefficients=whole)), DareTies)
    assert isinstance(make_method(replace(recipe(name="ties"), version=version)), Ties)


def test_coefficients_of_other_variables():
    with pytest.raises(
        ConfigError, match="it has coefficients of weight, and the method ties needs weight and density"
    ):
        make_method(replace(recipe(name="ties"), coefficients={"weight": ROWS}))
    with pytest.raises(ConfigError, match="coefficients of weight and density, and the method linear needs weight"):
        make_method(replace(recipe(name="linear"), coefficients={"weight": ROWS, "density": ROWS}))
