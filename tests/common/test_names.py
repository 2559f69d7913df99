import pytest

from evomerge.common.errors import SpaceError
from evomerge.common.names import matching, nearest, unknown

KNOWN = ("constant", "random", "cmaes")


def test_the_nearest_names_come_best_first():
    assert nearest("cmaess", iter(KNOWN)) == ["cmaes"]
    assert nearest("randon", KNOWN, n=3) == ["random"]
    assert nearest("zzz", KNOWN) == []
    assert sorted(nearest("zzz", KNOWN, n=3, cutoff=0.0)) == sorted(KNOWN)
    assert nearest("x", ()) == []


def test_an_unknown_name_is_said_with_a_proposal_where_one_is_near():
    said = unknown("searcher", "cmaess", iter(KNOWN))
    assert said == "Unknown searcher 'cmaess': did you mean 'cmaes'? There are constant, random, cmaes."
    assert unknown("searcher", "zzz", KNOWN).startswith("Unknown searcher 'zzz'. There are ")


def test_a_pattern_matches_or_is_refused_with_the_nearest():
    assert matching("c*", KNOWN, "space.fixed") == ["constant", "cmaes"]
    with pytest.raises(SpaceError, match=r"space\.fixed: 'cmae' matches no entry .* nearest are cmaes"):
        matching("cmae", KNOWN, "space.fixed")
