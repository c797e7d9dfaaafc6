"""
Mixture of experts (Shazeer et al., 2017): a layer has several MLPs, and each token uses a few of
them. The model holds more parameters for the same FLOPs per token.

    MoE        routed experts, of which a router chooses n_expert_active for each token, and shared
               experts, which every token passes
    Usage      the balance loss of each row
    Balance    adds it to the gradient

Without a balance loss a router prefers the experts that it has trained most, and the others starve.
The balance loss of a row of T tokens is the sum over experts of n_expert / (n_expert_active * T) *
(tokens that chose it) * (its mean probability), from Switch (Fedus et al., 2021), per row as in
DeepSeek-V2. It is 1 where all experts are used alike. Because it belongs to one row, the gradient
does not depend on how rows are split into micro-batches and over ranks.

No token is dropped. The experts' matrices are stacked in one matrix, under the names that an MLP
has, which Muon takes apart.

An expert's product has as many rows as tokens chose it. So unlike in a dense model, the last bits
of a float32 row depend on its neighbours, also at a fixed number of rows.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Balance(torch.autograd.Function):
    """
    Returns nll (B, T) as it is. In backward the balance loss (B,) gets a gradient of its own:
    `weight` times the sum over the row of |gradient of nll|.

    That sum is the row's share of the step, whatever the stage. As a term of the loss, the balance
    loss would be multiplied by the stage's weights, and the negative advantages of reinforcement
    learning would reward imbalance.
    """

    @staticmethod
    def forward(ctx, nll, loss, weight):
        ctx.weight = weight
        return nll.view_as(nll)

    @staticmethod
    def backward(ctx, grad):
        return grad, ctx.weight * grad.abs().sum(dim=1), None


class Usage:
    """
    How the tokens of a forward pass use the experts of its layers. inputs (B, T) ids.

    Padding does not count: its tokens are alike, choose the same experts and teach nothing. It is
    the run of one id that ends a row, without the first of them; or the whole row.
    """

    def __init__(self, inputs):
        places = torch.arange(inputs.shape[1], device=inputs.device)
        before = inputs != inputs[:, -1:]
        start = (places * before).amax(1, keepdim=True) + 1  # of the run
        self.counted = (places <= start) & before.any(1, keepdim=True)  # (B, T)
        self.losses = []  # of each layer, (B,)

    def loss(self):
        return sum(self.losses)

    def add(self, probabilities, chosen):
        """A layer's probabilities (B, T, n_expert) and choices (B, T, n_active) -> (B, n_expert)
        how many tokens of each row chose each expert."""
        n_expert = probabilities.shape[-1]
        tokens = self.counted.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        every = torch.arange(n_expert, device=chosen.device)
        hits = (chosen[..., None] == every) & self.counted[..., None, None]
        counts = hits.sum((1, 2))
        mean = (probabilities * self.counted[..., None]).sum(1) / tokens
        used = n_expert * counts.to(mean.dtype) / (chosen.shape[-1] * tokens)  # 1 if even
        self.losses.append((used * mean).sum(-1))
        return counts


class MoE(nn.Module):
    """
    Takes the place of a layer's MLP. config: a model.GPTConfig; n_hidden is the width of one
    expert. activate: (x, config.mlp) -> x, the nonlinearity.

    load (n_expert,) counts the tokens of training that each routed expert got.
    """

    def __init__(self, config, activate):
        super().__init__()
        self.kind = config.mlp
        self.activate = activate
        self.dropout = config.dropout
        self.n_expert = config.n_expert
        self.n_active = config.n_expert_active
        self.count = config.n_expert + config.n_expert_shared  # the shared ones come last
        stacked = 2 if config.mlp == 'swiglu' else 1
        sizes = [config.n_hidden] * (stacked * self.count)
        self.blocks = {'c_fc': sizes, 'c_proj': [config.n_embd] * self.count}
        self.router = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.c_fc = nn.Linear(config.n_embd, sum(sizes), bias=False)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd * self.count, bias=False)
        load = torch.zeros(config.n_expert, dtype=torch.int64)
        self.register_buffer('load', load, persistent=False)

    def forward(self, x, usage=None):
        """x (B, T, C) -> (B, T, C). usage: a Usage to add this layer to, or None."""
        B, T, C = x.shape

        # 1) Each token chooses its experts. Their probabilities, scaled to a sum of 1, are shares
        logits = self.router(x)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        shares, chosen = probabilities.topk(self.n_active)  # (B, T, n_active) each
        shares = shares / shares.sum(-1, keepdim=True)
        if usage is not None:
            counts = usage.add(probabilities, chosen)
            if self.training:
                self.load += counts.sum(0)

        # 2) Sort the pairs of token and expert by expert, compute, and undo the sorting
        tokens = x.flatten(0, 1)  # (N, C)
        order = chosen.flatten().argsort(stable=True)  # (N * n_active,)
        every = torch.arange(self.n_expert, device=x.device)
        sizes = (chosen.flatten() == every[:, None]).sum(1)  # (n_expert,) tokens of each expert
        y = self.routed(tokens.index_select(0, order // self.n_active), sizes)
        y = y.index_select(0, order.argsort()).view(B, T, self.n_active, C)
        y = (shares[..., None].to(y.dtype) * y).sum(-2)

        # 3) Shared experts
        for c_fc, c_proj in list(zip(*self.matrices()))[self.n_expert :]:
            y = y + self.expert(x, c_fc, c_proj)
        return F.dropout(y, self.dropout, self.training)

    def matrices(self):
        """The experts' matrices, (rows, C) and (C, n_hidden) each."""
        return (
            self.c_fc.weight.view(self.count, -1, self.c_fc.in_features).unbind(),
            self.c_proj.weight.view(self.count, -1, self.c_proj.in_features).unbind(),
        )

    def expert(self, x, c_fc, c_proj):
        return F.linear(self.activate(F.linear(x, c_fc), self.kind), c_proj)

    def routed(self, x, sizes):
        """x (n, C), sorted by expert; sizes (n_expert,) its rows for each -> (n, C)."""
        if is_grouped(x):
            return self.grouped(x, sizes)
        # Compiled code would be compiled again for each new set of sizes
        compiling = torch.compiler.is_compiling()
        one_by_one = torch.compiler.disable(self.one_by_one) if compiling else self.one_by_one
        return one_by_one(x, sizes)

    def one_by_one(self, x, sizes):
        """A product for each expert. On CUDA, reading the sizes waits for the device."""
        # the meta device has no numbers
        parts = x.tensor_split(self.n_expert) if x.is_meta else x.split(sizes.tolist())
        return torch.cat([self.expert(*of_expert) for of_expert in zip(parts, *self.matrices())])

    def grouped(self, x, sizes):
        """All experts by two calls of a grouped product, whose shapes are fixed."""
        ends = sizes.cumsum(0).to(torch.int32)
        c_fc, c_proj = (
            torch.stack(of_all[: self.n_expert]).to(x.dtype).mT for of_all in self.matrices()
        )
        x = self.activate(F.grouped_mm(x, c_fc, offs=ends), self.kind)
        return F.grouped_mm(x, c_proj, offs=ends)


def is_grouped(x) -> bool:
    """Whether torch has a grouped product for x: in bf16 on CUDA, from torch 2.10 on (not measured
    here)."""
    return x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, 'grouped_mm')


def take_load(model) -> torch.Tensor:
    """(n_layer, n_expert) the tokens that each routed expert got in training since the last call.
    Waits for the device."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    load = torch.stack([layer.load for layer in layers]).cpu()
    for layer in layers:
        layer.load.zero_()
    return load
