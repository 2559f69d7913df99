"""Task vectors that lie elsewhere: windows, held copies, and merges that are the same as without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.merging import methods
from evomerge.merging.builder import Builder
from evomerge.merging.merger import Merger
from evomerge.merging.streaming import streamed, windows
from evomerge.space.groups import make_groups
from evomerge.task_vectors.places import Placed
from tests.kit.exact import tiny, vectors_of
from tests.kit.forms import drawn
from tests.kit.tiny import state, weights


def sites(count: int) -> list[Any]:
    return [replace(drawn(3, torch.bfloat16), group=place) for place in range(count)]


def test_windows_hold_what_fits_and_at_least_one_site() -> None:
    five = sites(5)
    assert windows(five, 2 * five[0].nbytes) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert windows(five, 1) == [slice(place, place + 1) for place in range(5)]
    assert windows(five, 1 << 40) == [slice(0, 5)]
    assert windows([], 1) == []


def test_every_site_comes_once_and_in_order() -> None:
    five = sites(5)
    came = [site.group for _, some in streamed(five, windows(five, 2 * five[0].nbytes)) for site in some]
    assert came == [0, 1, 2, 3, 4]


def test_an_error_on_the_way_is_raised(monkeypatch) -> None:
    five = sites(5)
    monkeypatch.setattr("evomerge.merging.sites.Site.moved", lambda site: {}[site.group])
    with pytest.raises(KeyError):
        list(streamed(five, windows(five, 1)))


@pytest.mark.parametrize(
    "method",
    [methods.Linear(), methods.Ties(over="group"), methods.DareTies(normalize=True), methods.Della()],
    ids=lambda method: method.name,
)
def test_a_merge_in_windows_is_the_same(method: Any) -> None:
    rng = np.random.default_rng(0)
    given = {"weight": rng.uniform(0.1, 1, (4, 3)), "density": rng.uniform(0.2, 0.9, (4, 3))}
    given["weight"][2] = 0
    whole = [replace(site, live=site.live.clone()) for site in sites(4)]
    parts = [replace(site, live=site.live.clone()) for site in whole]
    Builder(whole, method).build(given)
    Builder(parts, method, window=2 * parts[0].nbytes).build(given)
    assert all(torch.equal(one.live, other.live) for one, other in zip(whole, parts, strict=True))
    assert torch.equal(parts[2].live, parts[2].base)


@pytest.mark.parametrize("place", ["host", "disk", "device"])
def test_a_merger_makes_the_same_of_them_wherever_they_lie(place: Any) -> None:
    found = []
    for placed in (None, Placed(place, 1, "")):
        model = tiny()
        vectors = vectors_of(model)
        groups = make_groups("layer", vectors.parameters)
        merger = Merger(model, vectors, groups, methods.Linear(), placed=placed)
        merger.apply(weights(len(groups), 0.3, 0.7, 1.1))
        found.append(state(model))
        merger.restore()
        assert all(torch.equal(value, vectors.base.tensor(name)) for name, value in state(model).items())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
