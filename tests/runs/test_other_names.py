"""Names from papers and from mergekit that are others here: the message says what to write, and that exists."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from evomerge.cli.compare import _values
from evomerge.cli.settings import compose_settings
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.recipes.mergekit.methods import ABSENT, PEERS
from evomerge.runs.choices import load_choice
from evomerge.runs.contestants import find_contestants, read_compared
from evomerge.runs.other_names import GROUPS, OTHER, Other, _found, _names, _squeezed, written_here
from evomerge.runs.targets import choices_of

EXPERTS = ("a", "b", "c")


def test_what_is_to_be_written_exists() -> None:
    """All that the table and mergekit's own names lead to is a search that composes, or a contestant."""
    known = {_squeezed(name) for group in GROUPS for name in _names(group)}
    assert not known & set(OTHER)  # what exists is found by itself
    theirs = [peer.name for peer in PEERS if peer.name not in choices_of("method")]
    of_theirs = [found for name in theirs if (found := _found("method", name))]
    assert len(of_theirs) == len(theirs)
    for one in {*OTHER.values(), *of_theirs}:
        compose_settings(one.write.split())
        if one.compared:
            assert len(find_contestants(compared(yaml.safe_load(one.compared)), EXPERTS, 1)[0]) >= 1


def compared(*methods: Any) -> Any:
    return read_compared({"methods": list(methods)})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("dare_linear", "method=dare"),
        ("della_linear", "method=della method.elect=null"),
        ("task_arithmetic", "method=linear"),
        ("breadcrumbs_ties", "method=breadcrumbs method.elect=sum"),
        ("emr_merging", "transform=unified"),
        ("model_soup", "method=average"),
        ("Greedy-Soup", "searcher=greedy method=average start=1/K space=model"),
        ("swa", "start=swa"),
        ("MetaGPT", "start=metagpt"),
        ("lm_cocktail", "start=cocktail"),
        ("lines", "start=lines"),
        ("adamerging", "experiment=adamerging"),
        ("AdaMerging++", "experiment=adamerging_pp"),
        ("adarank", "experiment=adarank"),
        ("TSV-M", "transform=tsvm"),
        ("iso", "transform=iso_c"),
        ("pcb_merging", "transform=pcb"),
        ("kinship", "searcher=topk"),
        ("cma_es", "searcher=cmaes"),
        ("model_stock", "transform=model_stock"),
    ],
)
def test_a_name_that_is_another_here(name: str, write: str) -> None:
    assert written_here("method", name).endswith(f" {write}.")
    assert written_here("transform", name).endswith(f" {write}.") or name == "model_stock"


@pytest.mark.parametrize("name", ["fisher", "regmean", "twin_merging", "zipit"])
def test_what_is_not_built_says_why(name: str) -> None:
    assert "it is not built, since" in written_here("transform", name)


def test_the_message_comes_wherever_the_name_is_written() -> None:
    for given in ("method=dare_linear", "searcher=dare_linear", "transform=dare_linear"):
        with pytest.raises(EvomergeError, match=r"There is no \w+ 'dare_linear' here: write method=dare\."):
            compose_settings([given])
    with pytest.raises(ConfigError, match="write transform=tsvm"):
        load_choice("method", "tsv_m")
    with pytest.raises(ConfigError, match="evomerge has no method passthrough, which copies layers"):
        load_choice("method", "passthrough")
    assert written_here("fitness", "dare_linear") == written_here("method", "nobody") == ""
    assert "nearswap" in ABSENT


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("dare_linear", "'dare_linear' here: write method:dare"),
        ("breadcrumbs_ties", "write {method:breadcrumbs: {elect: sum}}"),
        ("metagpt", "write start:metagpt"),
        ("lines", "write start:lines"),
        ("greedy", "a comparison searches nothing. Write evomerge search searcher=greedy"),
        ("adamerging", "Write evomerge search experiment=adamerging"),
        ("fisher", "is given the models alone; .* Write transform:wudi"),
        ("start:0.3", r"write compare.constants=\[0.3\]"),
        ("start:lm_cocktail", "write start:cocktail"),
        ({"emr": {"a": 1}}, "write transform:unified|Write transform:unified"),
        ({"ties": {"normalize": True}}, r"is the transform, and normalize .* write {method:ties: {normalize: True}}"),
        (["trim", "method:ties"], "is a method and no step of a chain"),
        (["linear", "trim"], "linear is a method and no step of a chain"),
        ({"start:ema": {"decay": 0.9}}, "start:ema has neither settings nor steps"),
        ({"method:tsvm": {}}, "tsvm is a transform: write tsvm"),
    ],
)
def test_a_comparison_says_it_in_its_own_words(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compared(entry)


def test_methods_of_a_name_that_transforms_have_take_settings_of_their_own() -> None:
    """As they are typed: in Hydra's grammar a key ends at the first colon."""
    typed = "[{method:ties: {normalize: true}},{transform:ties: {density: 0.3}},[transform:trim,elect]]"
    own = find_contestants(read_compared(_values([f"compare.methods={typed}"])), EXPERTS, 1)[0]
    assert list(own) == ["linear", "method:ties(normalize=True)", "ties(density=0.3)", "trim+elect"]
    assert own["method:ties(normalize=True)"].method["normalize"] is True
    assert not own["method:ties(normalize=True)"].transform
    assert own["ties(density=0.3)"].transform[0]["density"] == 0.3
    assert Other("method=della method.elect=null").compared == "{method:della: {elect: null}}"
