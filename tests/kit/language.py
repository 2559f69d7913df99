"""A pico language model with a tokenizer of fifty words, and tasks of lm-eval of every output type, made in code."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.fitness.items import Task
from evomerge.fitness.lm_eval.harness import LmEval
from tests.kit.models import LLAMA, pico

WORDS = [f"w{i}" for i in range(36)]
VOCABULARY = ["<unk>", "<s>", "</s>", *WORDS, "Q", "A", ":", "?", ".", "user", "assistant", "|"]
CHAT = "{% for m in messages %}{{ m['role'] }} | {{ m['content'] }} {% endfor %}assistant | "
MEAN = {"aggregation": "mean", "higher_is_better": True}


def save_tokenizer(path: Path, vocabulary: Sequence[str] = VOCABULARY, chat: str | None = CHAT) -> None:
    """Words between spaces; no beginning is added, and there is no padding token."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=chat
    ).save_pretrained(path)


def save_language_family(path: Path) -> Path:
    """A base and two experts, as directories of transformers."""
    for number, name in enumerate(("base", "left", "right")):
        model, generator = pico(LlamaForCausalLM, LLAMA), torch.Generator().manual_seed(number)
        model.lm_head.weight.data *= 0.5  # or one token is certain everywhere
        for parameter in model.parameters() if number else ():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path / name)
        save_tokenizer(path / name)
    return path


def save_language_suite(path: Path) -> Path:
    """A suite as the builder of `lm` leaves it: a base and two experts, each with a task of lm-eval."""
    save_language_family(path)
    tasks = {}
    for name, kind in (("left", "choice"), ("right", "rolling")):
        (path / "experts").mkdir(exist_ok=True)
        (path / name).rename(path / "experts" / name)
        write_task(path / "tasks", name, like=kind)
        tasks[name] = {"items": f"tasks/{name}.yaml", "head": None, "expert": name, "classes": []}
    experts = {name: f"experts/{name}" for name in tasks}
    manifest = {"format": 1, "name": "lm", "base": "base", "experts": experts, "tasks": tasks, "sha256": {}}
    (path / "suite.json").write_text(json.dumps(manifest))
    return path


def documents(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions of a few words, four choices of one to three words, the right one, and a text."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [
        {
            "question": words(2, 7),
            "choices": [words(1, 3) for _ in range(4)],
            "label": rng.randrange(4),
            "answer": words(1, 2),
            "text": words(5, 60),
        }
        for _ in range(n)
    ]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]], parents: bool = False) -> Path:
    path.parent.mkdir(parents=parents, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Q : {{question}} A :",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [
            *({"metric": name, **MEAN} for name in ("acc", "acc_norm", "exact_match")),
            *({"metric": name} for name in ("brier_score", "mcc")),
        ],
    },
    "answer": {
        "output_type": "loglikelihood",
        "doc_to_text": "Q : {{question}} A :",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc", **MEAN}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "generated": {
        "output_type": "generate_until",
        "doc_to_text": "Q : {{question}} A :",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **MEAN}, {"metric": "bleu"}],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {
                "name": "word",
                "filter": [{"function": "regex", "regex_pattern": "(w[0-9]+)"}, {"function": "take_first"}],
            },
        ],
    },
}


def write_task(folder: Path, name: str, rows: Sequence[Mapping[str, Any]] | None = None, **changes: Any) -> Path:
    """Write the YAML of a task, with all documents in the test split; changes go into it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = write_jsonl(folder / f"{name}.jsonl", documents(40) if rows is None else rows)
    kind = changes.pop("like", name)
    config = {
        "task": f"pico_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        **TASKS[kind],
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def read(tasks: Mapping[str, Path | str], further: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any):
    """A fitness that has read these tasks, and its items of all splits together, by task."""
    fitness = LmEval(**settings)
    splits = fitness.read({name: Task(name, Path(path), None, None, ()) for name, path in tasks.items()}, further or {})
    return fitness, splits


def scored(fitness: LmEval, model: Any, tokenizer: Any, items: Mapping[str, Sequence[Any]]):
    """The outcome of a model on these items."""
    prepared = fitness.prepare(tokenizer, items)
    return fitness(model, prepared, {task: [item.id for item in chosen] for task, chosen in items.items()})


def simple_evaluate(directory: Path, paths: dict[str, Path], **settings: Any) -> dict[str, dict[tuple[int, str], Any]]:
    """lm-eval's own verdict: task -> (document, filter) -> sample."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found: Any = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(directory), "dtype": "float32"},
        tasks=[str(path) for path in paths.values()],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        batch_size=7,
        bootstrap_iters=0,
        random_seed=None,  # pyright: ignore[reportArgumentType]
        numpy_random_seed=None,  # pyright: ignore[reportArgumentType]
        torch_random_seed=None,  # pyright: ignore[reportArgumentType]
        **settings,
    )
    return {
        name: {(sample["doc_id"], sample["filter"]): sample for sample in found["samples"][f"pico_{name}"]}
        for name in paths
    }


def together(splits: dict[str, dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The items of all splits, by task."""
    return {task: [item for split in splits.values() for item in split[task]] for task in splits["search"]}
