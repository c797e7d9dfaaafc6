"""
A model whose weights lie in memory as inference on a CPU reads them.

    packed = PackedModel(model)
    logits = packed(1)(ids, cache=cache)        # a step of one row: ids (1, 1)
    logits = packed(B * T)(ids, cache=cache)    # ids (B, T)

A product of few rows takes as long as the matrix takes to be read, so the order of its numbers
counts. The layers of PackedModel multiply by copies of the matrices in another order:

    one row         blocks of WIDTH outputs, (N / WIDTH, K, WIDTH): a batched product that reads
                    each block from its beginning to its end
    several rows    the order of oneDNN, torch's library for such products

A copy is made when a pass first needs it, and again when the weights have changed.

Left out on purpose: weights of 8 bits, which were not 1.8 times as fast (LOG.md); 16 bits, for
which torch has no faster product of a single row; processors without MKL.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, Norm, ceil_to
from moe import MoE

WIDTH = 16  # the fastest of 8 to 384
MIN_BYTES = 2**23  # of both copies; with smaller ones it makes little difference


def pays(model: GPT) -> bool:
    """Whether inference with this model is faster with copies, which take weight_bytes(model)."""
    weight = model.transformer.wte.weight
    if weight.device.type != 'cpu' or weight.dtype != torch.float32:
        return False
    compiled = model._compiled_call_impl is not None  # by model.compile(), which the copy is not
    large = weight_bytes(model) >= MIN_BYTES
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return large and not compiled and libraries


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) is nn.Linear]


def weight_bytes(model: nn.Module) -> int:
    """Of both copies of the matrices. Those of experts are not copied: a pass reads a few of
    them."""
    experts = [x for module in model.modules() if isinstance(module, MoE) for x in module.modules()]
    copied = [linear for linear in linear_layers(model) if linear not in experts]
    return 2 * sum(linear.weight.nbytes for linear in copied)


class PackedLinear(nn.Module):
    """A linear layer that multiplies by a copy of its weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        # plain attributes: to look up a module's parameter takes as long as a small operation
        self.outputs = linear.out_features
        self.biased = linear.bias is not None
        self.packed = None  # in oneDNN's order, or (N / WIDTH, K, WIDTH) for one row

    def forward(self, x):
        """(…, K) -> (…, N)"""
        bias = self.linear.bias if self.biased else None
        if self.packed.is_mkldnn:  # by the operator of torch's compiler; none has a public name
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, 'none', [], '')
        row = x.reshape(1, 1, -1).expand(len(self.packed), -1, -1)
        y = torch.bmm(row, self.packed)  # (N / WIDTH, 1, WIDTH)
        y = y.view(*x.shape[:-1], -1)[..., : self.outputs]
        return y + bias if self.biased else y


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
    """Passes of a model without gradients and dropout."""

    def __init__(self, model: GPT):
        self.layers: list[PackedLinear] = []
        self.twin = self.copy(model)
        self.linears = [layer.linear for layer in self.layers]
        self.weights = []  # those that are packed
        self.versions = []  # and what they were then
        self.packed = {}  # whether a pass has several rows -> each layer's copy
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

    def __call__(self, tokens: int) -> GPT:
        """The model for a pass over this many tokens, those of all rows together."""
        # 1) Drop copies of weights that have changed. Every change in place raises a tensor's
        # version; only one by way of .data does not
        weights = [linear.weight for linear in self.linears]
        versions = [(id(weight), weight.data_ptr(), weight._version) for weight in weights]
        if versions != self.versions:
            self.packed.clear()
            self.current = None
            self.versions = versions
            self.weights = weights  # kept, so that no other tensor can get the id of one

        # 2) The order for this number of tokens
        several = tokens > 1
        if several not in self.packed:
            self.packed[several] = for_several(weights) if several else for_one(weights)
        if several != self.current:
            self.current = several
            for layer, packed in zip(self.layers, self.packed[several]):
                layer.packed = packed
        return self.twin


@torch.no_grad()
def for_several(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of matrices in the order that oneDNN prefers on this processor."""
    return [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in weights]


@torch.no_grad()
def for_one(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of matrices (N, K) as (N / WIDTH, K, WIDTH), N rounded up."""
    # 1) One piece of memory for all. If it is large, numpy asks Linux to make it of large pages:
    # the processor then looks up fewer addresses, up to a quarter of the time
    rows = [ceil_to(len(weight), WIDTH) for weight in weights]
    sizes = [n * weight.shape[1] for weight, n in zip(weights, rows)]
    pieces = torch.from_numpy(np.empty(sum(sizes), np.float32)).split(sizes)

    # 2) Copy
    copies = []
    for weight, n, piece in zip(weights, rows, pieces):
        K = weight.shape[1]
        padded = F.pad(weight, (0, 0, 0, n - len(weight)))
        copy = piece.view(-1, K, WIDTH)
        copy.copy_(padded.view(-1, WIDTH, K).transpose(1, 2))
        copies.append(copy)
    return copies
