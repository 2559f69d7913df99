"""Which files of a model directory hold its weights, and what its config says of them; nothing here loads them.

In: a directory. Out: its single weight file, or the index and the shards; refusals of weights that are not what their
files hold.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from evomerge.common.errors import CheckpointError
from evomerge.common.names import listed

FORMATS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers prefers them
WEIGHTS = re.compile(r"(model|pytorch_model)([.-].*)?\.(safetensors|bin)(\.index\.json)?")  # their names, all variants
ADAPTER = "adapter_config.json"


def weight_files(path: Path) -> list[Path]:
    """The single weight file of a model directory, or its index followed by its shards.

    Raises:
        CheckpointError: not a directory, no weights in it, or a shard is missing.
    """
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        short = not path.is_absolute() and len(path.parts) == 1
        hint = f" If it is a model on the hub, write its whole name: owner/{path}." if short else ""
        raise CheckpointError(f"{path} {what}, where a model directory must be. Check the path.{hint}")
    for name in FORMATS:
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return [path / name]
        if index.is_file():
            shards = [path / shard for shard in sorted(set(weight_map_of(index).values()))]
            if lost := [shard.name for shard in shards if not shard.is_file()]:
                raise CheckpointError(f"{index} names shards that are not there: {listed(lost)}. Download them again.")
            if not shards:
                raise CheckpointError(f"{index} names no shards. Download or copy the directory again.")
            return [index, *shards]
    if (path / ADAPTER).is_file():
        raise CheckpointError(
            f"{path} holds a PEFT adapter, not a model: give it as an expert, and the model that it was trained on as"
            " the base. To use it as a model, fold it into its base first:"
            " PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(DIR), then write DIR."
        )
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{path} holds no weights: neither {' nor '.join(FORMATS)}, with or without an index; it holds {found}."
        " Save the model with save_pretrained, or name the directory in which its weights are."
    )


def check_readable(path: Path) -> None:
    """Refuse a model directory whose weights are not what its files hold, before anything loads it.

    Raises:
        CheckpointError: config.json says that the weights are quantised or lie in other files, or an adapter is to be
            put on top of them.
    """
    if not path.is_dir():
        return  # whoever opens it says so
    config = read_json(path / "config.json")
    for part in (config, *(value for name, value in config.items() if name.endswith("_config"))):
        if isinstance(part, dict) and (given := part.get("quantization_config")):
            method = given.get("quant_method") or "by a method it does not name" if isinstance(given, dict) else given
            raise CheckpointError(
                f"{path} is quantised ({method}), as quantization_config in its config.json says: a difference of codes"
                " is no task vector. Take the model as it was before; or, for an expert, write model.dequantise=true,"
                " which takes the numbers that transformers makes of it."
            )
    if named := config.get("transformers_weights"):
        raise CheckpointError(
            f"{path}: config.json says that the weights are in {named} (transformers_weights), which is not supported."
            f" Name that file {FORMATS[0]} and take the setting out."
        )
    if (path / ADAPTER).is_file() and any(WEIGHTS.fullmatch(file.name) for file in path.iterdir()):
        raise CheckpointError(
            f"{path} holds the weights of a whole model and {ADAPTER} beside them: transformers puts that adapter on"
            f" top where PEFT is installed, and not elsewhere. Move {ADAPTER} and the adapter's weights to another"
            " directory; to merge with the adapter in it, fold it in first with merge_and_unload()."
        )


def read_json(file: Path) -> dict:
    """A JSON object from a file.

    Raises:
        CheckpointError: there is no such file, or it is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is not there: {file.parent} is no model directory. Save the model with save_pretrained."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is no valid JSON ({error}). Download or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, where a JSON object must be. Download or copy it again."
        )
    return content


def weight_map_of(index: Path) -> dict[str, str]:
    """Return tensor -> file of an index.

    Raises:
        CheckpointError: it is not one that transformers reads.
    """
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files. Download or copy it again.")
    if "metadata" not in content:
        raise CheckpointError(
            f'{index} has no metadata, and transformers does not read such an index: write "metadata": {{}} into it.'
        )
    return weight_map
