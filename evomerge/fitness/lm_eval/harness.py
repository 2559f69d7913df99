"""Any task of lm-evaluation-harness (Gao et al. 2021) on the live model, at the price of its forward passes.

In: tasks of lm-eval by name or YAML. Out: for each item lm-eval's own metrics, `score` (that which its task is measured
by; `lm_eval_measures.py`), and `log_probability`, by which to search (`lm_eval_metrics.py`); of what is generated,
where somebody asks for it, `length`: the tokens of the answer up to where it was stopped. Tasks, documents and prompts
are made once; so are tokens and batches, when an item is scored for the first time. Scores are those of
`lm_eval.simple_evaluate` on all of a split, item by item, up to the order of floating-point sums; logits of half
precision are taken as float32.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import Answers, Requirements
from evomerge.fitness.items import Item, Task
from evomerge.fitness.likelihood import TokenBatch, can_share, log_probabilities, make_batches, score, token_logits
from evomerge.fitness.lm_eval.documents import Benchmark, digest_documents, example_digest, read_benchmark
from evomerge.fitness.lm_eval.loading import data_sets, load_tasks, local_names, undisturbed
from evomerge.fitness.lm_eval.measures import common_metrics, find_measure
from evomerge.fitness.lm_eval.metrics import SMOOTH, among_choices, by_document, evened, own_metrics
from evomerge.fitness.lm_eval.requests import Asker, Query, cap_answers

SCORE = "score"
"""The metric that a task is measured by, which may be another one for every task; `measures` tells which."""
LENGTH = "length"
"""The tokens of an answer that is generated."""


@dataclass(frozen=True)
class _Plan:
    """What a set of ids is asked: queries by task, the number of their requests, and these in batches."""

    key: Any
    queries: dict[str, list[Query]]
    requests: int
    batches: list[TokenBatch]


@dataclass
class PreparedTasks:
    """A tokenizer, the queries that were asked so far by task and id, and the plan of the ids that were asked last."""

    tokenizer: Any
    asker: Asker | None = None
    queries: dict[tuple[str, str], Query] = field(default_factory=dict)
    plan: _Plan | None = None


class LmEval:
    """Fitness by tasks of lm-eval.

    Args:
        batch_size: answers in a forward pass, or prompts that are generated from together.
        fewshot: examples before each document; None for what each task says. A task that says 0 keeps it.
        chat_template: apply the tokenizer's chat template.
        system: a system prompt, or None.
        public_test: allow to search on splits on which results are published.
        max_gen_toks: no answer is longer, in tokens, whatever its task asks for; None for what each task says.

    Raises:
        ConfigError: a batch size or a length below 1, or a negative number of examples.
    """

    pure = True
    requires = Requirements(language_head=True)
    same_classes = False
    task_settings = ("split", "splits", "fewshot", "metric", "include_path")

    def __init__(
        self,
        batch_size: int = 16,
        fewshot: int | None = None,
        chat_template: bool = False,
        system: str | None = None,
        public_test: bool = False,
        max_gen_toks: int | None = 256,
    ) -> None:
        if batch_size < 1 or (fewshot or 0) < 0:
            raise ConfigError(f"fitness.batch_size={batch_size} must be at least 1, and fitness.fewshot={fewshot} 0.")
        if max_gen_toks is not None and max_gen_toks < 1:
            raise ConfigError(f"fitness.max_gen_toks={max_gen_toks}: an answer has at least one token; null: no limit.")
        self.batch_size = batch_size
        self.metrics: tuple[str, ...] = (SMOOTH, SCORE)
        self.warnings: list[str] = []
        self.data_sets: dict[str, list[str]] = {}
        self._fewshot, self._chat, self._system, self._public_test = fewshot, chat_template, system, public_test
        self._longest = max_gen_toks
        self._benchmarks: dict[str, Benchmark] = {}
        self._score: dict[str, str] = {}
        self.offers: dict[str, tuple[str, ...]] = {}
        self._asked = frozenset[str]()  # of what is offered
        self._code = ""

    def read(
        self, tasks: Mapping[str, Task], further: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, list[Item]]]:
        """Load the tasks and return the items of each split by task.

        Args:
            tasks: their `items` are the names of tasks of lm-eval, or paths of YAMLs.
            further: `task_settings` by task.

        Raises:
            ConfigError: lm-eval is missing, or has no such task; a split or a metric is missing or not allowed.
            SuiteError: documents cannot be read.
        """
        about, shortened, taken = {}, [], []
        for name, task in tasks.items():
            given, setting = further.get(name, {}), f"fitness.tasks.{name}"
            include = given.get("include_path") or []
            include = [Path(str(path)) for path in ([include] if isinstance(include, str) else include)]
            loaded = load_tasks(str(task.items), include, setting)
            taken += local_names(str(task.items), loaded, setting)
            shortened += cap_answers(loaded, self._longest)
            fewshot = given.get("fewshot", self._fewshot)
            if fewshot is not None and (not isinstance(fewshot, int) or fewshot < 0):
                raise ConfigError(f"{setting}.fewshot is {fewshot}: write a number of examples, from 0.")
            self._benchmarks[name] = read_benchmark(name, loaded, given, fewshot, self._public_test)
            self.data_sets[name] = data_sets(loaded)
            self._score[name] = find_measure(self._benchmarks[name], given.get("metric"))
            about[name] = [self._score[name], [digest_documents(each) for each in loaded]]
            if any(held.examples for held in self._benchmarks[name].documents.values()):
                about[name].append(example_digest(self._benchmarks[name]))
        said = [text for benchmark in self._benchmarks.values() for text in benchmark.warnings]
        self.warnings = said + taken + shortened
        if len(set(self._score.values())) > 1:
            by = ", ".join(f"{name} {measure}" for name, measure in self._score.items())
            self.warnings.append(f"score is not the same in all tasks ({by}), so a mean over them has no unit")
        self.offers = {name: (LENGTH,) for name, benchmark in self._benchmarks.items() if _has_length(benchmark)}
        common = [common_metrics(benchmark.tasks) for benchmark in self._benchmarks.values()]
        self.metrics = (SMOOTH, SCORE, *(name for name in common[0] if all(name in names for names in common)))
        import lm_eval

        text = json.dumps([lm_eval.__version__, about], sort_keys=True)
        self._code = hashlib.sha256(text.encode()).hexdigest()[:16]
        return {
            split: {name: benchmark.items[split] for name, benchmark in self._benchmarks.items()}
            for split in ("search", "select", "report")
        }

    def identity(self) -> dict[str, Any]:
        """Return a hash of the tasks that were read: their documents, settings and examples, and lm-eval's version; and
        what of the offers is given.
        """
        return {"code": self._code, **({"asked": sorted(self._asked)} if self._asked else {})}

    def offering(self, names: Iterable[str]) -> LmEval:
        """Return the same fitness that gives what it offers under these names; see `Offering`."""
        other = copy.copy(self)
        other._asked = frozenset(names) & {name for each in self.offers.values() for name in each}
        everywhere = [name for name in sorted(other._asked) if all(name in self.offers.get(t, ()) for t in self._score)]
        other.metrics = (*self.metrics, *(name for name in everywhere if name not in self.metrics))
        return other

    def measures(self, metric: str) -> dict[str, str]:
        """Return what the numbers of a metric are, by task: of `score`, the metric that each is measured by."""
        return {name: measure if metric == SCORE else metric for name, measure in self._score.items()}

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]], labelled: bool = True) -> PreparedTasks:
        """Return what holds the queries of a split; they are made when the live model, which tells how long a text may
        be, is first asked.

        Args:
            processor: the tokenizer of the base.
            items: by task; their documents are known.
            labelled: makes no difference: what is asked is the same.

        Raises:
            ConfigError: the base has no tokenizer.
        """
        if not hasattr(processor, "bos_token_id"):
            raise ConfigError("fitness=lm_eval needs a base with a tokenizer, and this one takes images.")
        return PreparedTasks(processor)

    def check(self, model: Any, prepared: PreparedTasks, ids: Mapping[str, Sequence[str]]) -> None:
        """Build and tokenise what these items ask.

        Raises:
            SuiteError: documents cannot be asked; the message names the task, how many, and the first of them.
        """
        for task, chosen in ids.items():
            wrong: list[str] = []
            for item in chosen:
                try:
                    self._ask(model, prepared, {task: [item]})
                except SuiteError as error:
                    wrong.append(str(error).rstrip("."))
            if wrong:
                raise SuiteError(
                    f"{len(wrong)} of {len(chosen)} of the task {task} cannot be asked: {'; '.join(wrong[:3])}"
                    f"{' ...' if len(wrong) > 3 else ''}. Take them out of the data, or leave them out by process_docs "
                    f"in the task's YAML."
                )

    @torch.inference_mode()
    def __call__(self, model: Any, prepared: PreparedTasks, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Score the model: log-likelihoods of all tasks together, then what is generated."""
        plan = self._plan(model, prepared, ids)
        scores = score(model, plan.batches, plan.requests)
        seconds = scores.seconds
        generating = [q for queries in plan.queries.values() for q in queries if _kind(q) == "generate_until"]
        texts: list[str] = []
        if generating and prepared.asker:
            started = time.perf_counter()
            with undisturbed():
                texts = prepared.asker.generate(model, generating, self.batch_size)
            seconds += time.perf_counter() - started
        answers = dict(zip(map(id, generating), texts, strict=True))
        lengths = dict[int, int]()
        if LENGTH in self._asked and prepared.asker:
            lengths = {query: prepared.asker.length(text) for query, text in answers.items()}
        start, smooth = 0, {}
        for task, queries in plan.queries.items():
            for query in queries:
                totals = []
                for requests in query.requests:
                    span = slice(start, start := start + len(requests))
                    totals.append((float(scores.log_probability[span].sum()), bool(scores.greedy[span].all())))
                smooth[id(query)] = self._smooth(task, query, np.array([total for total, _ in totals]))
                _tell(query, totals if id(query) not in answers else [answers[id(query)]])
        results = {task: self._results(task, queries, smooth, lengths) for task, queries in plan.queries.items()}
        return Outcome({task: list(chosen) for task, chosen in ids.items()}, results, seconds)

    def logits(
        self, model: Any, prepared: PreparedTasks, ids: Mapping[str, Sequence[str]]
    ) -> Iterator[dict[str, Answers]]:
        """Yield what a gradient learns from, at most `batch_size` items of one task at a time.

        Of multiple choice, the log-likelihoods of the choices (n, C) as `log_probability` takes them, and which is
        right (the first that is): their cross-entropy is minus `log_probability`. Of other tasks, the logits (N, V) of
        every token of the reference, and the tokens: an item has as many rows, all of them together.
        """
        for task, chosen in ids.items():
            queries = self._ask(model, prepared, {task: chosen})[task]
            alike: dict[int, list[int]] = {}
            for position, query in enumerate(queries):
                alike.setdefault(len(query.choices), []).append(position)
            for positions in alike.values():
                for start in range(0, len(positions), self.batch_size):
                    part = positions[start : start + self.batch_size]
                    yield {task: self._answers(model, task, [queries[i] for i in part], part)}

    def _answers(self, model: Any, task: str, queries: Sequence[Query], positions: Sequence[int]) -> Answers:
        """Return what a gradient learns from some items that have equally many choices, or none."""
        choices = len(queries[0].choices)
        requests = [request for query in queries for group in query.requests[: choices or None] for request in group]
        batches = make_batches(requests, self.batch_size, model.device, can_share(model))
        if choices:
            logits = log_probabilities(model, batches, len(requests))[0].reshape(len(queries), choices)
            factors = torch.tensor(np.array([evened(query.choices, self._score[task]) for query in queries]))
            return Answers(list(positions), logits * factors, torch.tensor([query.gold[0] for query in queries]))
        owner = [i for i, query in zip(positions, queries, strict=True) for group in query.requests for _ in group]
        logits, tokens, owners = token_logits(model, batches)
        return Answers([owner[number] for number in owners.tolist()], logits, tokens.cpu())

    def _ask(self, model: Any, prepared: PreparedTasks, ids: Mapping[str, Sequence[str]]) -> dict[str, list[Query]]:
        """Return the queries of these ids, made when they are first asked for."""
        with undisturbed():
            if prepared.asker is None:
                prepared.asker = Asker(model, prepared.tokenizer, self._chat, self._system, self._longest)
            for task, chosen in ids.items():
                for item in chosen:
                    if (task, item) not in prepared.queries:
                        prepared.queries[task, item] = prepared.asker.ask(self._benchmarks[task].documents[item])
        return {task: [prepared.queries[task, item] for item in chosen] for task, chosen in ids.items()}

    def _plan(self, model: Any, prepared: PreparedTasks, ids: Mapping[str, Sequence[str]]) -> _Plan:
        """Return the queries of these ids in batches; those of the same ids are kept."""
        key = (model.device, self.batch_size, tuple((task, tuple(chosen)) for task, chosen in ids.items()))
        if prepared.plan is None or prepared.plan.key != key:
            queries = self._ask(model, prepared, ids)
            requests = [r for each in queries.values() for query in each for group in query.requests for r in group]
            batches = make_batches(requests, self.batch_size, model.device, can_share(model))
            prepared.plan = _Plan(key, queries, len(requests), batches)
        return prepared.plan

    def _smooth(self, task: str, query: Query, totals: np.ndarray) -> float:
        """Return `log_probability` of a document, of the log-likelihoods of its choices or of its reference; NaN where
        the model's logits are.
        """
        if np.isnan(totals).any():
            return math.nan
        if not query.choices:
            return float(totals.sum() / query.size)
        return among_choices(totals[: len(query.choices)] * evened(query.choices, self._score[task]), query.gold)

    def _results(
        self, name: str, queries: Sequence[Query], smooth: Mapping[int, float], lengths: Mapping[int, int]
    ) -> dict[str, np.ndarray]:
        """Return the metrics of the items of a task, computed by lm-eval of what was told to the queries."""
        more = [each for each in self.offers.get(name, ()) if each in self._asked]
        for task in self._benchmarks[name].tasks:
            task._instances = [each for q in queries if q.document.task is task for each in q.instances]
            if task._instances:
                task.apply_filters()
        rows = []
        for query in queries:
            if math.isnan(smooth[id(query)]):  # of NaN, too, lm-eval would take one for the most probable
                rows.append({})
                continue
            own = own_metrics(query.document.task, query.document.doc, query.instances)
            own[SMOOTH] = smooth[id(query)]
            own |= {LENGTH: lengths[id(query)]} if LENGTH in more else {}
            rows.append(own | {SCORE: own.get(self._score[name], math.nan)})
        return by_document(rows, tuple(dict.fromkeys([*self.metrics, *more])))


def _has_length(benchmark: Benchmark) -> bool:
    """Return whether all tasks of a benchmark generate, and none has a metric of its own that is called so."""
    generated = all(task.OUTPUT_TYPE == "generate_until" for task in benchmark.tasks)
    return generated and LENGTH not in common_metrics(benchmark.tasks)


def _kind(query: Query) -> str:
    return query.document.task.OUTPUT_TYPE


def _tell(query: Query, said: Sequence[Any]) -> None:
    """Write what the model said into lm-eval's instances, in place of what another model said."""
    for instance, each in zip(query.instances, said, strict=True):
        instance.resps = [each[0] if _kind(query) == "loglikelihood_rolling" else each]
        instance.filtered_resps = {}
