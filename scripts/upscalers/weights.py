"""Weights of UpCUNet in the form of ncnn, read into the network of this package.

In: a `.bin` file: for each layer in the order of the network a mark of four bytes (float16 or float32), its weights
(float16 filled up to four bytes), and its biases in float32. Out: the network.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from upscalers.network import UpCUNet, UpCUNetConfig

HALF, SINGLE = 0x01306B47, 0


def read(path: Path) -> UpCUNet:
    """Return the network with the weights of the file.

    Raises:
        ValueError: a layer is of another kind of numbers, or the file is of another length.
    """
    network, data, at = UpCUNet(UpCUNetConfig()), path.read_bytes(), 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            mark, at = int.from_bytes(data[at : at + 4], "little"), at + 4
            if mark not in (HALF, SINGLE):
                raise ValueError(f"{path}: {name} is neither float16 nor float32; its mark is {mark:#x}")
            weight, at = numbers(data, at, np.float16 if mark == HALF else np.float32, layer.weight.numel())
            bias, at = numbers(data, at, np.float32, layer.out_channels)
            layer.load_state_dict({"weight": shaped(weight, layer), "bias": bias})
    if at != len(data):
        raise ValueError(f"{path} has {len(data)} bytes, and the network {at}")
    return network


def numbers(data: bytes, at: int, kind: type[np.floating], count: int) -> tuple[Tensor, int]:
    """Return `count` numbers from byte `at` on in float32, and the byte after them, a multiple of four."""
    found = np.frombuffer(data, kind, count, at).astype(np.float32)
    return torch.from_numpy(found), at + (found.size * np.dtype(kind).itemsize + 3) // 4 * 4


def shaped(weight: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """Return flat weights in a layer's shape: ncnn has outputs first, torch's transposed convolutions inputs first."""
    if isinstance(layer, nn.Conv2d):
        return weight.view(layer.weight.shape)
    inputs, outputs, *rest = layer.weight.shape
    return weight.view(outputs, inputs, *rest).transpose(0, 1).contiguous()
