"""
Weights of other projects: Hugging Face folders in and out, and GGUF files (llama.cpp) out.

    $ python sample.py --init_from=gpt2-xl --start="Once"                # OpenAI's, from the hub
    $ python train.py --stage=sft --init_from=hf:FOLDER --dataset=...    # any folder it can read
    $ python pretrained.py --export=out/tinyworld/rl --to=FOLDER         # for transformers
    $ python pretrained.py --export=assets/tinyworld.pt --to=box.gguf --format=gguf --dtype=q8_0
    $ python pretrained.py --import=FOLDER --to=out/imported             # makes a ckpt.pt

A folder has config.json, model.safetensors (or shards with an index) and tokenizer.json. Its
config.json is the path of a checkpoint to all programs: read() returns what checkpoint.load does
for a ckpt.pt. Names that mean a folder:

    hf:FOLDER, or FOLDER alone where it holds no ckpt.pt
    hf:owner/name      a repository of the hub, downloaded into data/hub/owner/name
    gpt2, gpt2-medium, gpt2-large, gpt2-xl

A family (FAMILIES) is a class of transformers: the names of its weights, the switches of GPTConfig
that it has, and its words for our settings. On export the first family that fits is taken. A model
that fits none is written with its own code, model.py, and loads with trust_remote_code=True.

Tokenizers are converted by hf_tokenizer.py. Left out on purpose: pickles, which can run code when
they are read, and quantized weights as input.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import console
import disk
import hf_tokenizer
import tokenizer as tokenizers
from conversation import Chat
from model import EXTRAS, GPT, PRESETS, GPTConfig, ceil_to

ROOT = Path(__file__).resolve().parent
HUB_FOLDER = ROOT / 'data' / 'hub'
GPT2 = {
    name: f'openai-community/{name}' for name in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')
}
CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
OWN_CODE = ('modeling_flatgpt.py', 'model.py', 'extras.py', 'moe.py')
# What an export writes, and so what it may replace
EXPORTED = {
    CONFIG, WEIGHTS, 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json',
    'chat_template.jinja', 'special_tokens_map.json', *OWN_CODE,
}  # fmt: skip
MARK = 'exported_by_flatgpt'  # in config.json: the folder may be replaced by another export
# What is downloaded of a repository
HUB_FILES = (
    r'(config|generation_config|tokenizer|tokenizer_config|model\.safetensors\.index)\.json'
    r'|chat_template\.jinja|model(-\d+-of-\d+)?\.safetensors'
)

# -----------------------------------------------------------------------------
# families


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
OWN = 'flatgpt'  # the model_type of exports with their own code

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
    changes = {}
    how = []
    misfits = [family.limit(config)] if family.limit(config) else []
    if config.n_expert and 'n_expert' not in family.fields:
        misfits.append(f'n_expert={config.n_expert}')
    misfits += [f'{name}=True' for name in EXTRAS if getattr(config, name)]
    # 1) Each switch: the class has its value, or another value expresses it
    for name, values in family.switches.items():
        value = getattr(config, name)
        other, means = EQUIVALENT.get(name, {}).get(value, (None, ''))
        folds = name != 'embed_norm' or config.positions == 'rope'
        if value in values:
            continue
        if other in values and folds:
            changes[name] = other
            how.append(means)
        else:
            misfits.append(f'{name}={value}')
    # 2) A table with the norm in it is no head: that keeps the table without the norm
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
# names and shapes


class Part(NamedTuple):
    """One of our tensors, and the tensors of a family that hold it."""

    ours: str
    theirs: list[str]
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


def parts(config: GPTConfig, family: Family | None) -> list[Part]:
    """All tensors of a model. family None: names are ours, as in exports with their own code."""
    with ShapesOnly():
        model = GPT(config)
    blocks = model.matrix_blocks()
    found = []
    for ours, parameter in model.named_parameters():  # a tied head is not listed
        # 1) Names: the layer's number, and whether it is a weight or a bias, stay
        module, kind = ours.rsplit('.', 1)
        number = ''.join(re.findall(r'(?<=\.h\.)\d+', module))
        module = module.replace(f'.h.{number}.', '.h.*.')
        names = family.names[module] if family else (f'model.{module}',)
        experts = range(config.n_expert) if '#' in names[0] else (0,)
        names = [name.replace('#', str(expert)) for expert in experts for name in names]
        theirs = [f'{name.replace("*", number)}.{kind}' for name in names]
        # 2) Rows: those of the stacked maps, or all
        is_table = module.endswith(('wte', 'wve', 'lm_head'))
        rows = [config.vocab_size if is_table and family else parameter.shape[0]]
        if len(theirs) > 1:
            rows = blocks[f'{ours.removesuffix(kind)}weight']
        # 3) How they are laid out
        transposed = bool(family) and module in family.transposed and kind == 'weight'
        turns = bool(family) and family.half_turn
        turned = [turns and bool(re.search(r'\.[qk]_proj\.', name)) for name in theirs]
        found.append(Part(ours, theirs, rows, parameter.shape, is_table, transposed, turned))
    return found


def exchange_halves(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Exchange the halves of each head's rows. RoPE by +θ then gives what RoPE by -θ gave, with its
    halves exchanged: products of q and k are the same."""
    return x.view(-1, 2, head_dim // 2, *x.shape[1:]).flip(1).reshape(x.shape)


def to_theirs(
    config: GPTConfig, weights: Mapping, family: Family | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of each tensor of an export, one after the other. A gain that our model lacks
    is 1, a bias 0."""
    for part in parts(config, family):
        whole = weights.get(part.ours)
        if whole is None:
            fill = torch.zeros if part.ours.endswith('.bias') else torch.ones
            whole = fill(part.shape)
        whole = whole[: sum(part.rows)]
        for name, piece, turned in zip(part.theirs, whole.split(part.rows), part.turned):
            piece = exchange_halves(piece, config.head_dim) if turned else piece
            yield name, piece.t() if part.transposed else piece


def fold_embed_norm(config: GPTConfig, weights: Mapping) -> dict:
    """The weights of the same model without embed_norm and with an untied head: the norm is applied
    to each row of the table."""
    table = weights['transformer.wte.weight'].float()
    normed = F.rms_norm(table, (config.n_embd,), None, config.norm_eps)
    return {**weights, 'transformer.wte.weight': normed}


# -----------------------------------------------------------------------------
# reading config.json


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise SystemExit(
            f'{path} cannot be read ({error.strerror}), expected a Hugging Face folder with '
            f'{CONFIG}, {WEIGHTS} and tokenizer.json'
        ) from None
    except (ValueError, RecursionError):
        raise SystemExit(f'{path} is not JSON: download it again') from None
    if not isinstance(found, dict):
        raise SystemExit(f'{path} holds no JSON object: download it again')
    return found


LARGEST_TABLE = 2**31  # numbers in RoPE's table, which a damaged context must not blow up


def read_config(folder: Path) -> tuple[str, GPTConfig]:
    """(model_type, our config) of a folder. SystemExit for a class or an option that the model
    lacks."""
    # 1) The class
    path = folder / CONFIG
    raw = read_json(path)
    model_type = raw.get('model_type')
    if model_type == OWN:
        return OWN, own_config(path, raw)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ', '.join([*FAMILIES, OWN])
        raise SystemExit(console.printable(
            f'{path}: model_type is {model_type!r:.40}, expected one of {known}'
        ))  # fmt: skip
    family = FAMILIES[model_type]
    if raw.get('architectures') not in (None, [family.architecture]):
        refuse(path, 'architectures', raw['architectures'], [family.architecture])

    # 2) Options that the model has in one form only
    if 'num_local_experts' in raw:  # its name in transformers 5
        raw = {**raw, 'num_experts': raw['num_local_experts']}
    for name, allowed in family.constants.items():
        found = raw.get(name, family.defaults.get(name, allowed[0]))
        if found not in allowed:
            refuse(path, name, found, allowed[0])
    kinds = raw.get('layer_types') or ['full_attention']
    if not isinstance(kinds, list) or any(kind != 'full_attention' for kind in kinds):
        refuse(path, 'layer_types', raw['layer_types'], 'full_attention alone')
    if 'bias' in family.fields and raw.get('mlp_bias', False) != raw.get('attention_bias', False):
        refuse(path, 'mlp_bias', raw.get('mlp_bias', False), 'the same as attention_bias')
    for name in ('rope_parameters', 'rope_scaling'):
        scaling = raw.get(name) or {}
        if not isinstance(scaling, dict):
            refuse(path, name, scaling, 'an object')
        kind = scaling.get('rope_type', scaling.get('type', 'default'))
        if kind != 'default':
            refuse(path, name, scaling, 'plain RoPE, without scaling')
        raw = {**raw, 'rope_theta': scaling.get('rope_theta', raw.get('rope_theta', 10000.0))}

    # 3) Sizes, numbers and switches
    values = {**PRESETS[family.preset]}
    values |= {name: allowed[0] for name, allowed in family.switches.items()}
    for ours, theirs in family.fields.items():
        kind = {'int': int, 'float': float, 'bool': bool}[GPTConfig.__annotations__[ours].__name__]
        values[ours] = number(path, raw, theirs, kind, family.defaults)
    config = GPTConfig(**values)
    if config.block_size * config.head_dim > LARGEST_TABLE:
        refuse(path, family.fields['block_size'], config.block_size, 'a context of a usual length')
    return model_type, config


def own_config(path: Path, raw: dict) -> GPTConfig:
    """The config of an export with its own code: our fields, by name."""
    given = raw.get('model_config')
    kinds = {field.name: type(field.default) for field in dataclasses.fields(GPTConfig)}
    if not isinstance(given, dict) or given.keys() - kinds.keys():
        refuse(path, 'model_config', given, 'the fields of GPTConfig')
    for name, value in given.items():
        if type(value) is not kinds[name]:
            refuse(path, name, value, kinds[name].__name__)
    return GPTConfig(**given)


# None is 0 in GPTConfig: it follows from other sizes, or is off
MAY_BE_NONE = {'num_key_value_heads', 'head_dim', 'n_inner', 'final_logit_softcapping'}


def number(path: Path, raw: dict, name: str, kind: type, defaults: dict):
    """A number or a switch of config.json."""
    value = raw.get(name, defaults.get(name, ...))
    if value is ...:
        raise SystemExit(f'{path} lacks {name}')
    if value is None and name in MAY_BE_NONE:
        value = 0
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or kind is float and not math.isfinite(value):
        refuse(path, name, value, {int: 'a whole number', float: 'a number'}.get(kind, 'a bool'))
    return value


def refuse(path: Path, name: str, value, expected) -> None:
    raise SystemExit(console.printable(f'{path}: {name} is {value!r:.80}, expected {expected}'))


# -----------------------------------------------------------------------------
# reading safetensors

BYTES = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2}  # of a number, by the names in a header
ALL_BYTES = BYTES | {'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1, 'U8': 1, 'BOOL': 1}
LARGEST_HEADER = 100_000_000  # bytes: the format's own limit


def require(package: str):
    """The module of the optional extra `hf`. SystemExit with the command that installs it."""
    try:
        if package == 'gguf':
            import gguf as module
        else:
            import safetensors.torch as module
    except ImportError:
        raise SystemExit(f"{package} is not installed; run: pip install '.[hf]'") from None
    return module


def weight_files(folder: Path) -> list[Path]:
    """The folder's files of weights. SystemExit if one is missing or lies elsewhere."""
    # 1) One file
    whole = folder / WEIGHTS
    index = folder / INDEX
    if whole.exists():
        return [whole]
    # 2) No file; a pickle is never read
    if not index.exists():
        pickles = sorted(path.name for path in folder.glob('*.bin'))
        if pickles:
            raise SystemExit(
                f'{folder} has {pickles[0]}, a pickle, which can run code when it is read; convert '
                f'it where you trust it: python -c "from transformers import AutoModelForCausalLM '
                f"as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
        raise SystemExit(f'{folder} has no {WEIGHTS}: download it, and put it there')
    # 3) Shards
    listed = read_json(index).get('weight_map')
    if not isinstance(listed, dict) or not all(isinstance(x, str) for x in listed.values()):
        raise SystemExit(f'{index}: weight_map is no list of files: download it again')
    names = sorted(set(listed.values()))
    for name in names:
        if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', name):
            raise SystemExit(console.printable(
                f'{index} names the file {name!r:.80}, expected one beside it'
            ))  # fmt: skip
        if not (folder / name).is_file():
            raise SystemExit(f'{folder / name} is missing, but {INDEX} names it: download it')
    return [folder / name for name in names]


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """
    {tensor: (type, shape)} of a safetensors file: 8 bytes hold the length of a header in JSON, the
    header names each tensor's bytes in the rest of the file.

    SystemExit unless the tensors cover the rest of the file exactly.
    """
    size = path.stat().st_size

    def damaged(what: str) -> SystemExit:
        return SystemExit(console.printable(f'{path}: {what}: download it again'))

    # 1) The header
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise damaged(f'a header of {length} bytes in a file of {size}')
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise damaged('its header is no JSON object')
        header.pop('__metadata__', None)
    # 2) Each tensor
    found = {}
    ranges = []
    for name, entry in header.items():
        try:
            kind, shape = str(entry['dtype']), tuple(entry['shape'])
            begin, end = entry['data_offsets']
            is_whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise damaged(f'the entry of {name!r:.80} is damaged') from None
        if kind not in ALL_BYTES:
            raise SystemExit(console.printable(
                f'{path}: {name:.80} has numbers of type {kind!r:.20}, expected {", ".join(BYTES)}'
            ))  # fmt: skip
        if not is_whole or end - begin != math.prod(shape) * ALL_BYTES[kind]:
            raise damaged(f'{name:.80} has a shape of another size than its bytes')
        found[name] = (kind, shape)
        ranges.append((begin, end))
    # 3) Together
    place = 0
    for begin, end in sorted(ranges):
        if begin != place:
            raise damaged(f'its tensors overlap or leave a gap at byte {place}')
        place = end
    if 8 + length + place != size:
        raise damaged(f'{size} bytes, expected {8 + length + place}')
    return found


# Tensors that are no weights: masks and frequencies that some versions stored
NOT_WEIGHTS = re.compile(r'.*\.attn\.(bias|masked_bias)|.*\.rotary_emb\.inv_freq')


class Reader:
    """The tensors of a folder, by name: memory-mapped, read when used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.where = {}  # tensor: (file, type, shape)
        files = weight_files(folder)
        for path in files:
            for name, (kind, shape) in read_header(path).items():
                if name in self.where:
                    raise SystemExit(console.printable(
                        f'{folder}: two files hold {name:.80}: remove the one that is not listed'
                    ))  # fmt: skip
                self.where[name] = (path, kind, shape)
        torch_files = require('safetensors')
        self.open = {path: torch_files.safe_open(path, framework='pt') for path in files}

    def find(self, name: str) -> str:
        """The name in the files. OpenAI's have GPT-2's names without `transformer.`."""
        bare = name.removeprefix('transformer.')
        return name if name in self.where or bare not in self.where else bare

    def check(self, wanted: dict[str, tuple[int, ...]], ignored: set[str]) -> None:
        """SystemExit unless the files hold the wanted tensors with their shapes, and no others."""
        for name, shape in wanted.items():
            path, kind, found = self.where.get(self.find(name), (None, None, None))
            if path is None:
                raise SystemExit(f'{self.folder} lacks the tensor {name}, which {CONFIG} implies')
            if found != tuple(shape) or kind not in BYTES:
                raise SystemExit(
                    f'{path}: {name} is {kind} {list(found)}, expected floating-point numbers in '
                    f'{list(shape)}, which {CONFIG} implies'
                )
        known = {self.find(name) for name in wanted} | ignored
        more = [name for name in self.where if name not in known and not NOT_WEIGHTS.match(name)]
        if more:
            raise SystemExit(console.printable(
                f'{self.where[more[0]][0]} holds {more[0]:.80}, which model.py lacks'
            ))  # fmt: skip

    def get(self, name: str) -> torch.Tensor:
        name = self.find(name)
        return self.open[self.where[name][0]].get_tensor(name)


def read_weights(
    folder: Path, family: Family | None, config: GPTConfig, vocab_size: int
) -> dict[str, torch.Tensor]:
    """
    Our weights from a folder's. Tables are cut to vocab_size rows, and padded. All is checked
    before the first tensor is read. What needs no joining stays mapped to the file.
    """
    # 1) Check. A config with more layers than tensors must not build a giant
    files = Reader(folder)
    if config.n_layer > len(files.where):
        raise SystemExit(f'{folder} has {len(files.where)} tensors for {config.n_layer} layers')
    wanted = parts(config, family)
    shapes = {name: p.their_shape(i) for p in wanted for i, name in enumerate(p.theirs)}
    head = 'lm_head.weight' if family else 'model.lm_head.weight'
    files.check(shapes, ignored={head} if config.tied_head else set())

    # 2) Read
    weights = {}
    for part in wanted:
        pieces = [files.get(name) for name in part.theirs]
        if part.transposed:
            pieces = [piece.t() for piece in pieces]
        for i, turned in enumerate(part.turned):
            pieces[i] = exchange_halves(pieces[i], config.head_dim) if turned else pieces[i]
        if part.is_table:
            rows = ceil_to(vocab_size, 64)
            kept = pieces[0][:vocab_size]
            padding = kept.new_zeros(rows - len(kept), *part.shape[1:])
            pieces = [kept, padding] if len(padding) else [kept]
        weights[part.ours] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    if config.tied_head:
        weights['lm_head.weight'] = weights['transformer.wte.weight']
    return weights


# -----------------------------------------------------------------------------
# a folder as a checkpoint


def read(folder: str | Path) -> dict:
    """The dict that checkpoint.load() returns, from a Hugging Face folder. SystemExit if anything
    in it is damaged, missing or unknown."""
    # 1) Architecture and tokenizer
    folder = Path(folder)
    model_type, config = read_config(folder)
    table = read_tokenizer(folder, config)
    tokenizer = tokenizers.from_dict(table, folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise SystemExit(
            f'{folder}: the tokenizer has {tokenizer.vocab_size} ids and {CONFIG} says vocab_size '
            f'{config.vocab_size}: they do not belong together'
        )
    # 2) Weights
    family = FAMILIES.get(model_type)
    weights = read_weights(folder, family, config, tokenizer.vocab_size)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    # 3) A chat model is taken for one that has learned to answer
    templates = (folder / 'chat_template.jinja').exists()
    if (folder / 'tokenizer_config.json').exists():
        templates |= bool(read_json(folder / 'tokenizer_config.json').get('chat_template'))
    return dict(
        model=weights,
        model_config=dataclasses.asdict(config),
        tokenizer=table,
        optimizer=None,
        stage='sft' if templates else 'pretrain',
        step=0,
        seconds=0.0,
        config=dict(preset=family.preset if family else 'nano'),
        parent=None,
        kept={},
        data=None,
        best=math.inf,
        about={},
    )


def read_tokenizer(folder: Path, config: GPTConfig | None = None) -> dict:
    """The tokenizer's table. GPT-2's is known by name, so its folder needs no tokenizer.json."""
    if not (folder / 'tokenizer.json').exists():
        config = config or read_config(folder)[1]
        if config.positions == 'learned' and config.vocab_size == 50257:
            return {'kind': 'gpt2'}
    return hf_tokenizer.read(folder)


# -----------------------------------------------------------------------------
# names of folders, and the hub


def is_name(name: str) -> bool:
    """Whether it means a Hugging Face folder: hf:FOLDER, hf:owner/name, or a size of GPT-2."""
    return name in GPT2 or name.startswith('hf:')


def locate(name: str) -> Path:
    """The config.json of such a folder, downloaded first if it is the hub's."""
    repo = GPT2.get(name)
    if repo is None:
        given = os.path.expanduser(name.removeprefix('hf:'))
        if Path(given).is_dir():
            return Path(given) / CONFIG
        if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', given):
            raise SystemExit(f'there is no folder {given}, and it is no owner/name of the hub')
        repo = given
    return from_hub(repo) / CONFIG


def from_hub(repo: str, tries: int = 5) -> Path:
    """
    The folder of a repository of the hub, downloaded where files are missing.

    A folder without files.json was filled by hand and is taken as it is. SystemExit says how to do
    that if the hub cannot be reached.
    """
    from data import download  # it imports requests, which takes a moment

    folder = HUB_FOLDER / repo
    if (folder / CONFIG).exists() and not download.is_listed(folder):
        return folder
    names = f'{CONFIG}, {WEIGHTS} and tokenizer.json'
    hint = f'put {names} of {download.HUB}/{repo} into {folder}, and run again'
    remotes = download.listing(
        repo, folder, lambda: download.list_repo(repo, HUB_FILES, tries, hint, kind='models')
    )
    files = [(remote, folder / remote.url.rpartition('/')[2]) for remote in remotes]
    download.download_all(files, repo, tries)
    return folder


# -----------------------------------------------------------------------------
# a folder out

DTYPES = {name: getattr(torch, name) for name in ('float32', 'bfloat16', 'float16')}


def export_folder(state: dict, folder: str | Path, dtype: str = 'float32') -> str:
    """
    Write a checkpoint, as checkpoint.load() returns it, as a Hugging Face folder. Returns which
    class it has, and why.

    SystemExit if the folder holds files that no export wrote. config.json comes last: without it
    the folder is not read.
    """
    # 1) What, and where
    folder = Path(folder)
    tokenizer, chat, config = take_apart(state)
    model_type, config, why = choose(config)
    claim(folder)
    hf_tokenizer.write(folder, tokenizer, chat)
    # 2) Weights
    family = FAMILIES.get(model_type)
    weights = state['model']
    if state['model_config']['embed_norm'] and not config.embed_norm:
        weights = fold_embed_norm(config, weights)
    tensors = {
        name: as_dtype(name, tensor, dtype) for name, tensor in to_theirs(config, weights, family)
    }
    with disk.part_of(folder / WEIGHTS) as part:
        require('safetensors').save_file(tensors, part, metadata={'format': 'pt'})
        shutil.copymode(folder / 'tokenizer.json', part)  # else only its owner could read it
        part.replace(folder / WEIGHTS)
    # 3) Everything else
    ids = token_ids(tokenizer, chat)
    if family:
        about = their_config(model_type, family, config)
    else:
        about = own_json(config)
        for name in OWN_CODE:
            source = ROOT / 'assets' / name if name == OWN_CODE[0] else ROOT / name
            # transformers copies the files that are imported as neighbours
            code = re.sub(
                rb'\nfrom (extras|moe) import', rb'\nfrom .\1 import', source.read_bytes()
            )
            write_bytes(folder / name, code)
    write_json(folder / 'generation_config.json', ids)
    write_json(folder / CONFIG, {**about, **ids, 'dtype': dtype, 'torch_dtype': dtype, MARK: True})
    return why


def take_apart(state: dict) -> tuple[tokenizers.Tokenizer, Chat | None, GPTConfig]:
    """(tokenizer, its format of conversations or None, the model's config) of a checkpoint."""
    tokenizer = tokenizers.from_dict(state['tokenizer'])
    try:
        chat = Chat(tokenizer) if state['stage'] != 'pretrain' else None
    except SystemExit:  # the tokenizer has no format
        chat = None
    return tokenizer, chat, GPTConfig(**state['model_config'])


def claim(folder: Path) -> None:
    """Create the folder, or empty that of an earlier export. SystemExit if it holds anything else:
    what a user has downloaded or written is not replaced."""
    # 1) What is there?
    if folder.suffix in ('.gguf', '.pt', '.safetensors') or folder.is_file():
        raise SystemExit(f'--to={folder}: expected the name of a folder')
    names = {path.name for path in folder.glob('*')}
    others = sorted(names - EXPORTED)
    config = folder / CONFIG
    if names and not others and not (config.exists() and read_json(config).get(MARK)):
        others = sorted(names)
    if others:
        raise SystemExit(
            f'--to={folder}: the folder has {others[0]}, which no export wrote: take another one'
        )
    # 2) Remove config.json first: what is left is no folder of a model
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, *sorted(EXPORTED - {CONFIG})):
            (folder / name).unlink(missing_ok=True)


def as_dtype(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """A copy of the tensor in memory of its own. SystemExit if float16 cannot hold a number."""
    copy = tensor.to(DTYPES[dtype], copy=True, memory_format=torch.contiguous_format)
    if dtype == 'float16' and not copy.isfinite().all():
        raise SystemExit(f'{name} has numbers beyond float16: take --dtype=bfloat16 or float32')
    return copy


def their_config(model_type: str, family: Family, config: GPTConfig) -> dict:
    """The content of config.json, without ids of tokens."""
    found = dict(model_type=model_type, architectures=[family.architecture])
    found |= {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    found |= {name: values[0] for name, values in family.constants.items() if values[0] is not None}
    if 'attention_bias' in family.fields.values():
        found['mlp_bias'] = config.bias
    if 'final_logit_softcapping' in found:
        found['final_logit_softcapping'] = config.softcap or None
    if config.positions == 'rope':  # transformers 5 reads the second form, older ones the first
        found['rope_parameters'] = dict(rope_type='default', rope_theta=config.rope_theta)
    else:
        found |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return found


def own_json(config: GPTConfig) -> dict:
    """The same for an export with its own code."""
    code = OWN_CODE[0].removesuffix('.py')
    return dict(
        model_type=OWN,
        architectures=['FlatGPTForCausalLM'],
        auto_map=dict(
            AutoConfig=f'{code}.FlatGPTConfig', AutoModelForCausalLM=f'{code}.FlatGPTForCausalLM'
        ),
        model_config=dataclasses.asdict(config),
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        max_position_embeddings=config.block_size,
        tie_word_embeddings=config.tied_head,
    )


def token_ids(tokenizer: tokenizers.Tokenizer, chat: Chat | None) -> dict:
    """bos, eos and pad. A text ends where a chat's answer does, or where a document begins."""
    ends = sorted(chat.stop) if chat else []
    if not ends and tokenizer.bos is not None:
        ends = [tokenizer.bos]
    end = ends[0] if ends else None
    return dict(bos_token_id=tokenizer.bos, eos_token_id=end, pad_token_id=end)


def write_bytes(path: Path, content: bytes) -> None:
    with disk.replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict) -> None:
    write_bytes(path, json.dumps(content, indent=2).encode() + b'\n')


# -----------------------------------------------------------------------------
# GGUF out

GGUF_TYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'q8_0': 'Q8_0'}


def export_gguf(state: dict, path: str | Path, dtype: str = 'float32') -> str:
    """
    Write a checkpoint as one file for llama.cpp. Returns its architecture, and why.

    dtype: of the matrices; vectors stay float32, and q8_0 leaves matrices whose rows are no
    multiple of 32 in float16. SystemExit for a model that is no GPT-2, Llama or Qwen3.
    """
    # 1) The architecture; llama.cpp has none for nanochat
    path = Path(path)
    tokenizer, chat, config = take_apart(state)
    model_type, config, why = choose(config)
    if model_type not in ('gpt2', 'llama', 'qwen3'):
        raise SystemExit(
            f'llama.cpp has no model with these switches (as a folder: {why}); train with '
            '--preset=gpt2, llama or qwen3, or export with --format=hf'
        )
    gguf = require('gguf')
    weights = state['model']
    if state['model_config']['embed_norm'] and not config.embed_norm:
        weights = fold_embed_norm(config, weights)
    # 2) Facts
    disk.try_writing(path)
    with disk.part_of(path) as part:
        writer = gguf.GGUFWriter(part, model_type)
        describe_gguf(writer, gguf, config, dtype)
        for name, value in hf_tokenizer.gguf_fields(tokenizer, chat).items():
            add_field(writer, name, value)
        # 3) Tensors: the names of transformers, renamed by gguf's own table
        architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == model_type)
        table = gguf.get_tensor_name_map(architecture, config.n_layer)
        for name, tensor in to_theirs(config, weights, FAMILIES[model_type]):
            if name.endswith(CONV1D) and model_type == 'gpt2':
                tensor = tensor.t()
            if model_type == 'llama' and re.search(r'\.[qk]_proj\.', name):
                tensor = interleave(tensor, config.head_dim)
            renamed = table.get_name(name, try_suffixes=('.weight', '.bias'))
            add_tensor(writer, gguf, renamed, tensor, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    difference = hf_tokenizer.gguf_name(tokenizer)[1]
    if difference:
        difference = f'; texts may be cut otherwise than here: {difference}'
    return f'{model_type} of llama.cpp ({why}){difference}'


CONV1D = tuple(f'{name}.weight' for name in GPT2_LAYER if 'c_' in name)  # transposed in GPT-2's


def describe_gguf(writer, gguf, config: GPTConfig, dtype: str) -> None:
    """The sizes of the model, in the words of GGUF."""
    writer.add_name('flatgpt')
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_hidden)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_vocab_size(config.vocab_size)
    if config.positions == 'rope':
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    kinds = dict(
        float32='ALL_F32', float16='MOSTLY_F16', bfloat16='MOSTLY_BF16', q8_0='MOSTLY_Q8_0'
    )
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_field(writer, name: str, value) -> None:
    """One field of the tokenizer's, by the type of its value."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def add_tensor(writer, gguf, name: str, tensor: torch.Tensor, dtype: str) -> None:
    """A tensor in dtype if it is a matrix of a layer or a table of ids, else in float32."""
    kind = GGUF_TYPES[dtype] if tensor.ndim == 2 and name != 'position_embd.weight' else 'F32'
    if kind == 'Q8_0' and tensor.shape[1] % 32:
        kind = 'F16'
    kind = gguf.GGMLQuantizationType[kind]
    content = gguf.quantize(tensor.float().contiguous().numpy(), kind)
    writer.add_tensor(name, content, raw_dtype=kind)


def interleave(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head in the order 0, D/2, 1, D/2 + 1 …: llama.cpp's Llama rotates neighbours,
    where we rotate the two halves."""
    halves = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
    return halves.transpose(1, 2).reshape(x.shape)


# -----------------------------------------------------------------------------
# the program


def main(settings: dict) -> None:
    """Import a folder, or export a checkpoint, as the settings below say."""
    # 1) Settings
    source = settings['export'] or settings['import_from']
    target = settings['to']
    form = settings['format']
    dtype = settings['dtype']
    if bool(settings['export']) == bool(settings['import_from']):
        raise SystemExit('expected --export=CHECKPOINT or --import=FOLDER, and --to=PLACE')
    types = dict(hf=DTYPES, gguf=GGUF_TYPES)
    if form not in types:
        raise SystemExit(f"format is '{form}', expected hf or gguf")
    if dtype not in types[form]:
        raise SystemExit(f"dtype is '{dtype}', expected one of {', '.join(types[form])}")
    path = checkpoint.find(source)

    # 2) Import: the folder as a ckpt.pt
    if settings['import_from']:
        target = Path(target or f'out/{path.parent.resolve().name}')
        target = target if target.suffix == '.pt' else target / 'ckpt.pt'
        with disk.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(target, checkpoint.load(path))
        print(f'{target}: {target.stat().st_size:,} bytes')
        return

    # 3) Export
    if not target:
        raise SystemExit('expected --to=FOLDER, or with --format=gguf --to=FILE.gguf')
    state = checkpoint.load(path, mmap=True)
    why = (export_folder if form == 'hf' else export_gguf)(state, target, dtype)
    print(f'{path} -> {target} in {dtype}: {why}')
    if dtype == 'float16' and state['model_config']['mlp'] == 'relu2':
        print('relu2 squares activations, which may exceed float16: bfloat16 is safer')


if __name__ == '__main__':
    import checkpoint  # only here, because it imports this file
    from configurator import configure

    export = ''  # the checkpoint to write: a run's folder, or a .pt file
    import_from = ''  # the folder to read, or a repository of the hub; --import is the same
    to = ''  # export: a folder, or a .gguf file; import: a folder for ckpt.pt, or a .pt file
    format = 'hf'  # hf: a folder for transformers; gguf: a file for llama.cpp
    dtype = 'float32'  # float32, bfloat16, float16; for gguf also q8_0

    console.set_up(must_finish=True)
    arguments = [re.sub(r'^--import=', '--import_from=', given) for given in sys.argv[1:]]
    main(configure(globals(), argv=arguments))
