"""What lm-eval asks a model about a document, as tokens: prompts, answers and few-shot examples exactly as it has them.

In: documents and the base's tokenizer. Out: queries, made once. It uses what lm-eval keeps to itself;
`tests/fitness/test_lm_eval.py` holds it against `simple_evaluate`, item by item.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.common.exits import contained
from evomerge.fitness.likelihood import Request, clipped
from evomerge.fitness.lm_eval.documents import Document
from evomerge.fitness.lm_eval.loading import undisturbed
from evomerge.models.weights import listed

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the length of an answer, in tokens; the first that is there counts."""
TOTAL = "max_length"
"""What some call the length of prompt and answer together; lm-eval lets it go before the others."""
USUAL = 256
"""The length of lm-eval's `HFLM.max_gen_toks`, where a task does not say any."""


@dataclass(frozen=True)
class Query:
    """A document as it is asked.

    Attributes:
        document: which.
        instances: lm-eval's requests; what the model says is written into them, and filtered, for every candidate.
        requests: for each instance, what is to be scored of it: one request, or several windows of a long text; for a
            generated answer, the reference.
        choices: their texts; as many of the first requests are of them. None of a task without choices.
        gold: which of them are right.
        size: bytes of the reference.
    """

    document: Document
    instances: list[Any]
    requests: list[list[Request]]
    choices: tuple[str, ...]
    gold: tuple[int, ...]
    size: int


class Asker:
    """Makes queries of documents.

    Args:
        model: the live model.
        tokenizer: of the base; a copy of it is used, since lm-eval gives it a padding token.
        chat: apply the tokenizer's chat template.
        system: instruction before everything, or None.
        longest: tokens of an answer, at most; None for no limit.

    Raises:
        ConfigError: the model is no causal language model, or the tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, chat: bool, system: str | None, longest: int | None) -> None:
        if chat and not tokenizer.chat_template:
            raise ConfigError(
                "fitness.chat_template=true, but the base's tokenizer has no chat template: put the "
                "chat_template.jinja of the model beside it, or write fitness.chat_template=false."
            )
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ConfigError(
                "The base's tokenizer has neither a beginning nor an end token, and lm-eval puts one before texts "
                "without context: set eos_token in its tokenizer_config.json."
            )
        self._chat, self._system = chat, system
        with undisturbed():
            from lm_eval.models.huggingface import HFLM

            # not of the model itself: HFLM would tie its head anew, also where base and experts have two
            like: Any = SimpleNamespace(config=model.config, device=model.device)
            make: Any = HFLM  # typed otherwise by its decorator
            self._lm = make(pretrained=like, tokenizer=copy.deepcopy(tokenizer))
        if self._lm.backend != "causal":
            raise ConfigError(f"fitness=lm_eval scores causal language models, and a {type(model).__name__} is none.")
        self._taken: list[Any] = []
        self._lm._loglikelihood_tokens = self._take
        self._lm._model_generate = partial(_generate, self._lm, self._lm._model_generate, longest)

    def ask(self, document: Document) -> Query:
        """Build and tokenise a document's requests.

        Raises:
            SuiteError: the document cannot be asked: an answer is empty or too long, or the reference is no choice.
        """
        task = document.task
        where = f"document {document.number} of {task.config.task}"
        try:
            return contained(lambda: self._query(document))
        except (ConfigError, SuiteError) as error:
            raise SuiteError(f"{where}: {error}") from error
        except Exception as error:  # whatever a template or a function of the task may raise
            raise SuiteError(f"{where} cannot be asked: {type(error).__name__}: {error}") from error

    def generate(self, model: Any, queries: Sequence[Query], batch_size: int) -> list[str]:
        """Let the model answer, greedily, as the tasks say."""
        self._lm._model, self._lm._device, self._lm.batch_size_per_gpu = model, model.device, batch_size
        return self._lm.generate_until([query.instances[0] for query in queries], disable_tqdm=True)

    def length(self, answer: str) -> int:
        """Return how many tokens an answer has, without special ones."""
        return len(self._lm.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def _query(self, document: Document) -> Query:
        task, doc = document.task, document.doc
        if document.examples:
            task.sampler = _Examples(document.examples)
        chat = self._lm.apply_chat_template if self._chat else None
        context = task.fewshot_context(
            doc,
            num_fewshot=task.config.num_fewshot,
            system_instruction=self._system,
            apply_chat_template=self._chat,
            fewshot_as_multiturn=True,
            chat_template=chat,
            gen_prefix=task.doc_to_prefix(doc),
        )
        instances = task.construct_requests(
            doc=doc,
            ctx=context,
            metadata=(task.config.task, document.number, task.config.repeats),
            apply_chat_template=self._chat,
            chat_template=chat,
        )
        instances = instances if isinstance(instances, list) else [instances]
        kind = task.OUTPUT_TYPE
        if any(each.request_type != ("loglikelihood" if kind == "multiple_choice" else kind) for each in instances):
            raise ConfigError("it asks for several kinds of answers at once, which only lm-eval itself can score")
        asked = [_reference(task, doc, context, instances[0], self._chat)] if kind == "generate_until" else instances
        requests = [self._tokens(each) for each in asked]
        choices, gold = _choices(task, doc) if kind == "multiple_choice" else ((), ())
        return Query(document, instances, requests, choices, gold, len(asked[0].args[-1].encode()))

    def _tokens(self, instance: Any) -> list[Request]:
        """Let lm-eval tokenise an instance, and take what it would have scored."""
        self._taken.clear()
        if instance.request_type == "loglikelihood_rolling" and not instance.args[-1].strip():
            raise ConfigError(f"its text is {'blank' if instance.args[-1] else 'empty'}, which has no likelihood")
        if not instance.args[-1]:
            raise ConfigError("an answer is empty")
        getattr(self._lm, instance.request_type)([instance], disable_tqdm=True)
        if not self._taken:
            raise ConfigError(f"the text {instance.args[-1]!r:.40} has no tokens")
        if not all(answer for _, _, answer in self._taken):
            raise ConfigError(f"the answer {instance.args[-1]!r:.40} has no tokens of its own behind its context")
        return [clipped(context, answer, self._lm.max_length) for _, context, answer in self._taken]

    def _take(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        self._taken.extend(requests)
        return [(0.0, False)] * len(requests)


def cap_answers(tasks: Sequence[Any], longest: int | None) -> list[str]:
    """Shorten the answers that tasks ask for, where they are longer than they may be; say so, for the user.

    Args:
        tasks: of lm-eval, loaded for this search alone.
        longest: tokens of an answer, at most; None for no limit.
    """
    asked: dict[int, list[str]] = {}
    for task in tasks:
        settings = task.config.generation_kwargs or {}
        length = next((int(settings[name]) for name in (TOTAL, *LENGTHS) if settings.get(name) is not None), USUAL)
        if longest is None or task.OUTPUT_TYPE != "generate_until" or length <= longest:
            continue
        others = {name: value for name, value in settings.items() if name not in LENGTHS}
        task.config.generation_kwargs = others | {"max_gen_toks": longest}
        asked.setdefault(length, []).append(task.config.task)
    return [
        f"{listed(names)}: answers may have {length} tokens, but are cut off at {longest} here, so scores are not "
        f"those of lm-eval itself; fitness.max_gen_toks={length} lifts that, and candidates take longer"
        for length, names in asked.items()
    ]


class _Ended(StoppingCriteria):
    """Which rows have said one of the strings that end an answer.

    lm-eval waits until all rows have said the same one. What a row says behind its end is cut off, so answers are those
    that lm-eval has of a document alone.

    Args:
        criteria: lm-eval's, one for each string.
    """

    def __init__(self, criteria: Sequence[Any]) -> None:
        self._criteria = criteria

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a bool for each row (B,) of the tokens so far (B, T)."""
        for each in self._criteria:
            each(input_ids, scores)
        ended = [any(row) for row in zip(*(each.done_tracker for each in self._criteria), strict=True)]
        return torch.tensor(ended, device=input_ids.device)


def _generate(
    lm: Any,
    generate: Callable[..., Any],
    longest: int | None,
    context: Any,
    max_length: int,
    stop: Any,
    **asked: Any,
) -> Any:
    """Generate as lm-eval does, but no more than so many tokens, also where a task gives the length of prompt and
    answer together, or the model has one of its own; and of greedy answers no more than the longest of a batch has.
    """
    own = getattr(lm.model, "generation_config", None)
    if longest is not None:
        max_length = min(max_length, context.shape[1] + longest)
        if (getattr(own, "max_new_tokens", None) or 0) > longest:  # it would go before max_length
            asked["max_new_tokens"] = longest
    if not stop or not _is_greedy(asked, own):  # what is drawn depends on how many tokens were drawn before
        return generate(context, max_length, stop, **asked)
    from lm_eval.models.huggingface import stop_sequences_criteria

    ended = _Ended(stop_sequences_criteria(lm.tokenizer, stop, context.shape[1], context.shape[0]))
    others = {name: value for name, value in asked.items() if name not in ("do_sample", "temperature")}
    return lm.model.generate(
        input_ids=context,
        max_length=max_length,
        stopping_criteria=StoppingCriteriaList([ended]),
        pad_token_id=lm.tokenizer.pad_token_id,
        use_cache=True,
        do_sample=False,
        **others,
    )


def _is_greedy(asked: Mapping[str, Any], own: Any) -> bool:
    """Whether lm-eval would take the most probable token each time.

    Args:
        asked: how a task generates.
        own: how the model does.
    """
    drawn = asked.get("do_sample")
    beams = asked.get("num_beams", getattr(own, "num_beams", None))
    return not (asked.get("temperature", 0.0) if drawn is None else drawn) and beams in (None, 1)


class _Examples:
    """A sampler of lm-eval that has drawn already."""

    def __init__(self, drawn: Sequence[Any]) -> None:
        self.df = self._drawn = drawn

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> Sequence[Any]:
        """Return the examples of the document."""
        return self._drawn


def _reference(task: Any, doc: Any, context: str, instance: Any, chat: bool) -> Any:
    """Return a request for the log-likelihood of the reference answer of a task that generates."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.utils import ends_with_whitespace

    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    target = str(target[0] if isinstance(target, list) else target)
    prefix = task.config.gen_prefix
    joined = chat and (not prefix or ends_with_whitespace(prefix))  # as lm-eval joins the choices of multiple_choice
    answer = target if joined else task.config.target_delimiter + target
    return Instance("loglikelihood", doc, (context, answer), 0, instance.metadata)


def _choices(task: Any, doc: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the choices, and which of them are right."""
    choices = task.doc_to_choice(doc)
    told = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = []
    for each in told if isinstance(told, list) else [told]:
        place = choices.index(each) if isinstance(each, str) and each in choices else each
        if not isinstance(place, int) or not 0 <= place < len(choices):
            raise SuiteError(f"the reference answer {each!r} is none of the {len(choices)} choices")
        gold.append(place)
    return tuple(choices), tuple(gold)
