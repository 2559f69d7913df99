"""UpCUNet, the upscaler of waifu2x, as a model of transformers.

In: pictures (batch, 3, height, width) with values from 0 to 1. Out: pictures of twice the size, less 18 pixels of the
input on each side, which the convolutions eat: (batch, 3, 2 · height − 72, 2 · width − 72). Height and width are
multiples of four. Two U-nets (Ronneberger et al. 2015), the second correcting the first, with squeeze-and-excitation
(Hu et al. 2018) in their depths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

MARGIN = 18
"""How many pixels of its input the network eats on each side."""


class UpCUNetConfig(PretrainedConfig):
    """The network has one size, so there is nothing to choose."""

    model_type = "upcunet"


class Convolution(nn.Conv2d):
    """A convolution without padding, and a leaky ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the features (batch, channels, height, width)."""
        return nn.functional.leaky_relu(super().forward(input), 0.1)


class Wider(nn.ConvTranspose2d):
    """Twice the height and width, and a leaky ReLU."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """Return the features, twice as high and wide."""
        return nn.functional.leaky_relu(super().forward(input, output_size), 0.1)


class Excitation(nn.Module):
    """Scale each channel by a number that comes from the means of all."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the same shape, each channel scaled."""
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class First(nn.Module):
    """One level deep, twice the size out."""

    def __init__(self) -> None:
        super().__init__()
        enter = nn.Sequential(Convolution(3, 32, 3), Convolution(32, 64, 3))
        deep = nn.Sequential(Convolution(64, 128, 3), Convolution(128, 64, 3), Excitation(64, 8))
        leave = nn.Sequential(Convolution(64, 64, 3), nn.ConvTranspose2d(64, 3, 4, 2, 3))
        self.blocks = nn.ModuleList([enter, Convolution(64, 64, 2, 2), deep, Wider(64, 64, 2, 2), leave])

    def forward(self, x: Tensor) -> Tensor:
        """Return a picture of twice the size, less 16 pixels on each side."""
        enter, down, deep, up, leave = self.blocks
        x = enter(x)
        return leave(cropped(x, 4) + up(deep(down(x))))


class Second(nn.Module):
    """Two levels deep, of the size that came in."""

    def __init__(self) -> None:
        super().__init__()
        enter = nn.Sequential(Convolution(3, 32, 3), Convolution(32, 64, 3))
        middle = nn.Sequential(Convolution(64, 64, 3), Convolution(64, 128, 3), Excitation(128, 16))
        deep = nn.Sequential(Convolution(128, 256, 3), Convolution(256, 128, 3), Excitation(128, 16))
        shallow = nn.Sequential(Convolution(128, 64, 3), Convolution(64, 64, 3), Excitation(64, 8))
        leave = nn.Sequential(Convolution(64, 64, 3), nn.Conv2d(64, 3, 3))
        down, downer = Convolution(64, 64, 2, 2), Convolution(128, 128, 2, 2)
        upper, up = Wider(128, 128, 2, 2), Wider(64, 64, 2, 2)
        self.blocks = nn.ModuleList([enter, down, middle, downer, deep, upper, shallow, up, leave])

    def forward(self, x: Tensor) -> Tensor:
        """Return a correction of the picture, less 20 pixels on each side."""
        enter, down, middle, downer, deep, upper, shallow, up, leave = self.blocks
        x = enter(x)
        y = middle(down(x))
        y = shallow(cropped(y, 4) + upper(deep(downer(y))))
        return leave(cropped(x, 16) + up(y))


class UpCUNet(PreTrainedModel):
    """The first net's picture, corrected by the second."""

    config_class = UpCUNetConfig

    def __init__(self, config: UpCUNetConfig) -> None:
        super().__init__(config)
        self.first, self.second = First(), Second()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave what torch draws."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the picture (batch, 3, 2 · height − 72, 2 · width − 72)."""
        x = self.first(pixels)
        return self.second(x) + cropped(x, 20)


def cropped(x: Tensor, by: int) -> Tensor:
    """Return x (batch, channels, height, width) without `by` pixels on each side."""
    return x[..., by:-by, by:-by]


AutoConfig.register(UpCUNetConfig.model_type, UpCUNetConfig)
AutoModel.register(UpCUNetConfig, UpCUNet)
