"""The model card of a merged model: README.md with the metadata that the hub reads.

In: a recipe and the directories of its sources. Out: a card by huggingface_hub's own classes: parents, relation, tags,
the licence if all parents state the same one; and what was merged, what it is worth, with which coefficients, and how
to build it again, for a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from evomerge.common.errors import SpaceError
from evomerge.common.names import mark_lines, marked
from evomerge.fitness.base import heading
from evomerge.models.adapter_files import is_adapter
from evomerge.models.cards import read_card
from evomerge.models.vocabulary import read_object
from evomerge.models.weight_files import ADAPTER
from evomerge.models.weights import listed
from evomerge.recipes.catalog import find_method, find_transforms
from evomerge.recipes.recipe import Recipe
from evomerge.space.groups import Group, make_groups

ROWS = 40
"""A table of coefficients that would be longer is drawn up for larger groups."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENCE = ("license", "license_name", "license_link")


def model_card(
    recipe: Recipe,
    base: Path,
    experts: Mapping[str, Path],
    parameters: Mapping[str, tuple[int, ...]],
    dtype: str | None = None,
    notes: Sequence[str] = (),
    family: Sequence[str] = (),
    kept: Sequence[str] = (),
    exact: bool = False,
) -> str:
    """Return the text of the card.

    Args:
        recipe: what was built.
        base: the directory of the base.
        experts: those of the experts by name.
        parameters: name -> shape of those that the recipe's groups are made of.
        dtype: to which the weights were cast, if not that in which they were scored.
        notes: sentences about what is not merged, or left out.
        family: what should be known of base and experts, as `family_notes` returns it.
        kept: what should be known of task vectors that were packed, as `kept_notes` returns it.
        exact: whether the experts were merged as they are, whatever was scored.
    """
    sources = {base: recipe.base, **{path: recipe.experts[name] for name, path in experts.items()}}
    hub = {path: source.hub.partition("@")[0] for path, source in sources.items() if source.hub}
    names = parent_names([base, *experts.values()]) | hub
    method = find_method(recipe)
    tag = method.mergekit or method.name
    data = ModelCardData(
        base_model=list(dict.fromkeys(names.values())),
        base_model_relation="merge",
        library_name="transformers",
        tags=["merge", "evomerge", tag.replace("_", "-")],
        **_licence([base, *experts.values()]),
    )
    title = f"Merge of {', '.join(map(_cell, experts))}"
    parts = [
        f"# {title if len(title) < 80 else f'Merge of {len(experts)} experts'}",
        f"{len(experts)} models that were fine-tuned from one base, merged into one by evomerge {recipe.version}. "
        f"Method: {method.title} ({method.paper}){_transforms(recipe)}; one coefficient for each "
        f"{'row' if recipe.rows else 'expert'} and each group of parameters (`{recipe.granularity}`).",
        _use(recipe, base),
        _parents(recipe, base, experts, names),
        *_listed("What should be known of these models", family),
        *_scores(recipe),
        *_front(recipe),
        *_kept(recipe),
        *_coefficients(recipe, parameters),
        *_listed("What is not merged", notes),
        *_listed("How the task vectors were kept", kept),
        _again(recipe, dtype, exact),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def parent_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return what the hub calls these models where that is known, else the names of their directories.

    A config or card says what a model was made from, seldom what it is called itself. So an id that any of them
    mentions is taken for the directory that has its name, and the hub's own cache says it by its path.
    """
    mentioned = {id.split("/")[1].lower(): id for path in paths for id in _mentioned(path)}
    names = {}
    for path in paths:
        whole = path.resolve()
        cached = next((part for part in whole.parts if part.startswith("models--")), None)
        names[path] = (
            cached.removeprefix("models--").replace("--", "/")
            if cached
            else mentioned.get(whole.name.lower(), whole.name)
        )
    return names


def _mentioned(path: Path) -> Iterator[str]:
    """Yield the ids of models on the hub that a model's config and card mention."""
    config, adapter, card = read_object(path / "config.json"), read_object(path / ADAPTER), read_card(path)
    parents, stated = card.get("base_model"), [config.get("_name_or_path"), adapter.get("base_model_name_or_path")]
    for id in [*stated, *(parents if isinstance(parents, list) else [parents])]:
        if isinstance(id, str) and HUB_ID.fullmatch(id):
            yield id


def _licence(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the licence, if all models state the same one."""
    stated = [{key: card[key] for key in LICENCE if card.get(key)} for card in map(read_card, paths)]
    return stated[0] if "license" in stated[0] and all(other == stated[0] for other in stated) else {}


def _transforms(recipe: Recipe) -> str:
    """Return what was done to the differences before the search, as the end of a sentence."""
    texts = []
    for step, kind in zip(recipe.transform, find_transforms(recipe), strict=True):
        settings = [f"{name} {value}" for name, value in step.items() if name not in ("name", "only")]
        where = f"of {', '.join(step['only'])}" if step.get("only") else "over the whole model"
        texts.append(f"{kind.title} ({'; '.join([where, *settings, kind.paper])})")
    return f", after {' and then '.join(texts)}" if texts else ""


def _use(recipe: Recipe, base: Path) -> str:
    images = (base / "preprocessor_config.json").is_file()
    text = (base / "tokenizer_config.json").is_file() or (base / "tokenizer.json").is_file()
    reader = "AutoProcessor" if images and text else "AutoImageProcessor" if images else "AutoTokenizer"
    variable = "tokenizer" if reader == "AutoTokenizer" else "processor"
    code = [
        f"from transformers import {recipe.auto_class}, {reader}",
        "",
        f'model = {recipe.auto_class}.from_pretrained("path/to/this/directory")',
        f'{variable} = {reader}.from_pretrained("path/to/this/directory")',
    ]
    heads = ""
    if recipe.heads:
        files = [f"`{path}`" for path in recipe.heads.values()]
        heads = f"\n\nHeads of the tasks are no part of the merge; they lie beside it: {listed(files)}."
    return "## How to use it\n\n```python\n" + "\n".join(code) + "\n```" + heads


def _parents(recipe: Recipe, base: Path, experts: Mapping[str, Path], names: Mapping[Path, str]) -> str:
    rows = [["base", names[base], recipe.base.sha256[:12]]]
    rows += [
        [expert, names[path] + " (an adapter)" * is_adapter(path), recipe.experts[expert].sha256[:12]]
        for expert, path in experts.items()
    ]
    return "## What was merged\n\n" + _table(["", "model", "hash of its weights"], rows, "---")


def _scores(recipe: Recipe) -> Iterator[str]:
    """Yield the tables of what the recipe says of scores; it may say nothing."""
    scores = recipe.scores
    rows = {name: row for name, row in scores.items() if isinstance(row, Mapping) and "mean" in row}
    if not rows:
        return
    rows |= {name: rows.pop(name) for name in list(rows) if name.startswith("winner")}  # below what it is held against
    marks = scores.get("marks") or {}
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row.get("tasks") or {}))
    table = [
        [
            marked(name, marks, name.replace("_", " ")),
            _with_error(row["mean"], row.get("se")),
            *(_number((row.get("tasks") or {}).get(task)) for task in tasks),
        ]
        for name, row in rows.items()
    ]
    how = [f"{what}: {scores[what]}" for what in ("metric", "split", "items", "trials", "kernels") if what in scores]
    if recipe.compute:
        how.append(f"weights rounded to {recipe.dtype}, scored in {recipe.compute}")
    columns = ["", "mean ± standard error", *(heading(task, scores.get("measures") or {}) for task in tasks)]
    text = f"## Scores\n\n{'; '.join(how)}; higher is better.\n\n" + _table(columns, table)
    if models := (scores.get("forgetting") or {}).get("models"):
        keeps = models["winner"]["kept"]
        text += f"\n\nThe winner keeps {_number(keeps)} of the base's score on the other tasks, as a share."
    for line in mark_lines(marks, {name: name.replace("_", " ") for name in rows}):
        text += f"\n\n\\{line}"
    for name, row in scores.items():
        if isinstance(row, Mapping) and row.get("diff") is not None:
            one, _, other = name.replace("_", " ").partition(" vs ")
            text += f"\n\n{one} − {other}: {_with_error(row['diff'], row.get('se'), '+')} (paired)"
    yield text


def _front(recipe: Recipe) -> Iterator[str]:
    """Yield what a model is worth that is a point of the front of a search with several values."""
    front = recipe.scores.get("front")
    if not front:
        return
    point, of = front["point"], f"{front['point']} of {front['of']}"
    how = f"the winner, by {front['rule']}" if point == front["winner"] else f"not the winner, {front['winner']}"
    models = [name for name in ("base", "experts", "best_constant") if any(name in v for v in front["values"].values())]
    rows = [
        [
            f"{name} ({value['metric']}, {value['better']} is better)",
            _with_error(value["mean"], value["se"]),
            *(_number((value.get(model) or {}).get("mean")) for model in models),
            _with_error(value["point_vs_best_constant"]["diff"], value["point_vs_best_constant"]["se"], "+"),
        ]
        for name, value in front["values"].items()
    ]
    titles = [name.replace("_", " ") for name in models]
    columns = ["value", "this model ± standard error", *titles, "minus best constant (paired)"]
    text = f"## Its place on the front\n\nThis model is {of} of a front of models, {how}. Each was scored once on "
    text += f"{recipe.scores['items']} report items.\n\n{_table(columns, rows)}"
    for split, lacks in (front.get("violations") or {}).items():
        if missed := [name for name, lack in lacks.items() if lack is not None and lack > 0]:
            limits = ", ".join(f"{name} {front['constraints'][name]}" for name in missed)
            text += f"\n\nIt violates constraints on the {split} items: {limits}."
    yield text


def _kept(recipe: Recipe) -> Iterator[str]:
    """Yield what a model had to keep by standard errors; what it violates is said of scores and of the front."""
    of_front, of_one = recipe.scores.get("front") or {}, recipe.scores.get("limits") or {}
    wanted, sure = of_front.get("constraints") or of_one.get("wanted"), of_front.get("sure") or of_one.get("sure")
    if not (wanted and sure):
        return
    limits = [f"{name} {text}" for name, text in wanted.items()]
    text = f"On the select items it had to hold {', '.join(limits)} by {sure:g} standard errors."
    if unsure := [f"{name} {wanted[name]}" for name in of_front.get("unsure") or ()]:
        text += f" There it holds {', '.join(unsure)}, but not by so many."
    yield text


def _coefficients(recipe: Recipe, parameters: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield a table for each variable, of the recipe's own groups or of larger ones."""
    names, own = recipe.row_names, recipe.groups(parameters)
    groups, where = own, ""
    if len(own) > ROWS:
        groups, where = _coarser(parameters)
        where = f"\n\nMeans over {where}; `recipe.yaml` has all {len(own)} groups."
    yield f"## Coefficients{where}"
    for variable, values in recipe.on_groups(groups, names, parameters).items():
        rows = [[group.name, *map(_number, row)] for group, row in zip(groups, values.tolist(), strict=True)]
        yield _table([variable, *names], rows)


def _coarser(parameters: Mapping[str, tuple[int, ...]]) -> tuple[tuple[Group, ...], str]:
    """Return the groups of a table that is short enough, and what they are."""
    for granularity in ("layer", "blocks:12"):
        try:
            groups = make_groups(granularity, parameters)
        except SpaceError:  # no blocks in the names, or fewer than twelve
            continue
        if len(groups) <= ROWS:
            return groups, f"`{granularity}`"
    return make_groups("model", parameters), "the whole model"


def _listed(title: str, notes: Sequence[str]) -> Iterator[str]:
    """Yield a section that lists sentences, if there are any."""
    if notes:
        yield f"## {title}\n\n" + "\n".join(f"- {' '.join(note.split())}" for note in notes)


def _again(recipe: Recipe, dtype: str | None, exact: bool) -> str:
    flags = [] if recipe.base.hub else ["--base path/to/base"]
    flags += [f"--expert {name}=path/to/{name}" for name, source in recipe.experts.items() if not source.hub]
    cast = [f"--dtype {dtype}"] if dtype else []
    command = " \\\n    ".join(["evomerge merge recipe.yaml merged/", *cast, *(["--exact"] if exact else []), *flags])
    return (
        f"## How to build it again\n\n```bash\n{command}\n```\n\n`recipe.yaml` has every coefficient, and the hashes "
        f"of the weights that they belong to."
        + (" The flags say where those are, if not where the recipe says." if flags else "")
        + (" What came from the hub is found there." if len(flags) <= len(recipe.experts) else "")
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], others: str = "---:") -> str:
    """Return a table in Markdown; the first column is text, the others are numbers, if not said otherwise."""
    lines = [columns, ["---", *[others] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else ""


def _with_error(value: Any, error: Any, sign: str = "") -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value:{sign}.4f} ± {error:.4f}" if isinstance(error, int | float) else f"{value:{sign}.4f}"
