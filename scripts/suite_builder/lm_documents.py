"""Documents of language tasks: how they are asked, told apart, split, and given to lm-eval.

In: documents, dictionaries as readers make them. Out: prompts and answers as tokens, disjoint splits, and the YAML that
makes a task of lm-eval (Gao et al. 2024) of them. The template of a form is in that YAML and makes the prompts of
training, so a model is asked in the words that it was tuned on. Tokens are cut where lm-eval cuts them: the prompt is
encoded alone and together with the answer, and the answer is what comes after it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

Document = dict[str, Any]

SPLITS = ("train", "search", "select", "report")
PREFIX = "evomerge_"
"""Of the names that lm-eval knows the tasks by; it has a `piqa` of its own."""
_JINJA = Environment(undefined=StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True)
class Form:
    """How the documents of a task are asked.

    Attributes:
        prompt: a Jinja template over the fields of a document; empty: its `text` is predicted, from the first token on.
    """

    prompt: str = ""

    def ask(self, document: Document) -> tuple[str, list[str]]:
        """Return the prompt and the possible answers; one answer, the text, where there is no prompt."""
        if not self.prompt:
            return "", [document["text"]]
        return _JINJA.from_string(self.prompt).render(document), list(document["choices"])


@dataclass(frozen=True)
class Asked:
    """A document as tokens.

    Attributes:
        prompt: tokens before the answer, at least one.
        answers: tokens of each answer.
        lengths: of each answer: characters, as `acc_norm` divides by them; of a text: bytes.
        label: which answer is right.
    """

    prompt: list[int]
    answers: list[list[int]]
    lengths: list[int]
    label: int


def encode(tokenizer: Any, form: Form, document: Document) -> Asked:
    """Encode a document as lm-eval does; a text follows the token that begins texts."""
    prompt, answers = form.ask(document)
    if not prompt:
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        lengths = [len(text.encode("utf-8")) for text in answers]
        return Asked([first], [tokenizer.encode(text) for text in answers], lengths, 0)
    head = tokenizer.encode(prompt)
    tails = [tokenizer.encode(f"{prompt} {answer}")[len(head) :] for answer in answers]
    return Asked(head, tails, [len(answer) for answer in answers], document["label"])


def identify(document: Document) -> Document:
    """Return the document with its `id` in front, the first 16 hex digits of sha256 over its canonical JSON."""
    return {"id": _sha256(document)[:16], **document}


def split(
    documents: Iterable[tuple[str, Document]], sizes: Mapping[str, int], seen: set[str], seed: int
) -> dict[str, list[Document]]:
    """Draw disjoint splits by the hash of what documents are about.

    Args:
        documents: pairs of a subject and a document; documents of one subject are never in two splits.
        sizes: split -> most documents, in the order of the draw; where the data are few, all but the last (train)
            shrink alike so that they take at most half of them.
        seen: subjects that are used up; those of these documents are added.
        seed: of the draw.
    """
    groups: dict[str, dict[str, Document]] = {}
    for subject, document in documents:
        if subject not in seen:
            known = identify(document)
            groups.setdefault(subject, {}).setdefault(known["id"], known)
    seen.update(groups)
    drawn = [list(groups[subject].values()) for subject in sorted(groups, key=lambda s: _sha256([seed, s]))]
    *held_out, last = sizes
    shrink = min(1.0, sum(map(len, drawn)) / 2 / sum(sizes[name] for name in held_out))
    splits = {}
    for name in (*held_out, last):
        count, chosen = sizes[last] if name == last else int(shrink * sizes[name]), []
        while drawn and len(chosen) < count:
            chosen += drawn.pop(0)
        splits[name] = chosen[:count]  # the rest of a subject that is cut belongs nowhere
    return splits


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write documents as JSON lines."""
    text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    path.write_text(text, encoding="utf-8", newline="\n")


def read_documents(path: Path) -> list[Document]:
    """Read documents of JSON lines."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def task_yaml(name: str, form: Form) -> str:
    """Write the task for lm-eval. Its paths are relative to the directory of the YAML, so that a suite can be moved;
    evomerge looks for them there, lm-eval by itself where it runs: `cd suites/lm/tasks; lm_eval run --include_path .`.

    Args:
        name: of the task, and of the directory of its splits, which is beside the YAML.
        form: how it is asked.
    """
    task: dict[str, Any] = {"task": PREFIX + name, "dataset_path": "json"}
    task["dataset_kwargs"] = {"data_files": {part: f"{name}/{part}.jsonl" for part in SPLITS}}
    task |= {"training_split": "train", "validation_split": "select", "test_split": "report"}
    if form.prompt:
        task |= {"output_type": "multiple_choice", "doc_to_text": form.prompt, "doc_to_choice": "choices"}
        task |= {"doc_to_target": "label"}
        metrics, higher = ("acc_norm", "acc"), True  # the first is what evomerge reports
    else:
        task |= {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
        metrics, higher = ("bits_per_byte", "byte_perplexity", "word_perplexity"), False
    task["metric_list"] = [{"metric": metric, "higher_is_better": higher} for metric in metrics]
    task["metadata"] = {"version": 1}
    return yaml.safe_dump(task, sort_keys=False, allow_unicode=True, width=120)


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
