"""The documents of lm-eval's tasks as items in splits: what the search, the selection and the report may see.

In: tasks of lm-eval, and what `fitness.tasks` says of them. Out: a `Benchmark`: items by split, and behind each item
its document and the few-shot examples that stand before it. Documents come from one split of the data set, divided by
the hash of their content, or from three splits that are named, or called search, select and report. The split on which
lm-eval itself scores a task of a hub is public: it may be reported on, but not searched or selected on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.common.exits import contained
from evomerge.common.names import nearest
from evomerge.fitness.items import SPLITS, Item, canonical, make_document_item, split_of
from evomerge.fitness.lm_eval.loading import is_public, undisturbed

SEED = 1234
"""Of few-shot examples: what `lm_eval.simple_evaluate` takes, so that prompts are the same."""
ELSEWHERE = {"dataset_path", "dataset_name", "dataset_kwargs", "metadata", "task", "task_alias", "tag"}
"""Settings of a task that do not decide how a document is scored; documents have names of their own."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A document, the task of lm-eval that it is of, its number there, and the few-shot examples before it."""

    task: Any
    doc: Any
    number: int
    examples: Sequence[Any]


@dataclass(frozen=True)
class Benchmark:
    """A task of a search: one or more of lm-eval's.

    Attributes:
        name: of the task.
        tasks: of lm-eval; several where it is a group or a tag.
        documents: by item id.
        items: by split.
        warnings: what the user should know.
    """

    name: str
    tasks: list[Any]
    documents: dict[str, Document]
    items: dict[str, list[Item]]
    warnings: list[str]


def read_benchmark(
    name: str, tasks: Sequence[Any], given: Mapping[str, Any], fewshot: int | None, public_test: bool
) -> Benchmark:
    """Read the documents of a benchmark.

    Args:
        name: of the benchmark.
        tasks: of lm-eval.
        given: its settings: `split`, or `splits` (search, select, report -> split of the data set).
        fewshot: examples before each document; None for what each task says.
        public_test: whether public test splits may be searched on.

    Raises:
        ConfigError: splits that are not there, a public test split, or few-shot examples that give answers away.
        SuiteError: documents cannot be read, or a split has none.
    """
    setting = f"fitness.tasks.{name}"
    documents: dict[str, Document] = {}
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    warnings: list[str] = []
    repeated = 0
    for position, task in enumerate(tasks):
        chosen, public = _choose_splits(task, given, setting, public_test)
        warnings += [public] if public else []
        warnings += _set_fewshot(task, fewshot)
        for dataset_split in dict.fromkeys(chosen.values()):
            docs = _docs(task, dataset_split, setting)
            found = [make_document_item(doc, task.config.task, _stratum(task, doc, position, tasks)) for doc in docs]
            mine = {item.id: _splits_of(item, dataset_split, chosen) for item in found}
            examples = _draw_examples(task, docs, found, mine, setting)
            for number, (item, doc) in enumerate(zip(found, docs, strict=True)):
                if item.id in documents:
                    repeated += 1
                    continue
                documents[item.id] = Document(task, doc, number, examples[number])
                for split in mine[item.id]:
                    items[split].append(item)
    if len(tasks) > 1:
        counts = Counter(document.task.config.task for document in documents.values())
        members = ", ".join(f"{member} ({count})" for member, count in counts.items())
        warnings.append(
            f"{setting} is a group of {len(tasks)} tasks, scored as one over all of their documents: {members}. For a "
            f"score of each, give each a line of its own under fitness.tasks"
        )
    if repeated:
        _log.warning("%s: %d documents are repeated; the first of each is kept", setting, repeated)
    if empty := [split for split in SPLITS if not items[split]]:
        raise SuiteError(
            f"{setting} gives no items for the split {empty[0]!r}: name a split with more documents "
            f"({setting}.split=...), or one for each: '{setting}.splits={{search: ..., select: ..., report: ...}}'."
        )
    return Benchmark(name, list(tasks), documents, items, list(dict.fromkeys(warnings)))


def digest_documents(task: Any) -> str:
    """Return a hash of all of a task that decides how its documents are scored, but for where its data lie."""
    about = {name: value for name, value in dataclasses.asdict(task.config).items() if name not in ELSEWHERE}
    pool = [canonical(doc) for doc in task.sampler.df] if task.config.num_fewshot else []
    text = json.dumps([about, pool], sort_keys=True, default=_source)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def example_digest(benchmark: Benchmark) -> str:
    """Return a hash of the few-shot examples before each document: one document more changes those of others."""
    examples = {name: [canonical(each) for each in held.examples] for name, held in benchmark.documents.items()}
    return hashlib.sha256(json.dumps(examples, sort_keys=True).encode()).hexdigest()[:16]


def _source(value: Any) -> str:
    """Return the source of a function of a task, or the name of whatever has none."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return getattr(value, "__qualname__", type(value).__qualname__)


def _choose_splits(
    task: Any, given: Mapping[str, Any], setting: str, public_test: bool
) -> tuple[dict[str, str], str | None]:
    """Return which split of the data set serves which split of the search; and a warning where one is public."""
    there, config = list(task.dataset), task.config
    scored = config.test_split or config.validation_split
    one: Any = given.get("split")
    three: Any = given.get("splits")
    if three is not None and (one is not None or not isinstance(three, Mapping) or set(three) != set(SPLITS)):
        raise ConfigError(
            f"{setting} needs one `split`, which is divided, or all three `splits`: write {setting}.split={there[0]} "
            f"or '{setting}.splits={{search: ..., select: ..., report: ...}}' with names out of {', '.join(there)}."
        )
    if three is None and one is None:
        if set(SPLITS) <= set(there):
            three = {split: split for split in SPLITS}
        elif is_public(task):
            one = (config.validation_split if config.test_split else None) or config.training_split or scored
        else:
            one = scored
    chosen: dict[str, str] = {split: str(one if three is None else three[split]) for split in SPLITS}
    if absent := [name for name in chosen.values() if name not in there]:
        near = nearest(absent[0], there, cutoff=0.0)
        raise ConfigError(f"{setting}: {config.task} has no split '{absent[0]}'. Did you mean '{near[0]}'?")
    if not is_public(task) or scored not in (chosen["search"], chosen["select"]):
        return chosen, None
    if not public_test:
        others = [name for name in there if name != scored]
        instead = f"{setting}.split={others[0]}" if others else "documents of your own"
        raise ConfigError(
            f"{setting} would choose coefficients by '{scored}', the split on which results of {config.task} are "
            f"published, so that its score would mean nothing: write {instead} (there is {', '.join(there)}), or "
            f"fitness.public_test=true, and the report will say so first."
        )
    return chosen, (
        f"coefficients were chosen by '{scored}' of {config.task}, the split on which its results are published: "
        f"scores on it are no results"
    )


def _set_fewshot(task: Any, fewshot: int | None) -> list[str]:
    """Set the number of examples as `simple_evaluate` does."""
    own = task.config.num_fewshot
    if fewshot is not None and fewshot != own and own == 0:
        return [
            f"{task.config.task} says num_fewshot: 0 itself, so fewshot={fewshot} has no effect on it, as in lm-eval"
        ]
    task.set_config(key="num_fewshot", value=(own or 0) if fewshot is None else fewshot)
    return []


def _docs(task: Any, split: str, setting: str) -> list[Any]:
    """Return the documents of a split of the data set, as the task processes them."""
    process = task.config.process_docs
    try:
        docs = task.dataset[split]
        return contained(lambda: list(docs if process is None else process(docs)))
    except Exception as error:  # whatever a function of the task may raise
        raise SuiteError(
            f"{setting}: the split '{split}' of {task.config.task} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _stratum(task: Any, doc: Any, position: int, tasks: Sequence[Any]) -> int:
    """Return what subsets of items are balanced over: the task in a group; else the position of the answer, if a
    document tells it without being rendered.
    """
    if len(tasks) > 1:
        return position
    target = task.config.doc_to_target
    value = doc.get(target) if isinstance(target, str) and isinstance(doc, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _splits_of(item: Item, dataset_split: str, chosen: Mapping[str, str]) -> list[str]:
    if len(set(chosen.values())) == 1:
        return [split_of(item.content)]
    return [split for split, name in chosen.items() if name == dataset_split]


def _draw_examples(
    task: Any, docs: Sequence[Any], found: Sequence[Item], mine: Mapping[str, Sequence[str]], setting: str
) -> list[Sequence[Any]]:
    """Draw the few-shot examples of every document, in order, as lm-eval does when it scores all of a split.

    lm-eval can put a document before itself, with its answer, when examples and documents come from the same split.
    """
    n = task.config.num_fewshot
    if not n:
        return [()] * len(docs)
    pool = {canonical(doc) for doc in task.sampler.df}
    if judged := [item for item in found if item.content in pool and set(mine[item.id]) - {"search"}]:
        raise ConfigError(
            f"{setting}: the few-shot examples of {task.config.task} are drawn from documents that select or report "
            f"items are made of ({len(judged)} of them), so prompts would hold their answers: write "
            f"{setting}.fewshot=0, name examples in its YAML (fewshot_split, or fewshot_config: {{samples: [...]}}), "
            f"or search on other splits."
        )
    within = task.fewshot_cfg.split == task.config.test_split or any(item.content in pool for item in found)
    try:
        with undisturbed():
            task.set_fewshot_seed(seed=SEED)
            return list(_drawn(task.sampler, n, docs, within))
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"{setting}: {task.config.task} has no {n} few-shot examples to draw ({error or type(error).__name__}): "
            f"write a smaller {setting}.fewshot."
        ) from error


def _drawn(sampler: Any, n: int, docs: Sequence[Any], within: bool) -> Iterator[Sequence[Any]]:
    for doc in docs:
        yield sampler.sample(n=n, eval_doc=doc if within else None)
