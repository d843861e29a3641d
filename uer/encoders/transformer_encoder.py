"""A stack of transformer layers that attend to every real token."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.padding import RealTokens
from uer.layers.transformer import TransformerLayer
from uer.sizes import BertSizes


class TransformerEncoder(nn.Module):
    """The layers, one after another. The last one computes nothing for positions that nobody wants."""

    def __init__(self, sizes: BertSizes, **layer_options):
        super().__init__()
        self.transformer = nn.ModuleList([TransformerLayer(sizes, layer, **layer_options) for layer in sizes.layers])

    def layers(self) -> list[TransformerLayer]:
        """The layers, bottom first."""
        return list(self.transformer)  # type: ignore[arg-type]

    def below(self, hidden: torch.Tensor, mask: torch.Tensor | None, real: RealTokens | None = None) -> torch.Tensor:
        """What the last layer is given, [batch, seq, hidden], or packed as `hidden` is."""
        for layer in self.layers()[:-1]:
            hidden = layer(hidden, mask, real=real)
        return hidden
