"""How probable a model finds the user's own text: `log_probability`, the natural log-likelihood of a text by its bytes.

In: texts by task, from a `.txt` (divided by blank lines), a `.jsonl` ({"text": ...}), a directory of splits, or a data
set of a hub. Out: one number for each text, higher is better; exp of minus it is the perplexity of a byte. By bytes and
not by tokens, so that it means the same for every tokenizer. A long text is cut into windows, each behind the last
token of the one before (as lm-eval does it; Gao et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import Answers, Requirements
from evomerge.fitness.items import SPLITS, Item, Task, make_item, read_items, split_of
from evomerge.fitness.likelihood import Request, TokenBatch, can_share, make_batches, score, token_logits, windows
from evomerge.fitness.lm_eval.loading import known_benchmark


@dataclass
class PreparedTexts:
    """By task and id the windows of a text and its bytes; and the batches of the ids that were asked for last."""

    texts: dict[tuple[str, str], tuple[list[Request], int]]
    key: Any = None
    batches: list[TokenBatch] = field(default_factory=list)


class Perplexity:
    """Fitness by the likelihood of texts.

    Args:
        batch_size: windows in a forward pass.
        window: tokens of a window; no more than the model allows.
        public_test: allow to search on the test split of a data set of a hub.

    Raises:
        ConfigError: sizes below 1.
    """

    metrics = ("log_probability",)
    pure = True
    requires = Requirements(language_head=True)
    same_classes = False
    task_settings = ("subset", "split", "field")

    def __init__(self, batch_size: int = 8, window: int = 512, public_test: bool = False) -> None:
        if batch_size < 1 or window < 1:
            raise ConfigError(f"fitness.batch_size={batch_size} and fitness.window={window} must both be at least 1.")
        self.batch_size = batch_size
        self.warnings: list[str] = []
        self.data_sets: dict[str, list[str]] = {}
        self._window, self._public_test = window, public_test

    def read(
        self, tasks: Mapping[str, Task], further: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, list[Item]]]:
        """Return the texts of each split by task.

        Args:
            tasks: their `items` are files or directories, or the names of data sets of a hub.
            further: of a data set, its `split` and `subset`; of that or of a .jsonl, the `field` that holds the text,
                `text` if it is not given.

        Raises:
            ConfigError: something is missing, or the split is a public test split.
            SuiteError: texts cannot be read.
        """
        items: dict[str, dict[str, list[Item]]] = {split: {} for split in SPLITS}
        for name, task in tasks.items():
            given = further.get(name, {})
            if _is_ours(task.items) or (task.items.exists() and not given):
                field = _field(f"fitness.tasks.{name}", task.items, given)
                for split in SPLITS:
                    items[split][name] = read_items(task.items, split, labelled=False, field=field, blank=False)
                continue
            self.data_sets[name] = [str(known) for known in (task.items, given.get("subset")) if known]
            loaded = self._load(name, str(task.items), given)
            texts = dict.fromkeys(text for text in loaded if text.strip())
            if void := sum(not text.strip() for text in loaded):
                self.warnings.append(f"{void} of {len(loaded)} texts of {task.items} are blank and left out")
            for split in SPLITS:
                items[split][name] = [make_item(text) for text in texts if split_of(text) == split]
                if not items[split][name]:
                    raise SuiteError(f"fitness.tasks.{name} gives no items for the split {split!r}: take a larger one.")
        return items

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]], labelled: bool = True) -> PreparedTexts:
        """Tokenise the texts and cut them into windows.

        Args:
            processor: the tokenizer of the base.
            items: texts by task.
            labelled: makes no difference: texts have no labels.

        Raises:
            ConfigError: the base has no tokenizer, or it has no token to begin a text with.
            SuiteError: a text has no tokens.
        """
        if not hasattr(processor, "bos_token_id"):
            raise ConfigError("fitness=perplexity needs a base with a tokenizer, and this one takes images.")
        prefix = processor.eos_token_id if processor.bos_token_id is None else processor.bos_token_id
        if prefix is None:
            raise ConfigError(
                "The base's tokenizer has neither a beginning nor an end token to put before a text: set eos_token in "
                "its tokenizer_config.json."
            )
        length = min(self._window, processor.model_max_length)
        texts = {}
        for task, chosen in items.items():
            encoded = processor([item.text for item in chosen], add_special_tokens=False, verbose=False)["input_ids"]
            for item, tokens in zip(chosen, encoded, strict=True):
                if not tokens:
                    raise SuiteError(
                        f"The text {item.text!r:.40} of the task {task} has no tokens, so it has no likelihood: "
                        f"take it out."
                    )
                texts[task, item.id] = windows(tokens, prefix, length), len(item.text.encode("utf-8", "surrogatepass"))
        return PreparedTexts(texts)

    def __call__(self, model: Any, prepared: PreparedTexts, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Score the model: one forward pass for each batch of windows."""
        chosen = [(task, item) for task, items in ids.items() for item in items]
        requests = [request for key in chosen for request in prepared.texts[key][0]]
        key = (model.device, self.batch_size, tuple(chosen))
        if prepared.key != key:
            self._check(model, requests)
            prepared.key = None
            prepared.batches = make_batches(requests, self.batch_size, model.device, can_share(model))
            prepared.key = key  # last: whoever is interrupted before leaves nothing that looks whole
        scores = score(model, prepared.batches, len(requests))
        results: dict[str, list[float]] = {task: [] for task in ids}
        start = 0
        for task, item in chosen:
            cut, size = prepared.texts[task, item]
            results[task].append(scores.log_probability[start : start + len(cut)].sum() / size)
            start += len(cut)
        return Outcome(
            {task: list(items) for task, items in ids.items()},
            {task: {"log_probability": np.array(values)} for task, values in results.items()},
            scores.seconds,
        )

    def logits(
        self, model: Any, prepared: PreparedTexts, ids: Mapping[str, Sequence[str]]
    ) -> Iterator[dict[str, Answers]]:
        """Yield the logits (N, V) of every token of `batch_size` texts of one task at a time, and the tokens: a text
        has as many rows, all of them together.
        """
        for task, chosen in ids.items():
            for start in range(0, len(chosen), self.batch_size):
                part = range(start, min(start + self.batch_size, len(chosen)))
                cut = [(i, request) for i in part for request in prepared.texts[task, chosen[i]][0]]
                requests = [request for _, request in cut]
                self._check(model, requests)
                batches = make_batches(requests, self.batch_size, model.device, share=False)
                logits, tokens, owners = token_logits(model, batches)
                yield {task: Answers([cut[number][0] for number in owners.tolist()], logits, tokens.cpu())}

    def _check(self, model: Any, requests: Sequence[Request]) -> None:
        config = model.config.get_text_config(decoder=True)
        most = getattr(config, "max_position_embeddings", None) or self._window
        if any(len(request.context) + len(request.answer) - 1 > most for request in requests):
            raise ConfigError(f"fitness.window={self._window}, but the model takes {most} tokens: write that or less.")

    def _load(self, name: str, path: str, given: Mapping[str, Any]) -> list[str]:
        """Return the texts of a data set, of a hub or of a folder."""
        setting, split = f"fitness.tasks.{name}", given.get("split")
        if Path(path).is_file():
            raise ConfigError(
                f"{setting}: {path} is neither a .txt nor a .jsonl: write its texts into one of these, one a line as "
                f'{{"text": ...}}.'
            )
        if split is None:
            raise ConfigError(
                f"{setting}: {path} is no file. Write the path of a .txt or .jsonl file, or, for a data set of a hub, "
                f"its split as well: '{setting}={{items: {path}, split: train, field: text}}'."
            )
        if Path(path).is_dir() and not Path(path).is_absolute():
            self.warnings.append(f"{path} is taken from the folder of that name here, and not from a hub")
        if ("test" in str(split) or split == "all") and (not Path(path).is_dir() or known_benchmark(path)):
            text = f"coefficients were chosen by '{split}' of {path}, a test split: scores on it are no results"
            if not self._public_test:
                raise ConfigError(
                    f"{setting}.split={split} is a test split, and what is chosen by it cannot be measured on it: "
                    f"write {setting}.split=train, or fitness.public_test=true, and the report will say so first."
                )
            self.warnings.append(text)
        try:
            from datasets import load_dataset

            rows: Any = load_dataset(path, given.get("subset"), split=split)
            return ["" if text is None else str(text) for text in rows[given.get("field", "text")]]
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{setting}: a data set of a hub needs `datasets`, which is not installed: pip install 'evomerge[lm]'"
            ) from error
        except Exception as error:  # whatever the reader of a data set, or the network, may raise
            raise SuiteError(
                f"{setting}: the data set {path} cannot be read ({type(error).__name__}: "
                f"{(str(error) or 'no message').splitlines()[0][:300]}). Without a network, bring its cache (HF_HOME), "
                f"or write the texts into a .jsonl file and name that."
            ) from error


def _is_ours(path: Path) -> bool:
    """Whether a path is of a file, or of a directory of splits, that evomerge itself reads."""
    return path.suffix in (".txt", ".jsonl") or any((path / f"{split}.jsonl").is_file() for split in SPLITS)


def _field(setting: str, path: Path, given: Mapping[str, Any]) -> str:
    """Return the name of the text in a line of a file of ours.

    Raises:
        ConfigError: a setting means nothing to such a file.
    """
    if strange := [name for name in ("split", "subset") if name in given]:
        raise ConfigError(
            f"{setting}.{strange[0]} is of data sets of a hub, and {path} is divided by evomerge: leave it out."
        )
    if "field" in given and path.suffix == ".txt":
        raise ConfigError(f"{setting}.field: {path} is plain text, which has no fields: leave it out.")
    return str(given.get("field", "text"))
