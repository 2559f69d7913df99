"""Quantised experts, as numbers: a difference of codes is no task vector, but one of the weights they stand for is.

In: a model directory whose config.json has a quantization_config. Out: a directory in the cache with the weights that
transformers makes of the codes, in the dtype that the config says, and everything else that lies beside them. It is
made once; its weights have a hash of their own, by which a recipe knows them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors.torch import save_file

from evomerge.common.digests import digest
from evomerge.common.directories import whole_directory
from evomerge.common.errors import CheckpointError
from evomerge.common.files import write_atomically
from evomerge.models.files_beside import sort_directory
from evomerge.models.pretrained import first_line, silence
from evomerge.models.vocabulary import read_object
from evomerge.models.weight_files import weight_files

FORMAT = 1
KEY = "quantization_config"
AT_LOAD: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8": ("FineGrainedFP8Config", {"dequantize": True}),
    "mxfp4": ("Mxfp4Config", {"dequantize": True}),
    "compressed-tensors": ("CompressedTensorsConfig", {"run_compressed": False}),
}
"""Methods whose weights transformers turns into numbers while it loads them: the class of the settings, and which."""


def is_quantised(path: Path) -> bool:
    """Whether config.json says that the weights are codes."""
    return bool(read_object(path / "config.json").get(KEY))


def dequantised(path: Path, auto_class: str, cache: Path) -> Path:
    """Return a directory with the weights of a model as numbers.

    Args:
        path: a model directory, quantised.
        auto_class: the transformers class to load it with.
        cache: where directories are kept.

    Raises:
        CheckpointError: transformers cannot do so here; the message names the method and the reason.
    """
    config = read_object(path / "config.json")
    method = str(config[KEY].get("quant_method") or "bitsandbytes")
    files = {file.name: _hash(file) for file in weight_files(path)}
    out = cache / "dequantised" / digest([FORMAT, transformers.__version__, config, files, auto_class])
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.waiting")):  # a second process waits, and takes what is there
        if not (out / "config.json").is_file():
            _write(path, auto_class, method, config, out)
    return out


def _write(path: Path, auto_class: str, method: str, config: dict[str, Any], out: Path) -> None:
    """Make the directory of a model with its weights as numbers."""
    try:
        model = _loaded(path, auto_class, method, config[KEY])
        tied = model.all_tied_weights_keys
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    except Exception as error:  # of whatever kind: a package that is missing, a kernel that needs a GPU
        raise CheckpointError(
            f"{path} is quantised ({method}), and transformers cannot turn it into numbers here: {first_line(error)} "
            f"Take the model as it was before it was quantised, or do so on a machine that can."
        ) from error
    if codes := [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.itemsize < 2]:
        raise CheckpointError(
            f"{path} is quantised ({method}), and {codes[0]} is still {tensors[codes[0]].dtype} after transformers has "
            f"loaded it: take the model as it was before it was quantised."
        )
    with whole_directory(out) as directory:
        for name in sort_directory(path).taken:
            copy_to = directory / name
            copy_to.parent.mkdir(parents=True, exist_ok=True)
            copy_to.write_bytes((path / name).read_bytes())
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        rest = {name: value for name, value in config.items() if name != KEY}
        write_atomically(directory / "config.json", json.dumps(rest, indent=2) + "\n")


@torch.no_grad()
def _loaded(path: Path, auto_class: str, method: str, stated: dict[str, Any]) -> Any:
    """Load a model with its weights as numbers."""
    kind = getattr(transformers, auto_class)
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "dtype": "auto"}
    with silence(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        if method not in AT_LOAD:
            return kind.from_pretrained(path, **common).dequantize()
        name, more = AT_LOAD[method]
        own = {key: value for key, value in stated.items() if key != "quant_method"}
        settings = getattr(transformers, name)(**{**own, **more})
        return kind.from_pretrained(path, quantization_config=settings, **common)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
