"""
The files of a Hugging Face folder, read and checked: JSON, and tensors in safetensors files.

    raw = read_json(folder / CONFIG)
    files = Tensors(folder)                  # of model.safetensors, or of shards with an index
    files.check({name: shape, ...}, ignored)
    tensor = files.get(name)                 # read from the disk when it is used

A folder may come from anyone. Every size and offset is checked before it is used, an error is one
line that names the file, and no file runs as code. families.py knows what the tensors mean, and
hf_tokenizer.py reads the tokenizer.

Left out on purpose: pickles, which can run code when they are read, and quantized weights.
"""

import json
import math
import re
from pathlib import Path

import torch

import console

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

BYTES = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2}  # of a number, by the names in a header
ALL_BYTES = BYTES | {'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1, 'U8': 1, 'BOOL': 1}
LARGEST_HEADER = 100_000_000  # bytes: the format's own limit


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


# -----------------------------------------------------------------------------
# safetensors


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
            kind = str(entry['dtype'])
            shape = tuple(entry['shape'])
            begin, end = entry['data_offsets']
            are_counts = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise damaged(f'the entry of {name!r:.80} is damaged') from None
        if kind not in ALL_BYTES:
            raise SystemExit(console.printable(
                f'{path}: {name:.80} has numbers of type {kind!r:.20}, expected {", ".join(BYTES)}'
            ))  # fmt: skip
        if not are_counts or end - begin != math.prod(shape) * ALL_BYTES[kind]:
            raise damaged(f'{name:.80} has a shape of another size than its bytes')
        found[name] = (kind, shape)
        ranges.append((begin, end))
    # 3) All together: no overlap, no gap, nothing after them
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


class Tensors:
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

    def __len__(self) -> int:
        return len(self.where)

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
        for name, (path, _, _) in self.where.items():
            if name not in known and not NOT_WEIGHTS.match(name):
                raise SystemExit(console.printable(
                    f'{path} holds {name:.80}, which model.py lacks'
                ))  # fmt: skip

    def get(self, name: str) -> torch.Tensor:
        name = self.find(name)
        path, _, _ = self.where[name]
        return self.open[path].get_tensor(name)
