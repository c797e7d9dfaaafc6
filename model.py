"""
The whole model: a decoder-only Transformer that covers GPT-2, NanoChat, Llama and Qwen3 by its settings.

    model = GPT(GPTConfig(vocab_size=65, **PRESETS['nano']))
    nll = model(inputs, targets)            # (B, T) nats, one number per target: what to do with them is the caller's business
    logits = model(inputs)                  # (B, T, vocab_size)
    logits = model(inputs, cache=cache)     # the same for a continuation: keys and values of what came before are in the cache

Letters in shapes: B rows, T tokens of a row, C = n_embd, H heads, D = head_dim, S slots of the cache.

Left out on purpose: optimizers, checkpoints, sampling and other people's weights, which have files of their own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# A preset is a row of settings. train.py takes any of them one by one too, so that each can be compared alone.
PRESETS = {
    'nano': dict(
        norm='rms', positions='rope', qk_norm='rms', mlp='relu2', tied_head=False,
        embed_norm=True, softcap=15.0, norm_eps=1e-6, rope_theta=10000.0, zero_init=True, init_std=0.0,
    ),
    'gpt2': dict(
        norm='layer', positions='learned', qk_norm='none', mlp='gelu', tied_head=True,
        embed_norm=False, softcap=0.0, norm_eps=1e-5, rope_theta=10000.0, zero_init=False, init_std=0.02,
    ),
    'llama': dict(
        norm='rms_gain', positions='rope', qk_norm='none', mlp='swiglu', tied_head=False,
        embed_norm=False, softcap=0.0, norm_eps=1e-5, rope_theta=10000.0, zero_init=False, init_std=0.02,
    ),
    'qwen3': dict(
        norm='rms_gain', positions='rope', qk_norm='rms_gain', mlp='swiglu', tied_head=True,
        embed_norm=False, softcap=0.0, norm_eps=1e-6, rope_theta=1000000.0, zero_init=False, init_std=0.02,
    ),
}  # fmt: skip

CHOICES = {
    'norm': ('rms', 'rms_gain', 'layer'),
    'positions': ('rope', 'learned'),
    'qk_norm': ('none', 'rms', 'rms_gain'),
    'mlp': ('relu2', 'gelu', 'swiglu'),
}

LOGITS_BYTES = 2**30  # float32 logits of a micro-batch beyond this are never all in memory at once


@dataclass
class GPTConfig:
    """The architecture. The defaults are the preset 'nano'."""

    vocab_size: int = 50304  # ids that exist, special tokens included
    block_size: int = 1024  # tokens of a row, and the longest context
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = 0  # heads of keys and values (GQA: Ainslie et al., 2023); 0 is n_head
    n_embd: int = 768
    head_dim: int = 0  # 0 is n_embd / n_head
    n_hidden: int = 0  # width of the MLP; 0 is 4 * n_embd, and for swiglu 8/3 * n_embd rounded up to 64
    dropout: float = 0.0
    bias: bool = False  # in linear layers and LayerNorm, as GPT-2 has it
    norm: str = 'rms'  # rms | rms_gain | layer
    norm_eps: float = 1e-6
    positions: str = 'rope'  # rope | learned
    rope_theta: float = 10000.0
    qk_norm: str = 'rms'  # none | rms | rms_gain
    mlp: str = 'relu2'  # relu2 | gelu | swiglu
    tied_head: bool = False  # the head is the embedding table
    embed_norm: bool = True  # a norm right after the embedding
    softcap: float = 15.0  # logits are squeezed into (-softcap, softcap); 0 is off
    init_std: float = 0.0  # standard deviation of the first weights; 0 is 1 / sqrt(fan-in)
    zero_init: bool = True  # what writes into the residual stream, and an untied head, starts at zero

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SystemExit(f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}")
        least = dict(vocab_size=1, block_size=1, n_layer=1, n_head=1, n_embd=1, n_kv_head=0, head_dim=0, n_hidden=0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SystemExit(f'{name} is {getattr(self, name)}, expected at least {minimum}')
        if not self.head_dim and self.n_embd % self.n_head:
            raise SystemExit(f'n_embd is {self.n_embd}, expected a multiple of n_head = {self.n_head} (or set head_dim)')
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_kv_head = self.n_kv_head or self.n_head
        if self.n_head % self.n_kv_head:
            raise SystemExit(f'n_head is {self.n_head}, expected a multiple of n_kv_head = {self.n_kv_head}')
        if self.positions == 'rope' and self.head_dim % 2:
            raise SystemExit(f'head_dim is {self.head_dim}, expected an even number: RoPE turns pairs')
        if not self.n_hidden:
            self.n_hidden = -(-8 * self.n_embd // 3 // 64) * 64 if self.mlp == 'swiglu' else 4 * self.n_embd


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang and Sennrich, 2019) with or without a learned gain."""

    def __init__(self, size: int, kind: str, eps: float, bias: bool = False):
        super().__init__()
        self.size, self.kind, self.eps = size, kind, eps
        self.weight = None if kind == 'rms' else nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if kind == 'layer' and bias else None

    def forward(self, x):
        if self.kind == 'layer':
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        return F.rms_norm(x, (self.size,), self.weight, self.eps)


def rotate(x, cos, sin):
    """RoPE (Su et al., 2021): dimension i and i + D/2 are a point that turns by an angle proportional to its position.

    x (B, H, T, D), cos and sin (B or 1, 1, T, D/2). The sense and the pairing are Llama's.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.dropout, self.head_dim = layer, config.dropout, config.head_dim
        self.heads = (config.n_head, config.n_kv_head, config.n_kv_head)  # of q, k, v
        self.blocks = tuple(n * config.head_dim for n in self.heads)  # rows of c_attn that are q, k, v
        self.c_attn = nn.Linear(config.n_embd, sum(self.blocks), bias=config.bias)
        self.c_proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=config.bias)
        if config.qk_norm != 'none':
            self.q_norm = Norm(config.head_dim, config.qk_norm, config.norm_eps)
            self.k_norm = Norm(config.head_dim, config.qk_norm, config.norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x, rotation, cache=None, positions=None, mask=None):
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).split(self.blocks, dim=-1)
        q, k, v = (y.view(B, T, h, self.head_dim).transpose(1, 2) for y, h in zip((q, k, v), self.heads))  # (B, H, T, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if q.dtype != v.dtype:  # under autocast a norm answers in float32
            q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = self.remember(cache, positions, k, v, mask.shape[-1])
        y = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=mask, is_causal=cache is None, dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.heads[0] != self.heads[1],
        )  # (B, H, T, D), Flash Attention on CUDA  # fmt: skip
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, -1))
        return F.dropout(y, self.dropout, self.training)

    def remember(self, cache, positions, k, v, width):
        """Write k, v (B, Hkv, T, D) at each row's positions (B, T); return all keys and values so far (B, Hkv, width, D)."""
        slots = positions[:, None, :, None].expand_as(k)
        out = []
        for kept, new in ((cache.keys[self.layer], k), (cache.values[self.layer], v)):
            kept.scatter_(2, slots, new.to(kept.dtype))
            out.append(kept[:, :, :width].to(new.dtype))
        return out


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind, self.dropout = config.mlp, config.dropout
        # rows of c_fc: for swiglu (Shazeer, 2020) the gate, then what passes through it
        self.blocks = (config.n_hidden,) * (2 if config.mlp == 'swiglu' else 1)
        self.c_fc = nn.Linear(config.n_embd, sum(self.blocks), bias=config.bias)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        x = self.c_fc(x)
        if self.kind == 'swiglu':
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        elif self.kind == 'relu2':  # So et al., 2021
            x = F.relu(x).square()
        else:
            x = F.gelu(x, approximate='tanh')  # GPT-2's
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = Norm(config.n_embd, config.norm, config.norm_eps, config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = Norm(config.n_embd, config.norm, config.norm_eps, config.bias)
        self.mlp = MLP(config)

    def forward(self, x, *where):
        x = x + self.attn(self.ln_1(x), *where)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        rows = -(-config.vocab_size // 64) * 64  # tensor cores like tables of a multiple of 64 rows
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(rows, config.n_embd),
                h=nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                ln_f=Norm(config.n_embd, config.norm, config.norm_eps, config.bias),
            )
        )
        if config.positions == 'learned':
            self.transformer.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
            angles = torch.outer(torch.arange(config.block_size, dtype=torch.float32), frequencies)  # (T, D/2)
            self.register_buffer('cos', angles.cos(), persistent=False)
            self.register_buffer('sin', angles.sin(), persistent=False)
        self.embed_norm = Norm(config.n_embd, 'rms', config.norm_eps) if config.embed_norm else nn.Identity()
        self.lm_head = nn.Linear(config.n_embd, rows, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.transformer.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Every first weight is set here. A parameter that no line knows is an error."""
        config = self.config
        for name, p in self.named_parameters():
            layer, kind = f'.{name}'.split('.')[-2:]  # a parameter of the model itself has no layer
            lookup = layer in ('wte', 'wpe') and not config.tied_head  # a tied table multiplies as well
            fan_in = 1 if lookup else p.shape[-1]
            std = config.init_std or fan_in**-0.5
            if kind == 'bias':
                p.zero_()
            elif layer in ('ln_1', 'ln_2', 'ln_f', 'q_norm', 'k_norm'):
                p.fill_(1.0)
            elif layer in ('c_proj', 'lm_head') and config.zero_init:
                p.zero_()
            elif layer == 'c_proj':  # 2 * n_layer of them add up in the residual stream (GPT-2)
                p.normal_(0.0, std / math.sqrt(2 * config.n_layer))
            elif layer in ('wte', 'wpe', 'lm_head', 'c_attn', 'c_fc'):
                p.normal_(0.0, std)
            else:
                raise ValueError(f'init_weights does not know {name}')

    def forward(self, inputs, targets=None, cache=None):
        """inputs and targets (B, T) ids.

        Returns the negative log-likelihood of each target in nats, (B, T) float32; without targets the logits (B, T, vocab_size).
        cache holds keys and values (n_layer, B, n_kv_head, S, head_dim), lengths (B,), how many of them are valid, and width,
        how many slots to look at. The new tokens' keys and values are written behind them; lengths is the owner's to advance.
        """
        x = self.hidden(inputs, cache)
        if targets is None:
            return self.logits(x)
        x, targets = x.flatten(0, 1), targets.flatten()
        pieces = -(-4 * len(targets) * self.config.vocab_size // LOGITS_BYTES)
        if pieces == 1:
            nll = self.nll(x, targets)
        else:  # one piece's logits at a time, made again in backward: a d20 step takes more time for it and 1 / pieces of the memory
            parts = zip(x.chunk(pieces), targets.chunk(pieces))
            nll = torch.cat([checkpoint(self.nll, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
        return nll.view(inputs.shape)

    def hidden(self, inputs, cache=None):
        """(B, T) ids -> (B, T, C), what the head reads."""
        config, T = self.config, inputs.shape[1]
        positions, mask = torch.arange(T, device=inputs.device)[None], None
        if cache is not None:
            positions = positions + cache.lengths[:, None]  # (B, T)
            mask = (torch.arange(cache.width, device=inputs.device) <= positions[:, :, None])[:, None]  # (B, 1, T, width)
        x = self.transformer.wte(inputs)
        rotation = None
        if config.positions == 'learned':
            x = x + self.transformer.wpe(positions)
        else:
            rotation = self.cos[positions][:, None], self.sin[positions][:, None]  # (B or 1, 1, T, D/2)
        x = self.embed_norm(x)
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device has no autocast
            x = x.to(torch.get_autocast_dtype(x.device.type))  # from here on the residual stream has the fast dtype
        x = F.dropout(x, config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, rotation, cache, positions, mask)
        return self.transformer.ln_f(x)

    def logits(self, x):
        """(…, C) -> (…, vocab_size), at least float32. The padded rows of the table are nobody's token."""
        logits = self.lm_head(x)[..., : self.config.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.config.softcap * torch.tanh(logits / self.config.softcap) if self.config.softcap else logits

    def nll(self, x, targets):
        """(N, C), (N,) -> (N,) nats."""
        return F.cross_entropy(self.logits(x), targets, reduction='none')

    def matrix_blocks(self) -> dict[str, tuple[int, ...]]:
        """{name: rows} of the weight matrices inside the layers; rows are those of the maps stacked in one (c_attn: q, k, v)."""
        found = {}
        for i, block in enumerate(self.transformer.h):
            for path, linear, rows in (
                ('attn.c_attn', block.attn.c_attn, block.attn.blocks),
                ('attn.c_proj', block.attn.c_proj, None),
                ('mlp.c_fc', block.mlp.c_fc, block.mlp.blocks),
                ('mlp.c_proj', block.mlp.c_proj, None),
            ):
                found[f'transformer.h.{i}.{path}.weight'] = rows or (linear.out_features,)
        return found

    def num_params(self, embeddings: bool = True) -> int:
        """Parameters, a tied table counted once; without embeddings the head still counts, tied or not."""
        tables = [self.transformer.wte] + ([self.transformer.wpe] if self.config.positions == 'learned' else [])
        spared = 0 if embeddings else sum(t.weight.numel() for t in tables) - self.config.tied_head * tables[0].weight.numel()
        return sum(p.numel() for p in self.parameters()) - spared

    def flops_per_token(self) -> int:
        """Forward and backward, in full rows: 6 per parameter that multiplies, 12 per pair of attention (PaLM, appendix B)."""
        config = self.config
        attention = 12 * config.n_layer * config.n_head * config.head_dim * config.block_size
        return 6 * self.num_params(embeddings=False) + attention
