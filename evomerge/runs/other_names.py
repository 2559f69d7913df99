"""Names that people bring from papers, from mergekit and from talk, and what to write for them here.

In: a name that the settings do not know. Out: what to write in its place, in a message. Whatever exists is found by
its own name, however it is spelled (`TSV-M`, `ties_merging`) and wherever it belongs (`method=tsvm`), and mergekit's
methods in the table of these; the table here has the others alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from evomerge.recipes.mergekit.methods import ABSENT, PEERS
from evomerge.runs.targets import choices_of

GROUPS = ("method", "transform", "start", "searcher", "experiment")
COMPARED = ("method", "transform", "start")
"""Groups of settings that `compare.methods` has names of, as GROUP:NAME."""


@dataclass(frozen=True)
class Other:
    """What to write for a name.

    Attributes:
        write: settings of `evomerge search`.
        why: what else should be known, as the beginning of a sentence.
    """

    write: str
    why: str = ""

    @property
    def compared(self) -> str:
        """The same in `compare.methods`; nothing where it is no method, transform or start."""
        first, *own = self.write.split()
        group, _, name = first.partition("=")
        settings = ", ".join(each.partition(".")[2].replace("=", ": ") for each in own)
        entry = f"{group}:{name}" * (group in COMPARED)
        return f"{{{entry}: {{{settings}}}}}" if entry and settings else entry


_AVERAGE, _ARITHMETIC = Other("method=average"), Other("method=linear")
_KINSHIP, _EVOLUTION = Other("searcher=topk"), Other("searcher=cmaes")
_LEARNED = Other(
    "transform=wudi",
    "it is not built, since it needs the data of each task, and a transform is given the models alone; WUDI needs no "
    "more than these",
)
_EACH = Other(
    "transform=tsvm",
    "it is not built, since it makes another model of each task or input, and evomerge makes one; TSV-M does the most "
    "for one, in seconds",
)
_PERMUTED = Other(
    "method=linear",
    "it is not built, since it permutes models of different bases, and those of one base are aligned as they are",
)
OTHER = {
    **dict.fromkeys(("soup", "modelsoup", "uniformsoup", "mean", "simpleaverage", "weightaverage"), _AVERAGE),
    **dict.fromkeys(("taskvectors", "ta", "wiseft"), _ARITHMETIC),
    **dict.fromkeys(("kinship", "modelkinship"), _KINSHIP),
    **dict.fromkeys(("evolution", "evolutionary", "evo"), _EVOLUTION),
    **dict.fromkeys(("fisher", "regmean", "regmeanpp"), _LEARNED),
    **dict.fromkeys(("twin", "wemoe", "surgery"), _EACH),
    **dict.fromkeys(("zipit", "gitrebasin", "rebasin"), _PERMUTED),
    "greedysoup": Other("searcher=greedy method=average start=1/K space=model"),
    "rewardedsoups": Other("searcher=lines objective=pareto space=model"),
    "lmcocktail": Other("start=cocktail"),
    "emr": Other(
        "transform=unified", "the row that EMR shares is unified; its masks and scales make a model of each task"
    ),
    "iso": Other("transform=iso_c", "there are iso_c and iso_cts"),
    "tsv": Other("transform=tsvm"),
    "tallmasks": Other("transform=tall"),
    "core": Other("transform=core_space"),
    "magprune": Other("transform=della"),
}
"""By name, in small letters and digits alone."""


def written_here(kind: str, name: str, comparing: bool = False) -> str:
    """Return a message that says what to write for a name that does not exist; empty if nobody knows it.

    Args:
        kind: the group of settings, such as `method`.
        name: as it was written.
        comparing: whether it stands in `compare.methods`.
    """
    if kind not in GROUPS:
        return ""
    if absent := ABSENT.get(name):
        return f"evomerge has no {kind} {name}, which {absent}."
    if (found := _found(kind, name)) is None:
        return ""
    why = f"{found.why}. Write" if found.why else "write"
    if comparing and not found.compared:
        why, write = "a comparison searches nothing. Write", f"evomerge search {found.write}"
    else:
        write = found.compared if comparing else found.write
    return f"There is no {kind} {name!r} here: {why} {write}."


def _found(kind: str, name: str) -> Other | None:
    """Return what to write for a name; None if nobody knows it."""
    theirs = (peer for peer in PEERS if not peer.transform and peer.name not in choices_of("method"))
    if peer := next((peer for peer in theirs if peer.name == name.lower()), None):
        own = [f"method.{key}={'null' if value is None else value}" for key, value in peer.own.items()]
        return Other(" ".join([f"method={peer.method}", *own]))
    plain = _squeezed(name)
    for each in (plain, re.sub(r"(merging|merge)$", "", plain)):
        if each in OTHER:
            return OTHER[each]
        order = (kind, *(group for group in GROUPS if group != kind))
        if written := next((f"{g}={one}" for g in order for one in _names(g) if _squeezed(one) == each), None):
            return Other(written)
    return None


def _names(group: str) -> Iterator[str]:
    """Yield the names that a group of settings has."""
    if group == "start":
        from evomerge.runs.closed_forms import FORMS  # it loads torch, and a message may take its time

        yield from FORMS
    else:
        yield from (name for name in choices_of(group) if name != "none")


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))
