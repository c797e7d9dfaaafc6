"""
The model families of transformers that we know: how their settings and tensors correspond to ours.

    choose(config)                         # which family holds a model, for an export
    to_theirs(config, weights, family)     # (name, tensor) pairs of the family, from our weights
    to_ours(config, maps, read, size)      # our weights, from tensors of the family

A family (FAMILIES) is a class of transformers: the names of its weights, the switches of GPTConfig
that it has, and its words for our settings. On export the first family that fits is taken. A model
that fits none is written with its own code, model.py, under our own names.

Nothing here reads or writes a file: see pretrained.py (in) and export.py (out). To add a family,
add a row to the table.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from model import EXTRAS, GPT, GPTConfig, ceil_to

# -----------------------------------------------------------------------------
# the table


class Family(NamedTuple):
    """
    A class of transformers.

    names       {our module: its modules}; * is a layer's number. Several modules are blocks of rows
                of ours, from top to bottom; those with # are repeated for each expert
    switches    {field of GPTConfig: the values that the class has}; fields left out are free
    fields      {field of GPTConfig: its name in config.json}
    defaults    {name in config.json: value} where config.json may leave it out
    constants   {name in config.json: values that mean the same as ours}; the first is written
    limit       config -> what else keeps it out of this class, or ''
    transposed  our modules whose matrices it stores as (in, out)
    half_turn   RoPE rotates the other way: the halves of each head of q and k change places
    """

    architecture: str
    preset: str
    names: dict[str, tuple[str, ...]]
    switches: dict[str, tuple]
    fields: dict[str, str]
    defaults: dict[str, object]
    constants: dict[str, tuple]
    limit: Callable[[GPTConfig], str] = lambda config: ''
    transposed: tuple[str, ...] = ()
    half_turn: bool = False


LAYER = 'transformer.h.*.'
GPT2_LAYER = ('ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj')
ATTENTION = {
    'transformer.wte': ('model.embed_tokens',),
    'transformer.ln_f': ('model.norm',),
    'lm_head': ('lm_head',),
    LAYER + 'ln_1': ('model.layers.*.input_layernorm',),
    LAYER + 'ln_2': ('model.layers.*.post_attention_layernorm',),
    LAYER + 'attn.c_attn': tuple(f'model.layers.*.self_attn.{x}_proj' for x in 'qkv'),
    LAYER + 'attn.c_proj': ('model.layers.*.self_attn.o_proj',),
    LAYER + 'attn.q_norm': ('model.layers.*.self_attn.q_norm',),
    LAYER + 'attn.k_norm': ('model.layers.*.self_attn.k_norm',),
}
GATED_MLP = {
    LAYER + 'mlp.c_fc': ('model.layers.*.mlp.gate_proj', 'model.layers.*.mlp.up_proj'),
    LAYER + 'mlp.c_proj': ('model.layers.*.mlp.down_proj',),
}
EXPERTS = {
    LAYER + 'mlp.router': ('model.layers.*.mlp.gate',),
    LAYER + 'mlp.c_fc': tuple(f'model.layers.*.mlp.experts.#.{x}_proj' for x in ('gate', 'up')),
    LAYER + 'mlp.c_proj': ('model.layers.*.mlp.experts.#.down_proj',),
}
PLAIN_MLP = {
    LAYER + 'mlp.c_fc': ('model.layers.*.mlp.fc1',),
    LAYER + 'mlp.c_proj': ('model.layers.*.mlp.fc2',),
}
LLAMA_FIELDS = dict(
    vocab_size='vocab_size', block_size='max_position_embeddings', n_layer='num_hidden_layers',
    n_head='num_attention_heads', n_kv_head='num_key_value_heads', n_embd='hidden_size',
    head_dim='head_dim', n_hidden='intermediate_size', norm_eps='rms_norm_eps',
    tied_head='tie_word_embeddings', rope_theta='rope_theta',
)  # fmt: skip
LLAMA_DEFAULTS = dict(
    num_key_value_heads=None, head_dim=None, max_position_embeddings=2048, rms_norm_eps=1e-6,
    rope_theta=10000.0, tie_word_embeddings=False,
)  # fmt: skip
NO_QUANTIZATION = {'quantization_config': (None,)}
FULL_ATTENTION = {**NO_QUANTIZATION, 'sliding_window': (None,), 'partial_rotary_factor': (1, None)}

FAMILIES = {
    'gpt2': Family(
        architecture='GPT2LMHeadModel',
        preset='gpt2',
        names={
            **{name: (name,) for name in ('transformer.wte', 'transformer.wpe')},
            **{name: (name,) for name in ('transformer.ln_f', 'lm_head')},
            **{LAYER + name: (LAYER + name,) for name in GPT2_LAYER},
        },
        switches=dict(
            norm=('layer',), positions=('learned',), qk_norm=('none',), mlp=('gelu',),
            embed_norm=(False,), softcap=(0.0,), bias=(True,),
        ),
        fields=dict(
            vocab_size='vocab_size', block_size='n_positions', n_layer='n_layer', n_head='n_head',
            n_embd='n_embd', n_hidden='n_inner', norm_eps='layer_norm_epsilon',
            tied_head='tie_word_embeddings',
        ),
        defaults=dict(
            n_positions=1024, n_inner=None, layer_norm_epsilon=1e-5, tie_word_embeddings=True,
        ),
        constants={
            'activation_function': ('gelu_new', 'gelu_pytorch_tanh', 'gelu_fast'),
            'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,),
            'add_cross_attention': (False,), **NO_QUANTIZATION,
        },
        limit=lambda c: '' if c.n_kv_head * c.head_dim == c.n_embd else 'heads of other sizes',
        transposed=tuple(LAYER + name for name in GPT2_LAYER if 'c_' in name),
    ),
    'llama': Family(
        architecture='LlamaForCausalLM',
        preset='llama',
        names={**ATTENTION, **GATED_MLP},
        switches=dict(
            norm=('rms_gain',), positions=('rope',), qk_norm=('none',), mlp=('swiglu',),
            embed_norm=(False,), softcap=(0.0,),
        ),
        fields={**LLAMA_FIELDS, 'bias': 'attention_bias'},
        defaults={**LLAMA_DEFAULTS, 'attention_bias': False},
        constants={'hidden_act': ('silu', 'swish'), **FULL_ATTENTION},
        limit=lambda c: '' if c.n_embd % c.n_head == 0 else 'n_embd is no multiple of n_head',
    ),
    'qwen3': Family(
        architecture='Qwen3ForCausalLM',
        preset='qwen3',
        names={**ATTENTION, **GATED_MLP},
        switches=dict(
            norm=('rms_gain',), positions=('rope',), qk_norm=('rms_gain',), mlp=('swiglu',),
            embed_norm=(False,), softcap=(0.0,), bias=(False,),
        ),
        fields=LLAMA_FIELDS,
        defaults={**LLAMA_DEFAULTS, 'head_dim': 128},
        constants={
            'hidden_act': ('silu', 'swish'), 'attention_bias': (False,),
            'use_sliding_window': (False,), **NO_QUANTIZATION,
        },
    ),
    'qwen3_moe': Family(
        architecture='Qwen3MoeForCausalLM',
        preset='qwen3',
        names={**ATTENTION, **EXPERTS},
        switches=dict(
            norm=('rms_gain',), positions=('rope',), qk_norm=('rms_gain',), mlp=('swiglu',),
            embed_norm=(False,), softcap=(0.0,), bias=(False,), n_expert_shared=(0,),
        ),
        fields={
            **LLAMA_FIELDS, 'n_hidden': 'moe_intermediate_size', 'n_expert': 'num_experts',
            'n_expert_active': 'num_experts_per_tok',
        },
        defaults=dict(
            LLAMA_DEFAULTS, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
            norm_topk_prob=False,
        ),
        constants={
            'hidden_act': ('silu', 'swish'), 'attention_bias': (False,),
            'use_sliding_window': (False,), 'norm_topk_prob': (True,), 'decoder_sparse_step': (1,),
            'mlp_only_layers': ([], None), **NO_QUANTIZATION,
        },
        limit=lambda c: '' if c.n_expert else 'n_expert=0',
    ),
    'nanochat': Family(
        architecture='NanoChatForCausalLM',
        preset='nano',
        names={**ATTENTION, **PLAIN_MLP},
        switches=dict(
            norm=('rms',), positions=('rope',), qk_norm=('rms',), mlp=('relu2',),
            embed_norm=(True,), bias=(False,),
        ),
        fields={**LLAMA_FIELDS, 'softcap': 'final_logit_softcapping'},
        defaults={**LLAMA_DEFAULTS, 'final_logit_softcapping': 15.0},
        constants={'hidden_act': ('relu2',), 'attention_bias': (False,), **FULL_ATTENTION},
        half_turn=True,
    ),
}  # fmt: skip
# The model_type of exports with their own code, and the files of that code: the first is the class
# for transformers
OWN = 'flatgpt'
OWN_CODE = ('modeling_flatgpt.py', 'model.py', 'extras.py', 'moe.py')

# -----------------------------------------------------------------------------
# which family holds a model

# Values that another value can express: {field: {value: (the other, how)}}
EQUIVALENT = {
    'norm': {'rms': ('rms_gain', 'norms have gains of 1')},
    'qk_norm': {'rms': ('rms_gain', 'QK-norms have gains of 1')},
    'bias': {False: (True, 'biases are 0')},
    'embed_norm': {True: (False, "the embedding's norm is part of its table")},
}


def fit(config: GPTConfig, family: Family) -> tuple[GPTConfig, list[str], list[str]]:
    """(the config with the family's switches, if all fits; what is expressed otherwise; what does
    not fit)."""
    # 1) What the class cannot hold at all
    misfits = [family.limit(config)] if family.limit(config) else []
    if config.n_expert and 'n_expert' not in family.fields:
        misfits.append(f'n_expert={config.n_expert}')
    misfits += [f'{name}=True' for name in EXTRAS if getattr(config, name)]

    # 2) Each switch: the class has its value, or another value expresses it
    changes = {}
    how = []
    for name, values in family.switches.items():
        value = getattr(config, name)
        if value in values:
            continue
        other, means = EQUIVALENT.get(name, {}).get(value, (None, ''))
        # Learned positions are added before the norm, so a table of ids alone cannot hold it
        possible = name != 'embed_norm' or config.positions == 'rope'
        if other in values and possible:
            changes[name] = other
            how.append(means)
        else:
            misfits.append(f'{name}={value}')

    # 3) A table with the norm in it is no head: that keeps the table without the norm
    if changes.get('embed_norm') is False:
        changes['tied_head'] = False
    fitted = config if misfits else dataclasses.replace(config, **changes)
    return fitted, how, misfits


def choose(config: GPTConfig) -> tuple[str, GPTConfig, str]:
    """(model_type, the config with that family's switches, why) for an export."""
    fits = {name: fit(config, family) for name, family in FAMILIES.items()}
    for name, (fitted, how, misfits) in fits.items():
        if not misfits:
            why = f'{FAMILIES[name].architecture}, a class of transformers'
            return name, fitted, '; '.join([why, *how])
    nearest = min(fits, key=lambda name: len(fits[name][2]))
    lacks = ', '.join(fits[nearest][2])
    why = (
        f'{OWN_CODE[0]}, to be loaded with trust_remote_code=True: no class of transformers fits, '
        f'the nearest, {FAMILIES[nearest].architecture}, lacks {lacks}'
    )
    return OWN, dataclasses.replace(config, bos=-1), why


# -----------------------------------------------------------------------------
# tensors


class TensorMap(NamedTuple):
    """One of our tensors, and the tensors of a family that hold its rows."""

    ours: str
    theirs: list[str]  # names, from the top of ours to its bottom
    rows: list[int]  # of each of theirs, before it is transposed
    shape: tuple[int, ...]  # ours
    is_table: bool  # a row for each id: ours is padded to a multiple of 64
    transposed: bool
    turned: list[bool]  # which of theirs have the halves of their heads exchanged

    def their_shape(self, i: int) -> tuple[int, ...]:
        shape = (self.rows[i], *self.shape[1:])
        return shape[::-1] if self.transposed else shape


class ShapesOnly(TorchFunctionMode):
    """Build a model without numbers in its parameters. (Computing on the meta device would import
    torch's compiler, which takes seconds.)"""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.empty:
            kwargs = {**kwargs, 'device': 'meta'}
        elif function.__name__ in ('normal_', 'uniform_', 'kaiming_uniform_', 'fill_', 'zero_'):
            return args[0] if args else kwargs['tensor']
        return function(*args, **kwargs)


def map_tensors(config: GPTConfig, family: Family | None) -> list[TensorMap]:
    """All tensors of a model. family None: names are ours, as in exports with their own code."""
    with ShapesOnly():
        model = GPT(config)
    blocks = model.matrix_blocks()
    maps = []
    for ours, parameter in model.named_parameters():  # a tied head is not listed
        # 1) 'transformer.h.3.attn.c_attn.weight' is layer '3' of the module
        # 'transformer.h.*.attn.c_attn', and its 'weight'
        module, kind = ours.rsplit('.', 1)
        layer = ''.join(re.findall(r'(?<=\.h\.)\d+', module))  # '' outside of the layers
        module = module.replace(f'.h.{layer}.', '.h.*.')

        # 2) Names. An expert's tensors come one after the other
        names = family.names[module] if family else (f'model.{module}',)
        if '#' in names[0]:
            experts = map(str, range(config.n_expert))
            names = [name.replace('#', expert) for expert in experts for name in names]
        theirs = [f'{name.replace("*", layer)}.{kind}' for name in names]

        # 3) Rows: those of the stacked matrices, or all. A family's table is not padded
        is_table = module.endswith(('wte', 'wve', 'lm_head'))
        if len(theirs) > 1:
            rows = blocks[f'{ours.removesuffix(kind)}weight']
        elif is_table and family:
            rows = [config.vocab_size]
        else:
            rows = [parameter.shape[0]]

        # 4) How they are laid out
        transposed = bool(family) and module in family.transposed and kind == 'weight'
        turns = bool(family) and family.half_turn
        turned = [turns and bool(re.search(r'\.[qk]_proj\.', name)) for name in theirs]
        maps.append(TensorMap(ours, theirs, rows, parameter.shape, is_table, transposed, turned))
    return maps


def exchange_halves(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Exchange the halves of each head's rows. RoPE by +θ then gives what RoPE by -θ gave, with its
    halves exchanged: products of q and k are the same."""
    return x.view(-1, 2, head_dim // 2, *x.shape[1:]).flip(1).reshape(x.shape)


def to_theirs(
    config: GPTConfig, weights: Mapping, family: Family | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of each tensor of an export, one after the other. A gain that our model lacks
    is 1, a bias 0."""
    for tensor in map_tensors(config, family):
        whole = weights.get(tensor.ours)
        if whole is None:
            fill = torch.zeros if tensor.ours.endswith('.bias') else torch.ones
            whole = fill(tensor.shape)
        pieces = whole[: sum(tensor.rows)].split(tensor.rows)
        for name, piece, turned in zip(tensor.theirs, pieces, tensor.turned):
            if turned:
                piece = exchange_halves(piece, config.head_dim)
            yield name, piece.t() if tensor.transposed else piece


def to_ours(
    config: GPTConfig, maps: Sequence[TensorMap], read: Callable[[str], torch.Tensor],
    vocab_size: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """
    Our weights, by name. maps: see map_tensors. read(name): the tensor of theirs.

    Tables are cut to vocab_size rows, and padded. What needs no joining is a view of what was read.
    """
    weights = {}
    for tensor in maps:
        # 1) Read, and undo what differs
        pieces = [read(name) for name in tensor.theirs]
        if tensor.transposed:
            pieces = [piece.t() for piece in pieces]
        for i, turned in enumerate(tensor.turned):
            if turned:
                pieces[i] = exchange_halves(pieces[i], config.head_dim)
        # 2) Pad a table
        if tensor.is_table:
            kept = pieces[0][:vocab_size]
            padding = kept.new_zeros(ceil_to(vocab_size, 64) - len(kept), *tensor.shape[1:])
            pieces = [kept, padding] if len(padding) else [kept]
        # 3) Join
        weights[tensor.ours] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    if config.tied_head:
        weights['lm_head.weight'] = weights['transformer.wte.weight']
    return weights


def fold_embed_norm(config: GPTConfig, weights: Mapping) -> dict:
    """The weights of the same model without embed_norm and with an untied head: the norm is applied
    to each row of the table."""
    table = weights['transformer.wte.weight'].float()
    normed = F.rms_norm(table, (config.n_embd,), None, config.norm_eps)
    return {**weights, 'transformer.wte.weight': normed}
