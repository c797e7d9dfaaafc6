"""
Extras: two small additions to the Transformer. Each is a switch of GPTConfig, and 'plus' is the
preset with both.

    value_embeds       ValueEmbedding    a layer's values also depend on the token alone
    smear              Smear             a token's embedding gets a share of the one before

They cost almost no FLOPs: tables are looked up, gates read a few channels, the rest are sums. No
class of transformers has them, so a model with one is exported with its own code.

Both are in nanochat's gpt.py (July 2026), and come from the records of modded-nanogpt. Gains are in
validation loss against 'nano' at the same rates: together 0.17 nats at depths 1 and 2 and 0.11 at
depth 3 (one seed), after 500 steps of 8,192 tokens (LOG.md). Deeper, 'nano' was not run.
"""

import torch
import torch.nn as nn

EXTRAS = ('value_embeds', 'smear')
GATE_CHANNELS = 16  # of its input, which a gate reads
SHARE = 0.1  # Smear's, at first


class Gate(nn.Module):
    """A number in (0, 1) for each token and output, from the first channels of x. It starts at
    1/2."""

    def __init__(self, config, outputs: int):
        super().__init__()
        self.channels = min(GATE_CHANNELS, config.n_embd)
        self.c_gate = nn.Linear(self.channels, outputs, bias=False)

    def forward(self, x):
        """(B, T, C) -> (B, T, outputs)"""
        return self.c_gate(x[..., : self.channels]).sigmoid()


class ValueEmbedding(nn.Module):
    """
    A layer's second embedding table. A token's row is added to its values, gated per head, so that
    the layer need not compute what follows from the token alone (value residual: Zhou et al., 2024,
    arXiv 2410.17897). Alone: 0.08 nats at depth 2 after 200 steps, one seed.
    """

    def __init__(self, config):
        super().__init__()
        rows = -(-config.vocab_size // 64) * 64  # as many as wte has
        self.wve = nn.Embedding(rows, config.n_kv_head * config.head_dim)
        self.gate = Gate(config, config.n_kv_head)

    def forward(self, v, x, inputs):
        """v (B, T, H_kv, D), the values of x (B, T, C), whose ids are inputs (B, T) -> like v."""
        row = self.wve(inputs).view(v.shape).to(v.dtype)
        return v + 2 * self.gate(x)[..., None] * row


class Smear(nn.Module):
    """Adds a share of the embedding before to each token's, gated, so that the first layer already
    reads pairs of tokens. Alone: 0.07 nats, as above."""

    def __init__(self, config):
        super().__init__()
        self.gate = Gate(config, 1)
        self.share = nn.Parameter(torch.empty(1))

    def forward(self, x, before, starts):
        """x (B, T, C); before (B, T, C) the embedding of the token before each; starts (B or 1, T)
        True where none is before -> (B, T, C)."""
        share = self.share * self.gate(x)  # (B, T, 1)
        return x + share.masked_fill(starts[..., None], 0.0) * before
