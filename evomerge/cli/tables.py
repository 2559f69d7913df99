"""An inspection as tables for people: `document.document` in, text on standard output.

Columns that say nothing are left out. Depth goes downwards, from the input of the model to its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from evomerge.cli.progress import PIPE_WIDTH, Reporter
from evomerge.task_vectors.stores import FLOAT32, kept_as

SHORT = 8  # letters; where an expert has a longer name, numbers stand for all of them at the head of columns
ALIKE = {
    "class": "{}",
    "dtype": "{}",
    "on disk": "{} on disk",
    "files": "{} files",
    "tokens": "{} tokens",
    "embeddings": "embeddings {}",
    "chat template": "chat template",
    "image processor": "image processor",
    "licence": "licence {}",
}
"""What is said of that which is the same in all."""
ORDER = "from the input (above) to the output"


def show(found: Mapping[str, Any], reporter: Reporter) -> None:
    """Print everything on standard output, errors last.

    Args:
        found: as `document` returns it.
        reporter: prints the tables.
    """
    members = [("base", found["base"]), *found["experts"].items()]
    width = max(len(name) for name, _ in members)
    for name, member in members:
        print(f"{name:>{width}}  {member['path']}")
    _show_models(found, members, reporter)
    if found["compared"]:
        _show_task_vectors(found, reporter)
    if len(found["compared"]) > 1:
        _show_pairs(found, reporter)
    if found["compared"] and found["groups"]:
        _show_depth(found, reporter)
    first = [("try first", found["first"])] if found.get("first") else []
    for name, text in [*_needs(found["needs"]), *first, *(("warning", text) for text in found["warnings"])]:
        print(f"{name:>8}  {text}")
    for one in found["errors"]:
        print(f"{'error':>8}  {one['name']}: {one['error']}")


def _show_models(
    found: Mapping[str, Any], members: Sequence[tuple[str, Mapping[str, Any]]], reporter: Reporter
) -> None:
    """What is the same for all in a line, what differs in a table."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "class": lambda one: one["class"] or "?",
        "parameters": lambda one: count(one["elements"]),
        "dtype": lambda one: ", ".join(one["dtypes"]),
        "on disk": lambda one: size(one["bytes"]),
        "files": lambda one: str(one["files"]) if one["files"] > 1 else "",
        "tokens": _tokens,
        "embeddings": lambda one: {True: "tied", False: "not tied", None: ""}[one["tied"]],
        "chat template": lambda one: one["chat_template"] or "",
        "image processor": lambda one: one["image_processor"] or "",
        "missing": lambda one: "" if one is found["base"] else str(len(one.get("missing", ())) or ""),
        "extra": lambda one: str(len(one.get("extra", ())) or ""),
        "licence": lambda one: one["licence"] or "",
        "fits": lambda one: "yes" if one["fits"] else "no",
    }
    known = [member for _, member in members if "class" in member]  # the files of the others cannot be read
    values = {name: {cell(member) for member in known} for name, cell in columns.items()}
    alike = [ALIKE[name].format(*values[name]) for name in ALIKE if len(values[name]) == 1 and values[name] != {""}]
    differ = [name for name in columns if len(values[name]) > 1 or (name == "fits" and len(known) < len(members))]
    live = found["live"]
    print(
        f"Seen as {live['class']} ({live['auto_class']}), {count(live['elements'])} parameters in {live['tensors']} "
        f"tensors are merged. Alike in all: {', '.join(alike)}."
    )
    if not differ:
        return
    rows = []
    for name, member in members:
        cells = [columns[column](member) if member in known or column == "fits" else "" for column in differ]
        of_base = {"same": "yes"} if member is found["base"] else {}
        rows.append([name, *(of_base.get(text, text) for text in cells)])
    reporter.table("Models, where they differ", ["", *(name.replace(" ", "\n") for name in differ)], rows)


def _tokens(one: Mapping[str, Any]) -> str:
    """The size of the vocabulary, and what the base does not have so."""
    if one["tokens"] is None:
        return ""
    changes = {"+": one["added"], "−": one["lost"], "moved ": one["moved"]}
    return " ".join([f"{one['tokens']:,}", *(f"{sign}{len(tokens)}" for sign, tokens in changes.items() if tokens)])


def _show_task_vectors(found: Mapping[str, Any], reporter: Reporter) -> None:
    rows = []
    for name, label in zip(found["compared"], _labels(found), strict=True):
        vector = found["experts"][name]["task_vector"]
        most = vector["most_changed"]
        rows.append(
            [
                label,
                number(vector["norm"]),
                percent(vector["ratio"]),
                percent(vector["changed"]),
                f"{vector['tensors_changed']} of {found['live']['tensors']}",
                *(["", ""] if most is None else [percent(vector["ratios"][most]), most]),
            ]
        )
    columns = ["", "‖τ‖", "‖τ‖/‖θ₀‖", "elements\nchanged", "tensors\nchanged", "‖τ‖/‖θ₀‖\nat most", "in the matrix"]
    if not _fits(columns, rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    reporter.table("Task vectors τ = θ − θ₀", columns, rows)


def _show_pairs(found: Mapping[str, Any], reporter: Reporter) -> None:
    """All pairs of experts if there is room for them, else what each has with the others."""
    labels, whole, everyone = _labels(found), found["whole"], range(len(found["compared"]))
    cosines, opposite = np.array(whole["cosines"]), np.array(whole["opposite_of_largest"]["pairs"])
    some = found["density"] < 1
    among = f"among the largest {_share(found)} of both" if some else "that both have changed"
    title = f"Pairs of experts: cosines, and opposite signs of elements {among}"
    rows = [
        [label, *("" if j == k else cosine(cosines[j, k]) if j < k else percent(opposite[j, k]) for k in everyone)]
        for j, label in enumerate(labels)
    ]
    if _fits(columns := ["", *_heads(found)], rows):
        reporter.table(f"{title} (below the diagonal)", columns, rows)
    else:
        rows = []
        for j, label in enumerate(labels):
            others = [k for k in everyone if k != j and math.isfinite(cosines[j, k])]
            near = max(others, key=lambda k: cosines[j, k], default=None)
            closest = ["", ""] if near is None else [cosine(cosines[j, near]), _heads(found)[near]]
            rows.append([label, cosine(_mean(cosines[j, others])), *closest, percent(_mean(opposite[j, others]))])
        reporter.table(title, ["", "mean\ncosine", "highest\ncosine", "with", "opposite\nsigns"], rows)
    said = [
        f"{percent(one['elements'])} of {whose} (by chance {percent(one['chance'])})"
        for one, whose in (
            (whole["opposite"], "the elements that two or more experts have changed"),
            (whole["opposite_of_largest"], f"those that are among the largest {_share(found)} of two or more"),
        )
        if math.isfinite(one["elements"])
    ]
    if said:
        print(f"Both signs occur in {', and in '.join(said if some else said[:1])}.")


def show_kinship(found: Mapping[str, Any], reporter: Reporter) -> None:
    """Print how near experts are to each other: correlations, and distances below the diagonal."""
    labels, whole, everyone = _labels(found), found["whole"], range(len(found["compared"]))
    pearson, distances = np.array(whole["pearson"]), np.array(whole["distances"])
    rows = [
        [label, *("" if j == k else cosine(pearson[j, k]) if j < k else number(distances[j, k]) for k in everyone)]
        for j, label in enumerate(labels)
    ]
    title = "Kinship of experts: correlations of task vectors, and distances between them (below the diagonal)"
    reporter.table(title, ["", *_heads(found)], rows)


def _show_depth(found: Mapping[str, Any], reporter: Reporter) -> None:
    """How long the task vectors are in each layer, and how they lie to each other there."""
    groups = found["groups"]
    title, sides = f"‖τ‖/‖θ₀‖ in %, {ORDER}", [[group["name"], count(group["elements"])] for group in groups]
    rows = [[*side, *(percent(r, "") for r in group["ratios"])] for side, group in zip(sides, groups, strict=True)]
    if not _fits(columns := ["", "parameters", *_heads(found)], rows):
        columns = ["", "parameters", "least", "median", "most"]
        spans = [np.nanquantile(group["ratios"], (0, 0.5, 1)).tolist() for group in groups]
        rows = [[*side, *(percent(r, "") for r in span)] for side, span in zip(sides, spans, strict=True)]
    reporter.table(title, columns, rows)
    if len(found["compared"]) < 2:
        return
    rows = []
    for group in groups:
        cosines = np.array(group["cosines"])[np.triu_indices(len(found["compared"]), 1)]
        opposite = [percent(group[key]["together"]) for key in ("opposite", "opposite_of_largest")]
        highest = max(cosines[np.isfinite(cosines)], default=math.nan)
        rows.append([group["name"], cosine(_mean(cosines)), cosine(highest), *opposite])
    columns = ["", "mean\ncosine", "highest\ncosine", "opposite\nsigns", f"of the\nlargest {_share(found)}"]
    shown = slice(None if found["density"] < 1 else -1)
    title = f"Pairs of experts, {ORDER}; half of the signs are opposite by chance"
    reporter.table(title, columns[shown], [row[shown] for row in rows])


def _needs(needs: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if needs is None:
        return
    deltas, model = size(needs["task_vectors"]), needs["model"]
    cached, kept = needs["cache"], needs["task_vectors"] - needs["cache"]
    form = kept_as(needs["store"])
    forms = [f"{size(cached)} in {form}, with a cache of that size on disk"] * bool(cached or not kept)
    forms += [f"{size(kept)} of experts kept as they are"] * bool(kept)
    text = f"task vectors {deltas} ({'; '.join(forms)})"
    if needs["device"] == "cpu":
        yield "memory", f"model {size(model)}; {text}, memory-mapped"
    else:
        yield "memory", f"model and base {size(2 * model)}, {text} on {needs['device']}"
    for fit in needs["fits"]:
        yield "worker", f"of {fit['gpus']} GPU{'s' * (fit['gpus'] > 1)}, {fit['workers']} on the node: {fit['said']}"
    if form != FLOAT32:
        off = "nobody can say by how much" if needs["bound"] is None else f"by {needs['bound']:.2g} at most"
        yield "store", f"{form}: a parameter may be off from that of the merge of exact experts, {off}"
    text = f"about {duration(needs['merge'])} to build a candidate on {needs['device']}"
    if needs["score"] is None:
        text += "; how long it takes to score one is measured where there are tasks: fitness.tasks=... or a suite"
    else:
        asked = "1 candidate takes" if needs["budget"] == 1 else f"{needs['budget']} candidates take"
        text += (
            f" and {duration(needs['score'])} to score it on {needs['items']} items; {asked} about "
            f"{duration(needs['search'])}, choosing the winner {duration(needs['selection'])}"
        )
    yield "time", text


def _share(found: Mapping[str, Any]) -> str:
    return f"{100 * found['density']:g} %"


def _labels(found: Mapping[str, Any]) -> list[str]:
    names, heads = found["compared"], _heads(found)
    return names if heads == names else [f"{head} {name}" for head, name in zip(heads, names, strict=True)]


def _heads(found: Mapping[str, Any]) -> list[str]:
    names = found["compared"]
    return names if all(len(name) <= SHORT for name in names) else [str(k) for k in range(1, len(names) + 1)]


def _fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table has room on standard output without being folded."""
    console = Console()
    widths = [
        max(len(line) for cell in cells for line in cell.split("\n")) for cells in zip(columns, *rows, strict=True)
    ]
    return sum(width + 3 for width in widths) < (console.width if console.is_terminal else PIPE_WIDTH)


def _mean(values: np.ndarray) -> float:
    held = values[np.isfinite(values)]
    return float(held.mean()) if len(held) else math.nan


def number(value: float) -> str:
    """Three significant digits, the zeros at the end kept; nothing for NaN."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else ""


def percent(share: float, unit: str = " %") -> str:
    """A share in percent, as short as it can be read; nothing for NaN."""
    if not math.isfinite(share):
        return ""
    value = 100 * share
    if 0 < value < 0.01:
        return f"{value:.1g}{unit}"
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{unit}"


def cosine(value: float) -> str:
    """Three decimals; nothing for NaN."""
    return f"{value:.3f}" if math.isfinite(value) else ""


def count(elements: int) -> str:
    """22.6 M."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if elements >= 10**power:
            return f"{elements / 10**power:.1f} {unit}"
    return str(elements)


def size(amount: int) -> str:
    """Bytes as KiB, MiB or GiB."""
    power, unit = (30, "GiB") if amount >= 2**30 else (20, "MiB") if amount >= 2**20 else (10, "KiB")
    return f"{amount / 2**power:.1f} {unit}"


def duration(seconds: float) -> str:
    """In the unit in which it reads best."""
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
