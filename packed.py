"""
A model whose weights lie in memory as decoding on a CPU reads them.

    decoder = PackedModel(model)
    logits = decoder(ids, cache)        # ids (B, 1) -> (B, 1, vocab_size)

A step of decoding multiplies few rows by every matrix. It takes as long as the matrices take to be
read, so their order in memory counts. PackedModel multiplies by a copy of them in another order:

    one row         transposed, (K, N)
    several rows    blocks of WIDTH outputs, (N / WIDTH, K, WIDTH): a batched product that reads
                    each block from its beginning to its end

A copy is made when a step first needs it, and again when the weights have changed.

Left out on purpose: weights of 8 bits, which were not 1.8 times as fast (LOG.md); 16 bits, for
which torch has no faster product of a single row; processors without MKL.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, ceil_to

WIDTH = 48  # the fastest of 16 to 192
MAX_ROWS = 48  # with more rows F.linear is about as fast
MIN_BYTES = 2**23  # smaller models stay in the processor's cache, in any order


def pays(model: GPT) -> bool:
    """Whether steps with this model are faster with a copy, which takes weight_bytes(model)."""
    weight = model.transformer.wte.weight
    if weight.device.type != 'cpu' or weight.dtype != torch.float32:
        return False
    compiled = model._compiled_call_impl is not None  # by model.compile(), which the copy is not
    large = weight_bytes(model) >= MIN_BYTES
    return large and not compiled and torch.backends.mkl.is_available()


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) is nn.Linear]


def weight_bytes(model: nn.Module) -> int:
    """Of the matrices that a step multiplies by."""
    return sum(linear.weight.nbytes for linear in linear_layers(model))


class PackedLinear(nn.Module):
    """A linear layer that multiplies by a copy of its weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.blocks = None  # (N / width, K, width), see PackedModel.pack()

    def forward(self, x):
        """(…, K) -> (…, N)"""
        rows = x.reshape(-1, x.shape[-1])
        if len(self.blocks) == 1:
            y = rows @ self.blocks[0]
        else:
            y = torch.bmm(rows.expand(len(self.blocks), -1, -1), self.blocks)
            y = y.transpose(0, 1).flatten(1)[:, : self.linear.out_features]  # (rows, N)
        if self.linear.bias is not None:
            y = y + self.linear.bias
        return y.view(*x.shape[:-1], -1)


class PackedModel:
    """Decoding steps of a model: one new token per row, no gradients, no dropout."""

    def __init__(self, model: GPT):
        self.layers: list[PackedLinear] = []
        self.twin = self.copy(model)
        self.versions = []  # of the weights that are packed
        self.packed = {}  # width -> the blocks of each layer

    def copy(self, module: nn.Module) -> nn.Module:
        """The module with packed linear layers. It shares all else: code, parameters, buffers."""
        if type(module) is nn.Linear:
            self.layers.append(PackedLinear(module))
            return self.layers[-1]
        twin = module.__new__(type(module))
        children = {name: self.copy(child) for name, child in module._modules.items()}
        twin.__dict__.update(module.__dict__, _modules=children, training=False)
        return twin

    def __call__(self, inputs, cache) -> torch.Tensor:
        """inputs (B, 1), B at most MAX_ROWS -> logits (B, 1, vocab_size)"""
        # 1) Weights that have changed. Every change in place raises a tensor's version
        weights = [layer.linear.weight for layer in self.layers]
        versions = [(id(weight), weight._version) for weight in weights]
        if versions != self.versions:
            self.packed.clear()
            self.versions = versions

        # 2) The order for this number of rows
        width = WIDTH if len(inputs) > 1 else None
        if width not in self.packed:
            self.packed[width] = pack(weights, width)
        for layer, blocks in zip(self.layers, self.packed[width]):
            layer.blocks = blocks
        return self.twin(inputs, cache=cache)


@torch.no_grad()
def pack(weights: list[torch.Tensor], width: int | None) -> list[torch.Tensor]:
    """Copies of matrices (N, K) in blocks (N / width, K, width), N rounded up; width None: N."""
    # 1) One piece of memory for all: numpy asks Linux to make it of large pages if it is large. The
    # processor then looks up fewer addresses
    widths = [width or len(weight) for weight in weights]
    rows = [ceil_to(len(weight), width) for weight, width in zip(weights, widths)]
    sizes = [n * weight.shape[1] for weight, n in zip(weights, rows)]
    pieces = torch.from_numpy(np.empty(sum(sizes), np.float32)).split(sizes)

    # 2) Copy
    copies = []
    for weight, width, n, piece in zip(weights, widths, rows, pieces):
        K = weight.shape[1]
        padded = F.pad(weight, (0, 0, 0, n - len(weight)))
        copies.append(piece.view(-1, K, width))
        copies[-1].copy_(padded.view(-1, width, K).transpose(1, 2))
    return copies
