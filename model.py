"""
The whole model: a decoder-only Transformer that covers GPT-2, NanoChat, Llama and Qwen3 by its settings.

    model = GPT(GPTConfig(vocab_size=65, **PRESETS['nano']))
    nll = model(inputs, targets)           # (B, T), -ln p of each target (nats): what to do with it is the caller's
    logits = model(inputs)                 # (B, T, vocab_size)
    logits = model(inputs, cache=cache)    # the same for a continuation: the cache has the keys and values of what was

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
    bos: int = -1  # the id that begins a document: nothing in a row looks back beyond it; -1: a row is one text

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SystemExit(f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}")
        least = dict(vocab_size=1, block_size=1, n_layer=1, n_head=1, n_embd=1, n_kv_head=0, head_dim=0, n_hidden=0)
        least |= dict(dropout=0, norm_eps=0, rope_theta=1, softcap=0, init_std=0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SystemExit(f'{name} is {getattr(self, name)}, expected at least {minimum}')
        if self.dropout >= 1:
            raise SystemExit(f'dropout is {self.dropout}, expected less than 1')
        if not self.head_dim and self.n_embd % self.n_head:
            raise SystemExit(
                f'n_embd is {self.n_embd}, expected a multiple of n_head = {self.n_head} (or set head_dim)'
            )
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_kv_head = self.n_kv_head or self.n_head
        if self.n_head % self.n_kv_head:
            raise SystemExit(f'n_head is {self.n_head}, expected a multiple of n_kv_head = {self.n_kv_head}')
        if self.positions == 'rope' and self.head_dim % 2:
            raise SystemExit(f'head_dim is {self.head_dim}, expected an even number: RoPE turns pairs')
        if not self.n_hidden:
            self.n_hidden = ceil_to(8 * self.n_embd // 3, 64) if self.mlp == 'swiglu' else 4 * self.n_embd


def ceil_to(n: int, step: int) -> int:
    """The smallest multiple of step that is no less than n."""
    return -(-n // step) * step


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
        gain = None if self.weight is None else self.weight.to(x.dtype)  # one dtype, or torch takes a slow path
        return F.rms_norm(x, (self.size,), gain, self.eps)


def rotate(x, cos, sin):
    """RoPE (Su et al., 2021): dimension i and i + D/2 are a point that turns by an angle proportional to its position.

    x (B, H, T, D), cos and sin (B or 1, 1, T, D/2) -> at least float32. The sense and the pairing are Llama's.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class CausalSelfAttention(nn.Module):
    """Queries, keys and values come from one matrix; n_head / n_kv_head queries share a key and a value (GQA)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.sizes = [n * self.head_dim for n in (self.n_head, self.n_kv_head, self.n_kv_head)]  # of q, k, v
        self.blocks = {'c_attn': self.sizes, 'c_proj': [config.n_embd]}
        self.c_attn = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.q_norm = self.k_norm = nn.Identity()
        if config.qk_norm != 'none':
            self.q_norm = Norm(self.head_dim, config.qk_norm, config.norm_eps)
            self.k_norm = Norm(self.head_dim, config.qk_norm, config.norm_eps)

    def forward(self, x, rotation, cache, places, mask):
        """x (B, T, C); rotation is what rotate() takes, or None; cache, places and mask see GPT.hidden."""
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).split(self.sizes, dim=-1)
        q = q.view(B, T, self.n_head, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        v = v.view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        q, k = q.to(v.dtype), k.to(v.dtype)  # in mixed precision the rotation, and on CUDA the norm, gave float32
        if cache is not None:
            k, v = self.remember(k, v, cache, places)
        dropout = self.dropout if self.training else 0.0
        grouped = self.n_kv_head < self.n_head
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=grouped)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, -1))
        return F.dropout(y, self.dropout, self.training)

    def remember(self, k, v, cache, places):
        """Write k and v (B, Hkv, T, D) into the slots `places` (B, T); return all there are, (B, Hkv, width, D)."""
        slots = places[:, None, :, None].expand_as(k)
        out = []
        for kept, new in ((cache.keys[self.layer], k), (cache.values[self.layer], v)):
            kept.scatter_(2, slots, new.to(kept.dtype))
            out.append(kept[:, :, : cache.width].to(new.dtype))
        return out


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind, self.dropout = config.mlp, config.dropout
        stacked = 2 if config.mlp == 'swiglu' else 1  # swiglu: the gate, then what passes through it
        sizes = [config.n_hidden] * stacked
        self.blocks = {'c_fc': sizes, 'c_proj': [config.n_embd]}
        self.c_fc = nn.Linear(config.n_embd, sum(sizes), bias=config.bias)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        x = self.c_fc(x)
        if self.kind == 'swiglu':  # Shazeer, 2020
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        elif self.kind == 'relu2':  # So et al., 2021
            x = F.relu(x)
            x = x * x  # .square() goes backward through pow, slower on a CPU
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

    def forward(self, x, rotation, cache, places, mask):
        x = x + self.attn(self.ln_1(x), rotation, cache, places, mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        rows = ceil_to(config.vocab_size, 64)  # tensor cores like tables whose rows are a multiple of 64
        parts = dict(
            wte=nn.Embedding(rows, config.n_embd),
            h=nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
            ln_f=Norm(config.n_embd, config.norm, config.norm_eps, config.bias),
        )
        if config.positions == 'learned':
            parts['wpe'] = nn.Embedding(config.block_size, config.n_embd)
        else:
            turns = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)  # radians per token
            angles = torch.outer(torch.arange(config.block_size), turns)  # (T, D/2)
            self.register_buffer('cos', angles.cos(), persistent=False)
            self.register_buffer('sin', angles.sin(), persistent=False)
        self.transformer = nn.ModuleDict(parts)
        # without gain, whatever `norm` says: a gain there could be folded into the table
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
            lookup = layer in ('wte', 'wpe') and not config.tied_head  # one row is read, nothing is summed
            std = config.init_std or (1.0 if lookup else p.shape[-1] ** -0.5)
            if layer in ('ln_1', 'ln_2', 'ln_f', 'q_norm', 'k_norm'):  # those that have a gain
                p.fill_(0.0 if kind == 'bias' else 1.0)
            elif layer in ('c_attn', 'c_fc', 'c_proj') and kind == 'bias':
                p.zero_()
            elif layer in ('c_proj', 'lm_head') and config.zero_init:
                p.zero_()
            elif layer == 'c_proj':  # 2 * n_layer of them add up in the residual stream (GPT-2)
                p.normal_(0.0, std / math.sqrt(2 * config.n_layer))
            elif layer in ('wte', 'wpe', 'lm_head', 'c_attn', 'c_fc'):
                p.normal_(0.0, std)
            else:
                raise ValueError(f'init_weights does not know {name}')

    def forward(self, inputs, targets=None, cache=None):
        """inputs and targets (B, T) ids -> each target's negative log-likelihood in nats, (B, T), at least float32.

        Without targets the logits, (B, T, vocab_size). With a cache the rows go on from what it holds, see hidden().
        """
        x = self.hidden(inputs, cache)
        if targets is None:
            return self.logits(x)
        x, targets = x.flatten(0, 1), targets.flatten()
        pieces = ceil_to(4 * len(targets) * self.config.vocab_size, LOGITS_BYTES) // LOGITS_BYTES
        if pieces == 1:
            return self.nll(x, targets).view(inputs.shape)
        # One piece's logits at a time, made again in backward: a little more time, much less memory
        again = dict(use_reentrant=False, preserve_rng_state=False)
        parts = zip(x.chunk(pieces), targets.chunk(pieces))
        return torch.cat([checkpoint(self.nll, *part, **again) for part in parts]).view(inputs.shape)

    def hidden(self, inputs, cache=None):
        """(B, T) ids -> (B, T, C), what the head reads.

        cache.keys and cache.values (n_layer, B, n_kv_head, S, D) have S slots for each row, of which the first
        cache.lengths[b] are in use; the new tokens go into the next T. cache.width is how many slots to look at: at
        least max(lengths) + T, at most S. Whoever owns the cache sees to that, and adds to lengths afterwards. With a
        cache a row is one document, whatever config.bos says.
        """
        config, T = self.config, inputs.shape[1]
        if T > config.block_size:
            raise ValueError(f'rows have {T} tokens, expected at most block_size = {config.block_size}')
        places, mask = torch.arange(T, device=inputs.device)[None], None  # (1, T)
        if cache is not None:
            places = places + cache.lengths[:, None]  # (B, T)
            mask = torch.arange(cache.width, device=inputs.device) <= places[:, None, :, None]  # (B, 1, T, width)
        elif config.bos >= 0:
            document = (inputs == config.bos).cumsum(dim=1)  # (B, T), which of the row's it belongs to
            mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]  # (B, 1, T, T)
        x, rotation = self.transformer.wte(inputs), None
        if config.positions == 'learned':
            x = x + self.transformer.wpe(places)
        else:
            rotation = self.cos[places][:, None], self.sin[places][:, None]  # (B or 1, 1, T, D/2)
        x = self.embed_norm(x)
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # the meta device has no autocast
            x = x.to(torch.get_autocast_dtype(x.device.type))  # from here on the residual stream has the fast dtype
        x = F.dropout(x, config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, rotation, cache, places, mask)
        return self.transformer.ln_f(x)

    def logits(self, x):
        """(…, C) -> (…, vocab_size), at least float32. The padded rows of the table are nobody's token."""
        logits = self.lm_head(x)[..., : self.config.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.config.softcap * torch.tanh(logits / self.config.softcap) if self.config.softcap else logits

    def nll(self, x, targets):
        """(N, C), (N,) -> (N,) nats."""
        return F.cross_entropy(self.logits(x), targets, reduction='none')

    def matrix_blocks(self) -> dict[str, list[int]]:
        """{name: rows} of the weight matrices inside the layers. rows are those of the maps stacked in one matrix (q, k
        and v in c_attn, gate and up in swiglu's c_fc), each of which Muon takes for itself.
        """
        return {
            f'transformer.h.{layer}.{part}.{name}.weight': rows
            for layer, block in enumerate(self.transformer.h)
            for part in ('attn', 'mlp')
            for name, rows in block.get_submodule(part).blocks.items()
        }

    def num_params(self, embeddings: bool = True) -> int:
        """Parameters, a tied table counted once; without embeddings the head still counts, tied or not."""
        total = sum(p.numel() for p in self.parameters())
        if not embeddings and self.config.positions == 'learned':
            total -= self.transformer.wpe.weight.numel()
        if not embeddings and not self.config.tied_head:
            total -= self.transformer.wte.weight.numel()
        return total

    def flops_per_token(self) -> int:
        """Forward and backward in full rows (PaLM, 2022, appendix B): 2 + 4 per parameter, and as much for each number
        in the two products of attention. Gains and biases are counted as if they were matrices; they hardly weigh.
        """
        config = self.config
        attention = 2 * config.n_layer * config.n_head * config.head_dim * config.block_size
        return 6 * (self.num_params(embeddings=False) + attention)
