"""
Export a checkpoint: as a Hugging Face folder for transformers, or as a GGUF file for llama.cpp.

    why = export_folder(checkpoint.load('out/tinyworld/rl/ckpt.pt'), 'out/hf')
    why = export_gguf(checkpoint.load('assets/tinyworld.pt'), 'box.gguf', 'q8_0')

families.py chooses the class of transformers. A model that fits none becomes a folder with its own
code. As a command: python pretrained.py --export=CHECKPOINT --to=PLACE.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

import disk
import hf_tokenizer
import tokenizer as tokenizers
from conversation import Chat
from families import (
    FAMILIES,
    GPT2_LAYER,
    OWN,
    OWN_CODE,
    Family,
    choose,
    fold_embed_norm,
    to_theirs,
)
from hf_files import CONFIG, WEIGHTS, read_json, require
from model import GPTConfig

ROOT = Path(__file__).resolve().parent
# What an export writes, and so what it may replace
EXPORTED = {
    CONFIG, WEIGHTS, 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json',
    'chat_template.jinja', 'special_tokens_map.json', *OWN_CODE,
}  # fmt: skip
MARK = 'exported_by_flatgpt'  # in config.json: the folder may be replaced by another export
DTYPES = {name: getattr(torch, name) for name in ('float32', 'bfloat16', 'float16')}
GGUF_TYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'q8_0': 'Q8_0'}

# -----------------------------------------------------------------------------
# a checkpoint taken apart


def take_apart(state: dict) -> tuple[tokenizers.Tokenizer, Chat | None, GPTConfig]:
    """(tokenizer, its format of conversations or None, the model's config) of a checkpoint."""
    tokenizer = tokenizers.from_dict(state['tokenizer'])
    try:
        chat = Chat(tokenizer) if state['stage'] != 'pretrain' else None
    except SystemExit:  # the tokenizer has no format
        chat = None
    return tokenizer, chat, GPTConfig(**state['model_config'])


def weights_for(config: GPTConfig, state: dict) -> Mapping:
    """The checkpoint's weights as a model of `config`, which choose() returned, has them."""
    if state['model_config']['embed_norm'] and not config.embed_norm:
        return fold_embed_norm(config, state['model'])
    return state['model']


# -----------------------------------------------------------------------------
# a folder


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
    tensors = {
        name: as_dtype(name, tensor, dtype)
        for name, tensor in to_theirs(config, weights_for(config, state), family)
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
        write_own_code(folder)
    write_json(folder / 'generation_config.json', ids)
    write_json(folder / CONFIG, {**about, **ids, 'dtype': dtype, 'torch_dtype': dtype, MARK: True})
    return why


def claim(folder: Path) -> None:
    """Create the folder, or empty that of an earlier export. SystemExit if it holds anything else:
    what a user has downloaded or written is not replaced."""
    # 1) What is there?
    if folder.suffix in ('.gguf', '.pt', '.safetensors') or folder.is_file():
        raise SystemExit(f'--to={folder}: expected the name of a folder')
    names = {path.name for path in folder.glob('*')}
    others = sorted(names - EXPORTED)
    config = folder / CONFIG
    if not others and not (config.exists() and read_json(config).get(MARK)):
        others = sorted(names)  # those of an export, but a downloaded model has them too
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
    # 1) What the table says
    found = dict(model_type=model_type, architectures=[family.architecture])
    found |= {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    found |= {name: values[0] for name, values in family.constants.items() if values[0] is not None}
    # 2) What the table cannot say
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


def write_own_code(folder: Path) -> None:
    """Copy OWN_CODE. Its imports become relative: transformers copies only files that are imported
    as neighbours."""
    for name in OWN_CODE:
        source = ROOT / 'assets' / name if name == OWN_CODE[0] else ROOT / name
        code = re.sub(rb'\nfrom (extras|moe) import', rb'\nfrom .\1 import', source.read_bytes())
        write_bytes(folder / name, code)


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
# GGUF

# GPT-2's matrices, which transformers stores transposed and GGUF does not
CONV1D = tuple(f'{name}.weight' for name in GPT2_LAYER if 'c_' in name)


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
        family = FAMILIES[model_type]
        for name, tensor in to_theirs(config, weights_for(config, state), family):
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
    _, difference = hf_tokenizer.gguf_name(tokenizer)
    if difference:
        difference = f'; texts may be cut otherwise than here: {difference}'
    return f'{model_type} of llama.cpp ({why}){difference}'


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
    in_dtype = tensor.ndim == 2 and name != 'position_embd.weight'
    kind = GGUF_TYPES[dtype] if in_dtype else 'F32'
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
