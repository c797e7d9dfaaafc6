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

from model import GPT, Norm, ceil_to
from moe import MoE

WIDTH = 48  # the fastest of 16 to 192
MAX_ROWS = 48  # with more rows F.linear is about as fast
MIN_BYTES = 2**23  # with smaller matrices it makes little difference


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
    """Of the matrices that are copied. Those of experts are not: a step reads a few of them."""
    experts = [x for module in model.modules() if isinstance(module, MoE) for x in module.modules()]
    copied = [linear for linear in linear_layers(model) if linear not in experts]
    return sum(linear.weight.nbytes for linear in copied)


class PackedLinear(nn.Module):
    """A linear layer that multiplies by a copy of its weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        # plain attributes: to look up a module's parameter takes as long as a small operation
        self.outputs = linear.out_features
        self.biased = linear.bias is not None
        self.packed = None  # (K, N) or (N / WIDTH, K, WIDTH), see pack()

    def forward(self, x):
        """(…, K) -> (…, N)"""
        if self.packed.dim() == 2:
            y = x @ self.packed
        else:
            rows = x.reshape(-1, x.shape[-1]).expand(len(self.packed), -1, -1)
            y = torch.bmm(rows, self.packed)  # (N / WIDTH, rows, WIDTH)
            y = y.transpose(0, 1).reshape(*x.shape[:-1], len(self.packed) * WIDTH)
            y = y[..., : self.outputs]
        return y + self.linear.bias if self.biased else y


class PackedNorm(nn.Module):
    """RMSNorm of few rows, where each operation costs more than its arithmetic: F.rms_norm takes
    nine of them on a CPU, this four."""

    def __init__(self, norm: Norm):
        super().__init__()
        self.norm = norm
        self.eps = torch.tensor(norm.eps)

    def forward(self, x):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self.eps, length, length, value=1 / self.norm.size).rsqrt_()
        return x * scale if self.norm.weight is None else x * scale * self.norm.weight


class PackedModel:
    """Decoding steps of a model: one new token per row, no gradients, no dropout."""

    def __init__(self, model: GPT):
        self.layers: list[PackedLinear] = []
        self.twin = self.copy(model)
        self.linears = [layer.linear for layer in self.layers]
        self.weights = []  # those that are packed
        self.versions = []  # and what they were then
        self.packed = {}  # whether a step has several rows -> each layer's copy
        self.current = None  # the key of the copies that the layers have now

    @property
    def nbytes(self) -> int:
        """Memory of the copies made so far."""
        return sum(copy.nbytes for copies in self.packed.values() for copy in copies)

    def copy(self, module: nn.Module) -> nn.Module:
        """The module with packed layers. It shares all else: code, parameters, buffers."""
        if type(module) is nn.Linear:
            self.layers.append(PackedLinear(module))
            return self.layers[-1]
        if isinstance(module, Norm) and module.kind != 'layer':
            return PackedNorm(module)
        twin = module.__new__(type(module))
        children = dict(module._modules)
        if not isinstance(module, MoE):  # which takes the matrices of its experts apart
            children = {name: self.copy(child) for name, child in children.items()}
        twin.__dict__.update(module.__dict__, _modules=children, training=False)
        return twin

    def __call__(self, inputs, cache) -> torch.Tensor:
        """inputs (B, 1), B at most MAX_ROWS -> logits (B, 1, vocab_size)"""
        # 1) Drop copies of weights that have changed. Every change in place raises a tensor's
        # version; only one by way of .data does not
        weights = [linear.weight for linear in self.linears]
        versions = [(id(weight), weight.data_ptr(), weight._version) for weight in weights]
        if versions != self.versions:
            self.packed.clear()
            self.current = None
            self.versions = versions
            self.weights = weights  # kept, so that no other tensor can get the id of one

        # 2) The order for this number of rows
        several = len(inputs) > 1
        if several not in self.packed:
            self.packed[several] = pack(weights, WIDTH if several else None)
        if several != self.current:
            self.current = several
            for layer, packed in zip(self.layers, self.packed[several]):
                layer.packed = packed
        return self.twin(inputs, cache=cache)


@torch.no_grad()
def pack(weights: list[torch.Tensor], width: int | None) -> list[torch.Tensor]:
    """Copies of matrices (N, K) as (N / width, K, width), N rounded up; width None: as (K, N)."""
    # 1) One piece of memory for all. If it is large, numpy asks Linux to make it of large pages:
    # the processor then looks up fewer addresses, up to a quarter of the time
    widths = [width or len(weight) for weight in weights]
    rows = [ceil_to(len(weight), width) for weight, width in zip(weights, widths)]
    sizes = [n * weight.shape[1] for weight, n in zip(weights, rows)]
    pieces = torch.from_numpy(np.empty(sum(sizes), np.float32)).split(sizes)

    # 2) Copy
    copies = []
    for weight, block, n, piece in zip(weights, widths, rows, pieces):
        K = weight.shape[1]
        padded = F.pad(weight, (0, 0, 0, n - len(weight)))
        copy = piece.view(-1, K, block)
        copy.copy_(padded.view(-1, block, K).transpose(1, 2))
        copies.append(copy if width else copy[0])
    return copies
