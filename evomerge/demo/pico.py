"""A whole suite made in code in seconds: for tests, and for a first search without a download.

In: a directory and a seed. Out: a suite (see `suite.py`) with a BERT of 2 layers x 32, its own word-level tokenizer,
and three experts that were really trained, unequally, on synthetic texts. The tasks use the same words for different
classes, which is what makes their experts interfere; a few words of style tell the tasks apart, and noise keeps
accuracy away from 0 and 1.
"""

import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from evomerge.common.errors import SuiteError
from evomerge.common.files import write_atomically
from evomerge.demo.finetune import embed, fine_tune, save_model
from evomerge.fitness.items import Item, make_item, write_items
from evomerge.runs.suite import Suite, load_suite, read_manifest, write_head, write_manifest

CLASSES = {
    "animals": ("ant", "bee", "cat"),
    "trees": ("ash", "elm", "fir", "oak"),
    "metals": ("gold", "iron", "lead", "zinc"),
}
SIZES = {"train": 200, "search": 120, "select": 120, "report": 200, "unlabeled": 60}
TRAINING = {  # unequal by design: one strong and far, the others short; equal experts leave nothing to search
    "animals": {"steps": 90, "lr": 4e-3},
    "trees": {"steps": 45, "lr": 2e-3},
    "metals": {"steps": 30, "lr": 3e-3},
}
PRETRAINING = {"steps": 40, "lr": 2e-3}
MAX_TOKENS = 20

_WORDS = ["".join(syllables) for syllables in product(("ba", "ke", "mi", "do", "su", "ra"), repeat=2)]
_STYLES = {"animals": ("the", "wild"), "trees": ("of", "green"), "metals": ("some", "shiny")}
_PLAN = '{"suite": "pico"}\n'  # of plan.json, the first file of a build: what is beside it is ours to replace
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def build_pico(path: Path | str, seed: int = 0) -> Suite:
    """Build the suite `pico`, or open it if it is finished; an unfinished one is built anew.

    Args:
        path: the suite directory.
        seed: of texts, weights and the order of the data; the same seed gives the same suite on the same machine.

    Raises:
        SuiteError: the finished suite in `path` is damaged, or `path` holds other files than those of this suite.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    _refuse_strangers(path)  # before the lock, which is a file too: a refused directory stays as it is
    with FileLock(path / ".lock"):
        if read_manifest(path) is None:
            threads = torch.get_num_threads()
            # so small that threads only wait for each other, ten times longer on a busy machine
            torch.set_num_threads(1)
            try:
                _build(path, seed)
            finally:
                torch.set_num_threads(threads)
    return load_suite(path)


def _refuse_strangers(path: Path) -> None:
    """Refuse a directory in which no build of this suite began, since `_build` removes what it finds there.

    Names with a dot are not counted: locks and half-written files, which a build may make before its plan.
    """
    strangers = [file.name for file in path.iterdir() if not file.name.startswith(".")]
    plan = path / "plan.json"
    begun = plan.is_file() and plan.read_text(encoding="utf-8", errors="replace") == _PLAN
    if strangers and not begun and not (path / "suite.json").exists():
        raise SuiteError(
            f"{path} holds other files, like {min(strangers)}, and no pico suite, finished or begun. A build there "
            "could remove them: choose a new or an empty directory"
        )


def _build(path: Path, seed: int) -> None:
    write_atomically(path / "plan.json", _PLAN)
    for part in ("base", "experts", "heads", "tasks"):
        shutil.rmtree(path / part, ignore_errors=True)
        (path / part).mkdir()
    rng = np.random.default_rng(seed)
    data = {task: _splits(task, rng) for task in CLASSES}
    for task, splits in data.items():
        (path / "tasks" / task).mkdir()
        for split, items in splits.items():
            write_items(path / "tasks" / task / f"{split}.jsonl", items)

    tokenizer = _tokenizer()
    base = _model(len(tokenizer), seed)
    _pretrain(base, tokenizer, {task: splits["train"] for task, splits in data.items()}, seed)
    save_model(base, tokenizer, path / "base")
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    heads = {task: _class_names(base, tokenizer, classes) for task, classes in CLASSES.items()}
    for task, settings in TRAINING.items():
        write_head(path / "heads" / f"{task}.safetensors", heads[task])
        base.load_state_dict(start)
        items = data[task]["train"]
        texts, labels = [item.text for item in items], [item.label for item in items]
        fine_tune(base, tokenizer, texts, labels, heads[task], seed=seed, max_tokens=MAX_TOKENS, **settings)
        save_model(base, tokenizer, path / "experts" / task)
    write_manifest(path, "pico", CLASSES, {"base": PRETRAINING | {"seed": seed}} | TRAINING)


def _splits(task: str, rng: np.random.Generator) -> dict[str, list[Item]]:
    """Draw distinct texts, some words of the class among noise; the words of a class differ from task to task."""
    classes = CLASSES[task]
    words_of = np.array_split(rng.permutation(_WORDS), len(classes))
    texts: dict[str, int] = {}
    while len(texts) < sum(SIZES.values()):
        label = int(rng.integers(len(classes)))
        words = [
            str(rng.choice(words_of[label] if rng.random() < 0.42 else _WORDS)) for _ in range(rng.integers(6, 13))
        ]
        words.insert(int(rng.integers(len(words))), str(rng.choice(_STYLES[task])))
        if rng.random() < 0.1:
            words.append(classes[label])
        texts.setdefault(" ".join(words), label)
    pairs = iter(texts.items())
    return {
        split: [
            make_item(text) if split == "unlabeled" else make_item(text, label)
            for text, label in (next(pairs) for _ in range(size))
        ]
        for split, size in SIZES.items()
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*_SPECIAL, *_WORDS, *sum(_STYLES.values(), ()), *sum(CLASSES.values(), ())]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
    )


def _model(vocabulary: int, seed: int) -> BertModel:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator; we draw again from ours
        model = BertModel(config, add_pooling_layer=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                scale = 0.5 if "word" in name else 0.02 if "embeddings" in name else parameter.shape[1] ** -0.5
                parameter.normal_(std=scale, generator=generator)
    return model


def _pretrain(base: BertModel, tokenizer: Any, data: dict[str, list[Item]], seed: int) -> None:
    """Teach the base a little of all tasks at once, and to place each class's texts near its name."""
    names = [name for classes in CLASSES.values() for name in classes]
    texts, labels = 20 * names, 20 * list(range(len(names)))
    for task, items in data.items():
        first = names.index(CLASSES[task][0])
        texts += [item.text for item in items]
        labels += [first + item.label for item in items]
    head = _class_names(base, tokenizer, names)
    fine_tune(base, tokenizer, texts, labels, head, seed=seed, max_tokens=MAX_TOKENS, **PRETRAINING)


@torch.no_grad()
def _class_names(base: BertModel, tokenizer: Any, names: Sequence[str]) -> torch.Tensor:
    return embed(base, tokenizer, names, MAX_TOKENS)  # (C, 32)
