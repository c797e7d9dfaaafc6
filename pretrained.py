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

On export the first class of transformers that fits is taken. A model that fits none is written with
its own code, model.py, and loads with trust_remote_code=True.

This file finds and reads folders. families.py has the classes of transformers that we know,
hf_files.py checks the files, hf_tokenizer.py converts tokenizers, and export.py writes.

Left out on purpose: pickles, which can run code when they are read, and quantized weights as input.
"""

import dataclasses
import math
import os
import re
import sys
from pathlib import Path

import torch

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import console
import disk
import hf_tokenizer
import tokenizer as tokenizers
from families import FAMILIES, OWN, Family, map_tensors, to_ours
from hf_files import CONFIG, WEIGHTS, Tensors, read_json
from model import PRESETS, GPTConfig

ROOT = Path(__file__).resolve().parent
HUB_FOLDER = ROOT / 'data' / 'hub'
GPT2 = {
    name: f'openai-community/{name}' for name in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')
}
# What is downloaded of a repository
HUB_FILES = (
    r'(config|generation_config|tokenizer|tokenizer_config|model\.safetensors\.index)\.json'
    r'|chat_template\.jinja|model(-\d+-of-\d+)?\.safetensors'
)
LARGEST_TABLE = 2**31  # numbers in RoPE's table, which a damaged context must not blow up

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


def read_weights(
    folder: Path, family: Family | None, config: GPTConfig, vocab_size: int
) -> dict[str, torch.Tensor]:
    """Our weights from a folder's. All is checked before the first tensor is read. What needs no
    joining stays mapped to the file."""
    # 1) A config with more layers than tensors must not build a giant
    files = Tensors(folder)
    if config.n_layer > len(files):
        raise SystemExit(f'{folder} has {len(files)} tensors for {config.n_layer} layers')

    # 2) Check names and shapes. A tied head may be there too: it is the table once more
    maps = map_tensors(config, family)
    shapes = {name: m.their_shape(i) for m in maps for i, name in enumerate(m.theirs)}
    head = 'lm_head.weight' if family else 'model.lm_head.weight'
    files.check(shapes, ignored={head} if config.tied_head else set())

    # 3) Read
    return to_ours(config, maps, files.get, vocab_size)


# -----------------------------------------------------------------------------
# config.json

FIELD_TYPES = {field.name: type(field.default) for field in dataclasses.fields(GPTConfig)}


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

    # 2) Options
    if 'num_local_experts' in raw:  # its name in transformers 5
        raw = {**raw, 'num_experts': raw['num_local_experts']}
    check_options(path, raw, family)
    raw = {**raw, 'rope_theta': read_rope_theta(path, raw)}

    # 3) Switches, sizes and numbers
    values = {**PRESETS[family.preset]}
    values |= {name: allowed[0] for name, allowed in family.switches.items()}
    for ours, theirs in family.fields.items():
        values[ours] = read_value(path, raw, theirs, FIELD_TYPES[ours], family.defaults)
    config = GPTConfig(**values)
    if config.block_size * config.head_dim > LARGEST_TABLE:
        refuse(path, family.fields['block_size'], config.block_size, 'a context of a usual length')
    return model_type, config


def check_options(path: Path, raw: dict, family: Family) -> None:
    """SystemExit for an option that the class has in several forms and our model in another one."""
    for name, allowed in family.constants.items():
        found = raw.get(name, family.defaults.get(name, allowed[0]))
        if found not in allowed:
            refuse(path, name, found, allowed[0])
    kinds = raw.get('layer_types') or ['full_attention']
    if not isinstance(kinds, list) or any(kind != 'full_attention' for kind in kinds):
        refuse(path, 'layer_types', raw['layer_types'], 'full_attention alone')
    if 'bias' in family.fields and raw.get('mlp_bias', False) != raw.get('attention_bias', False):
        refuse(path, 'mlp_bias', raw.get('mlp_bias', False), 'the same as attention_bias')


def read_rope_theta(path: Path, raw: dict):
    """RoPE's base: a field of its own, or of an object (from transformers 5 on). SystemExit if RoPE
    is scaled."""
    theta = raw.get('rope_theta', 10000.0)
    for name in ('rope_parameters', 'rope_scaling'):
        given = raw.get(name) or {}
        if not isinstance(given, dict):
            refuse(path, name, given, 'an object')
        kind = given.get('rope_type', given.get('type', 'default'))
        if kind != 'default':
            refuse(path, name, given, 'plain RoPE, without scaling')
        theta = given.get('rope_theta', theta)
    return theta


def own_config(path: Path, raw: dict) -> GPTConfig:
    """The config of an export with its own code: our fields, by name."""
    given = raw.get('model_config')
    if not isinstance(given, dict) or given.keys() - FIELD_TYPES.keys():
        refuse(path, 'model_config', given, 'the fields of GPTConfig')
    for name, value in given.items():
        if type(value) is not FIELD_TYPES[name]:
            refuse(path, name, value, FIELD_TYPES[name].__name__)
    return GPTConfig(**given)


# None is 0 in GPTConfig: it follows from other sizes, or is off
MAY_BE_NONE = {'num_key_value_heads', 'head_dim', 'n_inner', 'final_logit_softcapping'}


def read_value(path: Path, raw: dict, name: str, kind: type, defaults: dict):
    """A number or a switch of config.json, of the type `kind`. SystemExit if it is missing or
    another type."""
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
    from export import DTYPES, GGUF_TYPES, export_folder, export_gguf  # train.py needs none of it

    export = ''  # the checkpoint to write: a run's folder, or a .pt file
    import_from = ''  # the folder to read, or a repository of the hub; --import is the same
    to = ''  # export: a folder, or a .gguf file; import: a folder for ckpt.pt, or a .pt file
    format = 'hf'  # hf: a folder for transformers; gguf: a file for llama.cpp
    dtype = 'float32'  # float32, bfloat16, float16; for gguf also q8_0

    console.set_up(must_finish=True)
    arguments = [re.sub(r'^--import=', '--import_from=', given) for given in sys.argv[1:]]
    main(configure(globals(), argv=arguments))
