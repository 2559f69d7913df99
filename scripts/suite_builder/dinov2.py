"""DINOv2 (Oquab et al. 2023) from an ONNX file: its initialisers become the parameters of transformers' model.

In: a file that torch exported from a model with a `backbone`. Out: a `Dinov2Model`. What torch kept by name is taken by
name. Weights of linear layers come as `onnx::MatMul_N`, transposed; the layer is said by the path of the node that uses
them: `/backbone/encoder/layer.0/mlp/fc1/MatMul`. The table of positions comes in two, that of CLS and those of patches.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

from evomerge.common.errors import SuiteError
from evomerge.models.pretrained import rename_keys

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "image_size": 518, "patch_size": 14}
PREFIX = "backbone."


def read_dinov2(file: Path, sizes: Mapping[str, Any] = SMALL) -> Dinov2Model:
    """Read a DINOv2.

    Args:
        file: the ONNX file; what else it holds, a decoder say, is left out.
        sizes: of its configuration.

    Raises:
        SuiteError: it cannot be read, or does not hold exactly the parameters of this model.
    """
    try:
        graph = onnx.load(file).graph
    except Exception as error:  # damaged bytes: whatever protobuf raises
        raise SuiteError(f"{file} is no ONNX file ({error}): remove it and what it was unpacked from") from None
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
        model = Dinov2Model(Dinov2Config(**sizes)).eval()
    found = dict(_parameters(graph, sizes["hidden_size"]))
    names = rename_keys(model, found)
    weights = {str(names[key]): torch.from_numpy(array.copy()) for key, array in found.items()}
    weights["embeddings.mask_token"] = torch.zeros(1, sizes["hidden_size"])  # of pretraining alone: no export has it
    shapes, expected = (
        {name: tuple(tensor.shape) for name, tensor in state.items()} for state in (weights, model.state_dict())
    )
    if odd := {name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name)}:
        raise SuiteError(f"{file} does not hold this DINOv2: {len(odd)} parameters differ, like {min(odd)}")
    model.load_state_dict(weights)
    return model


def _parameters(graph: Any, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and values of the backbone's parameters, names as the exported model had them."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, array in arrays.items():
        if name.startswith(PREFIX):
            yield name.removeprefix(PREFIX), array
    for node in graph.node:
        path = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and path.startswith(PREFIX):
            for name in node.input:
                if name in arrays:
                    yield f"{path.removeprefix(PREFIX).removesuffix('.MatMul')}.weight", arrays[name].T
    nameless = [array for name, array in arrays.items() if name.startswith("onnx::") and array.shape[::2] == (1, width)]
    tables = sorted((array for array in nameless if array.ndim == 3), key=lambda array: array.shape[1])
    if tables:
        yield "embeddings.position_embeddings", np.concatenate(tables, axis=1)
