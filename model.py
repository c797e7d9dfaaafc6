"""
The model: a decoder-only Transformer. Its settings cover GPT-2, nanochat, Llama and Qwen3.

    model = GPT(GPTConfig(vocab_size=65, **PRESETS['nano']))
    nll = model(inputs, targets)           # (B, T): -ln p of each target, in nats; no reduction
    logits = model(inputs)                 # (B, T, vocab_size)
    logits = model(inputs, cache=cache)    # likewise; inputs continue the rows in the cache

Shapes: B rows, T tokens per row, C = n_embd, H heads, D = head_dim.

Optimizers, checkpoints, sampling, and weights of other projects have files of their own.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from extras import EXTRAS, SHARE, Smear, ValueEmbedding
from moe import Balance, MoE, Usage

# Each of these is also a setting of train.py, so that they can be compared one at a time
PRESETS = {
    'nano': dict(
        norm='rms', norm_eps=1e-6, positions='rope', rope_theta=10000.0, qk_norm='rms',
        mlp='relu2', tied_head=False, embed_norm=True, softcap=15.0, init_std=0.0, zero_init=True,
    ),
    'gpt2': dict(
        norm='layer', norm_eps=1e-5, positions='learned', rope_theta=10000.0, qk_norm='none',
        mlp='gelu', tied_head=True, embed_norm=False, softcap=0.0, init_std=0.02, zero_init=False,
    ),
    'llama': dict(
        norm='rms_gain', norm_eps=1e-5, positions='rope', rope_theta=10000.0, qk_norm='none',
        mlp='swiglu', tied_head=False, embed_norm=False, softcap=0.0, init_std=0.02,
        zero_init=False,
    ),
    'qwen3': dict(
        norm='rms_gain', norm_eps=1e-6, positions='rope', rope_theta=1e6, qk_norm='rms_gain',
        mlp='swiglu', tied_head=True, embed_norm=False, softcap=0.0, init_std=0.02, zero_init=False,
    ),
}  # fmt: skip
# The switches of extras.py: on in 'plus', off in the others
PRESETS = {name: {**row, **dict.fromkeys(EXTRAS, False)} for name, row in PRESETS.items()}
PRESETS['plus'] = {**PRESETS['nano'], **dict.fromkeys(EXTRAS, True)}

CHOICES = {
    'norm': ('rms', 'rms_gain', 'layer'),
    'positions': ('rope', 'learned'),
    'qk_norm': ('none', 'rms', 'rms_gain'),
    'mlp': ('relu2', 'gelu', 'swiglu'),
}

LOGITS_BYTES = 2**30  # eager: larger float32 logits of a micro-batch are computed in pieces


@dataclass
class GPTConfig:
    """The architecture. The defaults are the preset 'nano'."""

    vocab_size: int = 50304  # number of ids, special tokens included
    block_size: int = 1024  # tokens per row, and the longest context
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = 0  # heads of keys and values (GQA: Ainslie et al., 2023); 0 is n_head
    n_embd: int = 768
    head_dim: int = 0  # 0 is n_embd / n_head
    # width of the MLP, or of an expert; 0 is 4 * n_embd, or for swiglu 8/3 * n_embd rounded up to a
    # multiple of 64
    n_hidden: int = 0
    n_expert: int = 0  # experts in place of the MLP, see moe.py; 0 is off
    n_expert_active: int = 2  # of these, used by a token
    n_expert_shared: int = 0  # more experts, used by every token
    expert_balance: float = 0.01  # weight of the loss that keeps experts in even use
    dropout: float = 0.0
    bias: bool = False  # in linear layers and LayerNorm, as in GPT-2
    norm: str = 'rms'  # rms | rms_gain | layer
    norm_eps: float = 1e-6
    positions: str = 'rope'  # rope | learned
    rope_theta: float = 10000.0
    qk_norm: str = 'rms'  # none | rms | rms_gain
    mlp: str = 'relu2'  # relu2 | gelu | swiglu
    tied_head: bool = False  # the head is the embedding table
    embed_norm: bool = True  # a norm right after the embedding
    softcap: float = 15.0  # logits stay within (-softcap, softcap); 0 is off
    init_std: float = 0.0  # standard deviation of the initial weights; 0 is 1 / sqrt(fan-in)
    zero_init: bool = True  # output projections and an untied head start at zero
    value_embeds: bool = False  # this and the next: see extras.py
    smear: bool = False
    bos: int = -1  # begins a document; no token attends to earlier documents; -1: a row is one text

    def __post_init__(self):
        # 1) Choices and ranges
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SystemExit(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(allowed)}"
                )
        least = dict(vocab_size=1, block_size=1, n_layer=1, n_head=1, n_embd=1)
        least |= dict(n_kv_head=0, head_dim=0, n_hidden=0)
        least |= dict(dropout=0, norm_eps=0, rope_theta=1, softcap=0, init_std=0)
        least |= dict(n_expert=0, n_expert_active=1, n_expert_shared=0, expert_balance=0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SystemExit(f'{name} is {getattr(self, name)}, expected at least {minimum}')
        if self.dropout >= 1:
            raise SystemExit(f'dropout is {self.dropout}, expected less than 1')
        if self.n_expert and self.n_expert_active > self.n_expert:
            raise SystemExit(
                f'n_expert_active is {self.n_expert_active}, expected at most n_expert = '
                f'{self.n_expert}'
            )
        if self.n_expert and self.bias:
            raise SystemExit('bias is True, expected False: experts (n_expert) have no biases')
        # 2) Derived sizes, which must divide evenly
        if not self.head_dim and self.n_embd % self.n_head:
            raise SystemExit(
                f'n_embd is {self.n_embd}, expected a multiple of n_head = {self.n_head} '
                '(or set head_dim)'
            )
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_kv_head = self.n_kv_head or self.n_head
        if self.n_head % self.n_kv_head:
            raise SystemExit(
                f'n_head is {self.n_head}, expected a multiple of n_kv_head = {self.n_kv_head}'
            )
        if self.positions == 'rope' and self.head_dim % 2:
            raise SystemExit(
                f'head_dim is {self.head_dim}, expected an even number: RoPE rotates pairs'
            )
        if not self.n_hidden:
            self.n_hidden = (
                ceil_to(8 * self.n_embd // 3, 64) if self.mlp == 'swiglu' else 4 * self.n_embd
            )

    @property
    def value_layers(self) -> range:
        """The layers with a value embedding: every other one, the last included."""
        return range((self.n_layer - 1) % 2, self.n_layer, 2) if self.value_embeds else range(0)


def ceil_to(n: int, step: int) -> int:
    """n rounded up to a multiple of step."""
    return -(-n // step) * step


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang and Sennrich, 2019) with or without a learned gain."""

    def __init__(self, size: int, kind: str, eps: float, bias: bool = False):
        super().__init__()
        self.size, self.kind, self.eps = size, kind, eps
        self.weight = None if kind == 'rms' else nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if kind == 'layer' and bias else None

    def forward(self, x):
        """(…, size) -> same shape: each vector divided by the root of its mean square, to which eps
        is added, and multiplied by the gain if there is one. 'layer': torch's LayerNorm."""
        if self.kind == 'layer':
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        gain = None if self.weight is None else self.weight.to(x.dtype)  # mixed dtypes are slow
        # CUDA's autocast would return float32 since torch 2.12 (pytorch/pytorch#188955)
        with torch.autocast('cuda', enabled=False) if x.is_cuda else nullcontext():
            return F.rms_norm(x, (self.size,), gain, self.eps)


def rotation_table(config: GPTConfig):
    """cos and sin of RoPE's angle at each position, (block_size, D/2) each."""
    # radians per token
    speeds = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = torch.outer(torch.arange(config.block_size), speeds)  # (T, D/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """RoPE (Su et al., 2021): rotate the point (x[i], x[i + D/2]) by an angle proportional to its
    position. Pairs and direction of rotation are as in Llama.

    x (B, T, H, D), cos and sin (B or 1, T, 1, D/2) -> (B, T, H, D), at least float32.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class CausalSelfAttention(nn.Module):
    """Queries, keys and values come from one matrix. With GQA, n_head / n_kv_head queries share
    a key and a value."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.dropout = config.dropout
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.head_dim
        # widths of q, k and v
        self.sizes = [n * self.head_dim for n in (self.n_head, self.n_kv_head, self.n_kv_head)]
        self.blocks = {'c_attn': self.sizes, 'c_proj': [config.n_embd]}
        self.c_attn = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.gains = config.qk_norm == 'rms_gain'  # each of q and k has its own
        self.q_norm = self.k_norm = nn.Identity()
        if config.qk_norm != 'none':
            self.q_norm = Norm(self.head_dim, config.qk_norm, config.norm_eps)
            self.k_norm = Norm(self.head_dim, config.qk_norm, config.norm_eps)
        self.value = ValueEmbedding(config) if layer in config.value_layers else None

    def forward(self, x, rotation, mask, cache, inputs=None):
        """x (B, T, C) -> (B, T, C). rotation: cos and sin for rotate(), or None. mask: True where a
        query may look; None: causal attention over x. cache: a KVCache, or None. inputs: ids."""
        B, T, _ = x.shape

        # 1) Queries, keys and values, normalised and rotated, queries and keys in one piece.
        # Transposed last, so that they and the result of attention lie in memory as c_proj reads
        # them: (B, T, H, D)
        heads = [self.n_head, self.n_kv_head]
        qkv = self.c_attn(x).view(B, T, -1, self.head_dim)
        qk, v = qkv.split([sum(heads), self.n_kv_head], dim=2)
        if self.value is not None:
            v = self.value(v, x, inputs)
        if self.gains:
            q, k = qk.split(heads, dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        else:
            qk = self.q_norm(qk)
        if rotation is not None:
            qk = rotate(qk, *rotation)
        # mixed precision rotates in float32
        q, k = qk.to(v.dtype).transpose(1, 2).split(heads, dim=1)  # (B, H, T, D), (B, H_kv, T, D)
        v = v.transpose(1, 2)

        # 2) Attention. A cache stores the new keys and values and attends to all that it holds
        if cache is not None:
            y = cache.attend(self.layer, q, k, v)
        else:
            dropout = self.dropout if self.training else 0.0
            gqa = self.n_kv_head < self.n_head
            y = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=gqa
            )

        # 3) The output projection
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, -1))
        return F.dropout(y, self.dropout, self.training)


class SquaredReLU(torch.autograd.Function):
    """relu(x)^2 (So et al., 2021). Its gradient, 2 relu(x), needs no mask of x > 0. Autograd would
    pass twice as often over a layer's widest tensor: 2 to 6 % of the time on a CPU (LOG.md)."""

    @staticmethod
    def forward(ctx, x):
        root = F.relu(x)
        ctx.save_for_backward(root)
        return root * root

    @staticmethod
    def backward(ctx, grad):
        (root,) = ctx.saved_tensors
        return (grad * root).mul_(2)


def activate(x, kind: str):
    """The nonlinearity of an MLP: c_fc's result -> the input of c_proj."""
    if kind == 'swiglu':  # Shazeer, 2020
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    if kind == 'relu2':  # without gradients the plain form has less overhead
        return SquaredReLU.apply(x) if torch.is_grad_enabled() else F.relu(x).square()
    return F.gelu(x, approximate='tanh')  # GPT-2's


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp
        self.dropout = config.dropout
        stacked = 2 if config.mlp == 'swiglu' else 1  # swiglu: the gate's rows, then the values'
        sizes = [config.n_hidden] * stacked
        self.blocks = {'c_fc': sizes, 'c_proj': [config.n_embd]}
        self.c_fc = nn.Linear(config.n_embd, sum(sizes), bias=config.bias)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x, usage=None):
        x = activate(self.c_fc(x), self.kind)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = Norm(config.n_embd, config.norm, config.norm_eps, config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = Norm(config.n_embd, config.norm, config.norm_eps, config.bias)
        self.mlp = MoE(config, activate) if config.n_expert else MLP(config)

    def forward(self, x, rotation, mask, cache, usage=None, inputs=None):
        x = x + self.attn(self.ln_1(x), rotation, mask, cache, inputs)
        return x + self.mlp(self.ln_2(x), usage)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # 1) The layers. Tables have a multiple of 64 rows, for faster matrix products
        rows = ceil_to(config.vocab_size, 64)
        parts = dict(
            wte=nn.Embedding(rows, config.n_embd),
            h=nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
            ln_f=Norm(config.n_embd, config.norm, config.norm_eps, config.bias),
        )
        # 2) Positions: a learned table, or RoPE's angles
        if config.positions == 'learned':
            parts['wpe'] = nn.Embedding(config.block_size, config.n_embd)
        else:
            cos, sin = rotation_table(config)
            self.register_buffer('cos', cos, persistent=False)
            self.register_buffer('sin', sin, persistent=False)
        self.transformer = nn.ModuleDict(parts)
        # 3) Input norm, head, extras. The norm has no gain: the table can learn its effect
        self.embed_norm = nn.Identity()
        if config.embed_norm:
            self.embed_norm = Norm(config.n_embd, 'rms', config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, rows, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.transformer.wte.weight
        self.smear = Smear(config) if config.smear else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Set every initial weight. ValueError for a parameter that no line below knows."""
        config = self.config
        for name, p in self.named_parameters():
            layer, kind = f'.{name}'.split('.')[-2:]
            # an embedding looks up one row and sums nothing: no 1 / sqrt(fan-in) is needed
            lookup = layer in ('wte', 'wpe') and not config.tied_head
            std = config.init_std or (1.0 if lookup else p.shape[-1] ** -0.5)
            if layer in ('ln_1', 'ln_2', 'ln_f', 'q_norm', 'k_norm'):
                p.fill_(0.0 if kind == 'bias' else 1.0)
            elif layer == 'c_gate' or layer in ('c_attn', 'c_fc', 'c_proj') and kind == 'bias':
                p.zero_()
            elif layer in ('c_proj', 'lm_head') and config.zero_init:
                p.zero_()
            elif layer == 'c_proj':  # the residual stream sums 2 * n_layer (GPT-2)
                p.normal_(0.0, std / math.sqrt(2 * config.n_layer))
            elif layer in ('wte', 'wpe', 'wve', 'lm_head', 'c_attn', 'c_fc', 'router'):
                p.normal_(0.0, std)
            elif name == 'smear.share':
                p.fill_(SHARE)
            else:
                raise ValueError(f'init_weights does not know {name}')

    def forward(self, inputs, targets=None, cache=None):
        """inputs, targets (B, T) ids -> negative log-likelihood of each target in nats, (B, T), at
        least float32. Without targets: logits (B, T, vocab_size). With a cache the rows continue
        what it holds, see hidden().
        """
        usage = Usage(inputs) if self.config.n_expert and targets is not None else None
        x = self.hidden(inputs, cache, usage)
        if targets is None:
            return self.logits(x)
        x = x.flatten(0, 1)  # (B * T, C)
        targets = targets.flatten()
        logits_bytes = 4 * len(targets) * self.config.vocab_size
        pieces = ceil_to(logits_bytes, LOGITS_BYTES) // LOGITS_BYTES
        # Compiled code keeps the logits in 16 bits, so pieces would save little (docs/gpu.md)
        if pieces == 1 or torch.compiler.is_compiling():
            nll = self.nll(x, targets)
        else:
            # piece by piece, and again in backward: less memory, a little more time
            nll = [
                checkpoint(self.nll, *piece, use_reentrant=False, preserve_rng_state=False)
                for piece in zip(x.chunk(pieces), targets.chunk(pieces))
            ]
            nll = torch.cat(nll)
        nll = nll.view(inputs.shape)
        if usage is not None:
            nll = Balance.apply(nll, usage.loss(), self.config.expert_balance)
        return nll

    def embed(self, inputs, positions):
        """(B, T) ids and their positions -> (B, T, C)."""
        x = self.transformer.wte(inputs)
        if self.config.positions == 'learned':
            x = x + self.transformer.wpe(positions)
        return self.embed_norm(x)

    def hidden(self, inputs, cache=None, usage=None):
        """(B, T) ids -> (B, T, C), the input of the head.

        cache: a KVCache. It says where new tokens go and which id is before each, keeps keys and
        values and computes attention. A row of it is one document, whatever config.bos says.
        usage: a moe.Usage of the inputs, to which each layer of experts is added.
        ValueError where T exceeds block_size.
        """
        config = self.config
        T = inputs.shape[1]
        if T > config.block_size:
            raise ValueError(
                f'rows have {T} tokens, expected at most block_size = {config.block_size}'
            )

        # 1) Positions, and which tokens attend to which; no mask means causal attention
        mask = None
        if cache is not None:
            positions = cache.begin(T)  # (B, T)
        else:
            positions = torch.arange(T, device=inputs.device)[None]  # (1, T)
        if cache is None and config.bos >= 0:
            document = (inputs == config.bos).cumsum(dim=1)  # (B, T): which document of the row
            mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]  # (B, 1, T, T)

        # 2) Embedding
        x = self.embed(inputs, positions)
        if self.smear is not None:
            starts = (positions == 0) | (inputs == config.bos) & (cache is None)  # of documents
            if cache is None:
                before = x.roll(1, dims=1)
            else:
                before = self.embed(cache.before(inputs), (positions - 1).clamp(min=0))
            x = self.smear(x, before, starts)
        rotation = None
        if config.positions == 'rope':
            cos = self.cos[positions][:, :, None]  # (B or 1, T, 1, D/2)
            rotation = cos, self.sin[positions][:, :, None]
        # in mixed precision the residual stream has the fast dtype; the meta device has no autocast
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))

        # 3) Layers
        x = F.dropout(x, config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, rotation, mask, cache, usage, inputs)
        return self.transformer.ln_f(x)

    def logits(self, x):
        """(…, C) -> (…, vocab_size), at least float32. The head's padding rows are cut off."""
        logits = self.lm_head(x)[..., : self.config.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        return logits

    def nll(self, x, targets):
        """(N, C), (N,) -> (N,) nats."""
        return F.cross_entropy(self.logits(x), targets, reduction='none')

    def matrix_blocks(self) -> dict[str, list[int]]:
        """{name: rows} of the weight matrices inside the layers. A matrix may stack several maps
        (q, k and v in c_attn, gate and up in swiglu's c_fc); rows are their heights. Muon updates
        each map separately."""
        return {
            f'transformer.h.{layer}.{part}.{name}.weight': rows
            for layer, block in enumerate(self.transformer.h)
            for part in ('attn', 'mlp')
            for name, rows in block.get_submodule(part).blocks.items()
        }

    def num_params(self, embeddings: bool = True, active: bool = False) -> int:
        """Parameters, a tied table counted once. Without embeddings the head still counts. active:
        only those that a token uses, n_expert_active of the routed experts, no value embeddings."""
        config = self.config
        total = sum(p.numel() for p in self.parameters())
        if active or not embeddings:
            total -= sum(p.numel() for name, p in self.named_parameters() if 'wve' in name)
        if not embeddings and config.positions == 'learned':
            total -= self.transformer.wpe.weight.numel()
        if not embeddings and not config.tied_head:
            total -= self.transformer.wte.weight.numel()
        if active and config.n_expert:
            maps = 3 if config.mlp == 'swiglu' else 2
            idle = config.n_layer * (config.n_expert - config.n_expert_active)
            total -= idle * maps * config.n_hidden * config.n_embd
        return total

    def flops_per_token(self) -> int:
        """FLOPs of forward and backward per token of a full row (PaLM, 2022, appendix B): 6 per
        parameter that a token uses, and 6 per multiplication in attention's two products. Gains and
        biases count like matrix entries: they are negligible."""
        config = self.config
        attention = 2 * config.n_layer * config.n_head * config.head_dim * config.block_size
        return 6 * (self.num_params(embeddings=False, active=True) + attention)
