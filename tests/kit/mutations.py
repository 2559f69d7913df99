"""Model directories with one thing changed, at random: what `test_mutations.py` holds evomerge against.

In: a directory that `save_pretrained` wrote, and a generator. Out: the same directory with one change, and the words of
which one must stand in whatever is said of it. A `control` changes nothing that matters.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@dataclass(frozen=True)
class Mutation:
    """What was changed.

    Attributes:
        kind: how.
        words: one of them must be said, if anything is.
    """

    kind: str
    words: tuple[str, ...]


def _tensors(path: Path) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS).items()}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path / WEIGHTS, {"format": "pt"})


def _json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2))


def _shards(path: Path, rng: random.Random) -> dict[str, str]:
    """Split the weights into two or three shards with an index; return its weight_map."""
    tensors, n = _tensors(path), rng.choice([2, 3])
    names = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    where = {key: names[i * n // len(tensors)] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: t for key, t in tensors.items() if where[key] == name}, path / name, {"format": "pt"})
    (path / WEIGHTS).unlink()
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return where


def _any_key(path: Path, rng: random.Random, least: int = 1) -> tuple[dict[str, Tensor], str]:
    tensors = _tensors(path)
    return tensors, rng.choice(sorted(key for key, tensor in tensors.items() if tensor.numel() >= least))


# control group: nothing changes that counts


def unchanged(path: Path, rng: random.Random) -> tuple[str, ...]:
    return ()


def resharded(path: Path, rng: random.Random) -> tuple[str, ...]:
    _shards(path, rng)
    return ()


def reordered(path: Path, rng: random.Random) -> tuple[str, ...]:
    """As a `.bin`, which keeps the order of its keys."""
    tensors = list(_tensors(path).items())
    rng.shuffle(tensors)
    torch.save(dict(tensors), path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()
    return ()


def transposed(path: Path, rng: random.Random) -> tuple[str, ...]:
    """As a `.bin` of which some matrices lie transposed, as a converter from TensorFlow leaves them."""
    tensors = {
        key: tensor.T.contiguous().T if tensor.dim() == 2 and rng.random() < 0.5 else tensor
        for key, tensor in _tensors(path).items()
    }
    torch.save(tensors, path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()
    return ()


def harmless_file(path: Path, rng: random.Random) -> tuple[str, ...]:
    name = rng.choice(
        ["NOTES.txt", "training_args.bin", "optimizer.pt", "events.log", "trainer_state.json", ".gitignore"]
    )
    (path / name).write_text("{}")
    return ()


def written_out(path: Path, rng: random.Random) -> tuple[str, ...]:
    """With all defaults in its config.json."""
    config = AutoConfig.from_pretrained(path).to_dict()
    (path / "config.json").write_text(json.dumps(config, default=str))
    return ()


def prefixed(path: Path, rng: random.Random) -> tuple[str, ...]:
    """All keys, or some of them, with the prefix of the class where they had none, or without."""
    kind = json.loads((path / "config.json").read_text())["model_type"]
    prefix, share = {"bert": "bert.", "llama": "model.", "gpt2": "transformer."}[kind], rng.choice([1, 1, 0.5])

    def moved(key: str) -> str:
        if rng.random() >= share or key.startswith("lm_head"):
            return key
        return key.removeprefix(prefix) if key.startswith(prefix) else f"{prefix}{key}"

    _write(path, {moved(key): tensor for key, tensor in _tensors(path).items()})
    return ()


def finer(path: Path, rng: random.Random) -> tuple[str, ...]:
    """A tensor in float64: the same values."""
    tensors, key = _any_key(path, rng)
    _write(path, tensors | {key: tensors[key].double()})
    return ()


CONTROL = (unchanged, resharded, reordered, transposed, harmless_file, written_out, prefixed, finer)


# one thing is wrong


def config_field(path: Path, rng: random.Random) -> tuple[str, ...]:
    resolved = AutoConfig.from_pretrained(path).to_dict()
    fields = {name: value for name, value in resolved.items() if _other(name, value, rng) is not None}
    if isinstance(nested := resolved.get("rope_parameters"), dict) and rng.random() < 0.2:
        _json(path / "config.json", lambda c: c.update(rope_parameters={**nested, "rope_theta": 777.0}))
        return ("rope",)
    name = rng.choice(sorted(fields))
    _json(path / "config.json", lambda config: config.update({name: _other(name, fields[name], rng)}))
    # a size or a number of layers contradicts the weights, and is refused by the tensor that shows it
    return (name, "config.json", ".weight", ".bias")


def _other(name: str, value: Any, rng: random.Random) -> Any:
    """Another value of a setting; None where there is none to be made up."""
    own = (
        "model_type",
        "transformers_version",
        "dtype",
        "architectures",
        "return_dict",
    )  # the last breaks GPT-2 itself
    if name in own or value is None:
        return None
    if name.endswith("_act") or name == "activation_function":
        return "relu" if value != "relu" else "gelu"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value * 2 or 4])  # 4: chunks of the feed-forward must divide the input
    if isinstance(value, float):
        return value * 3 + 0.01 if value < 0.3 or value > 1 else value / 2
    return None


def dropped(path: Path, rng: random.Random) -> tuple[str, ...]:
    tensors, key = _any_key(path, rng)
    _write(path, {name: tensor for name, tensor in tensors.items() if name != key})
    return (key,)


def renamed(path: Path, rng: random.Random) -> tuple[str, ...]:
    tensors, key = _any_key(path, rng)
    parts = key.split(".")
    place = rng.randrange(len(parts))
    parts[place] = rng.choice([parts[place] + "x", parts[place].upper() + "_", "inner." + parts[place]])
    new = ".".join(parts)
    _write(path, {new if name == key else name: tensor for name, tensor in tensors.items()})
    return (key, new)


def quantised(path: Path, rng: random.Random) -> tuple[str, ...]:
    """A matrix as codes and scales, as GPTQ leaves it."""
    tensors, key = _any_key(path, rng, least=64)
    stem = key.removesuffix(".weight")
    whole = tensors.pop(key)
    tensors |= {f"{stem}.qweight": torch.ones(4, 4, dtype=torch.int32), f"{stem}.scales": whole.flatten()[:4].clone()}
    _write(path, tensors)
    return (key, stem)


def added(path: Path, rng: random.Random) -> tuple[str, ...]:
    tensors, key = _any_key(path, rng)
    new = rng.choice([key + "_2", key.replace("0", "7"), key.replace("1", "9"), "head.weight", "extra"])
    new = new if new not in tensors else key + "_3"
    _write(path, tensors | {new: torch.ones(3)})
    return (new,)


def duplicated(path: Path, rng: random.Random) -> tuple[str, ...]:
    """Once more under the other form of its name, with other values or the same."""
    tensors, key = _any_key(path, rng)
    kind = json.loads((path / "config.json").read_text())["model_type"]
    prefix = {"bert": "bert.", "llama": "model.", "gpt2": "transformer."}[kind]
    new = key.removeprefix(prefix) if key.startswith(prefix) else f"{prefix}{key}"
    _write(path, tensors | {new: tensors[key] + rng.choice([0.0, 1.0])})
    return (key, new)


def coarser(path: Path, rng: random.Random) -> tuple[str, ...]:
    tensors, key = _any_key(path, rng)
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
    _write(path, tensors | {key: tensors[key].to(dtype)})
    return (key,)


def all_coarser(path: Path, rng: random.Random) -> tuple[str, ...]:
    dtype = rng.choice([torch.float16, torch.bfloat16])
    _write(path, {key: tensor.to(dtype) for key, tensor in _tensors(path).items()})
    if rng.random() < 0.5:
        _json(path / "config.json", lambda config: config.update(dtype=str(dtype).removeprefix("torch.")))
    return (str(dtype).removeprefix("torch."),)


def reshaped(path: Path, rng: random.Random) -> tuple[str, ...]:
    tensors, key = _any_key(path, rng, least=32)
    tensor = tensors[key]
    _write(path, tensors | {key: rng.choice([tensor[:-1], tensor.flatten(), tensor[None]]).clone()})
    return (key,)


def not_finite(path: Path, rng: random.Random) -> tuple[str, ...]:
    tensors, key = _any_key(path, rng)
    tensors[key].view(-1)[rng.randrange(tensors[key].numel())] = rng.choice([torch.nan, torch.inf])
    _write(path, tensors)
    return (key,)


def tie_said(path: Path, rng: random.Random) -> tuple[str, ...]:
    tied = AutoConfig.from_pretrained(path).tie_word_embeddings
    _json(path / "config.json", lambda config: config.update(tie_word_embeddings=not tied))
    return ("tie_word_embeddings", "lm_head", "embed", "wte")


def tie_held(path: Path, rng: random.Random) -> tuple[str, ...]:
    """A head beside tied embeddings, or none beside untied ones, whatever the config says."""
    tensors = _tensors(path)
    embedding = next(
        key for key in tensors if key.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight"))
    )
    if "lm_head.weight" in tensors:
        del tensors["lm_head.weight"]
    else:
        tensors["lm_head.weight"] = tensors[embedding] + rng.choice([0.0, 0.5])
    _write(path, tensors)
    return ("lm_head.weight", embedding)


def both_ties(path: Path, rng: random.Random) -> tuple[str, ...]:
    """Tied or untied as a whole: by config and by what the file holds."""
    tie_held(path, rng)
    return tie_said(path, rng)


def tokenizer(path: Path, rng: random.Random) -> tuple[str, ...]:
    file = path / "tokenizer.json"
    change = rng.choice(["swap", "drop", "gone", "added", "garbage", "lower"])
    words = json.loads(file.read_text())["model"]["vocab"]
    one, other = rng.sample(sorted(words), 2)
    if change == "gone":
        for found in path.glob("*token*"):
            found.unlink()
    elif change == "garbage":
        file.write_text("{oops")
    elif change == "swap":
        _json(file, lambda c: c["model"]["vocab"].update({one: words[other], other: words[one]}))
    elif change == "drop":
        _json(file, lambda c: c["model"]["vocab"].pop(one))
    elif change == "added":
        _json(file, lambda c: c["model"]["vocab"].update(entirely_new=len(words)))
    else:
        _json(file, lambda c: c.update(normalizer={"type": "Lowercase"}))
    return (one, other, "entirely_new", "tokenizer", "normalizer")


def template(path: Path, rng: random.Random) -> tuple[str, ...]:
    (path / "chat_template.jinja").write_text("{{ messages[0]['content'] }} another")
    return ("chat template",)


def generation(path: Path, rng: random.Random) -> tuple[str, ...]:
    field, value = rng.choice([("eos_token_id", 7), ("temperature", 0.3), ("max_new_tokens", 3), ("do_sample", True)])
    file = path / "generation_config.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | {field: value}))
    return (field,)


def index(path: Path, rng: random.Random) -> tuple[str, ...]:
    where = _shards(path, rng)
    key = rng.choice(sorted(where))
    change = rng.choice(["forgotten", "ghost", "elsewhere", "gone", "twice", "no metadata"])
    shards = sorted(set(where.values()))
    if change == "forgotten":
        del where[key]
    elif change == "ghost":
        where["ghost.weight"] = shards[0]
    elif change == "elsewhere":
        where[key] = next(shard for shard in shards if shard != where[key])
    elif change == "gone":
        (path / where[key]).unlink()
    elif change == "twice":
        target = next(shard for shard in shards if shard != where[key])
        save_file(
            load_file(path / target) | {key: load_file(path / where[key])[key] + 1}, path / target, {"format": "pt"}
        )
    metadata = {} if change == "no metadata" else {"metadata": {"total_size": 1}}
    (path / INDEX).write_text(json.dumps({**metadata, "weight_map": where}))
    return (key, "ghost.weight", "metadata", *(shards if change == "gone" else ()))


def second_set(path: Path, rng: random.Random) -> tuple[str, ...]:
    name = rng.choice(["pytorch_model.bin", "model.fp16.safetensors", "adapter_config.json", INDEX])
    if name == "pytorch_model.bin":
        torch.save({key: tensor + 1 for key, tensor in _tensors(path).items()}, path / name)
    else:
        (path / name).write_text('{"weight_map": {}}')
    return (name,)


def says_quantised(path: Path, rng: random.Random) -> tuple[str, ...]:
    method = rng.choice(["gptq", "awq", "bitsandbytes"])
    _json(path / "config.json", lambda config: config.update(quantization_config={"quant_method": method, "bits": 4}))
    return (method,)


MUTATIONS = (
    *(config_field,) * 6,
    *(dropped, renamed, quantised, added, duplicated, coarser, all_coarser, reshaped, not_finite),
    *(tie_said, tie_held, both_ties, tokenizer, tokenizer, template, generation, index, index, second_set),
    says_quantised,
)


def mutate(path: Path, rng: random.Random, control: bool) -> Mutation:
    """Change one thing in a directory; of the control group, nothing that counts."""
    change = rng.choice(CONTROL if control else MUTATIONS)
    words = change(path, rng)
    return Mutation("control" if change in CONTROL else change.__name__, words)
