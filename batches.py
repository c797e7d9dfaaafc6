"""
Token files and the ways of reading them. A reader is a sequence of training steps:

    len(reader)    steps per epoch
    reader[i]      yields this rank's micro-batches of step i, a pure function of i: resuming needs no state

    data = Data('data/shakespeare_char')
    reader = Stream(data.split('train'), Shape(rows_per_step=12, batch_size=12, block_size=64))
    for batch in reader[0]:
        (batch.weights * model(batch.inputs, batch.targets)).sum().backward()

Stream reads text, Packed conversations, Pairs answers to choose between, and Rollouts has the model write its own rows.
Row g of a run is row order(epoch)[g mod n] of the data, epoch = g div n: steps span epochs, small data wraps, nothing
is dropped. Weights divide by the whole step, over all its micro-batches and all ranks, so that losses, counts and
gradients simply add up.

On disk: raw little-endian uint16 ids, nothing else, in train.bin or train_00000.bin, train_00001.bin, …, the same for
val; beside them meta.json (facts about the shards) and tok.json (the tokenizer). nanoGPT's .bin files work as they are.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import console
import disk
import tokenizer as tokenizers
from model import ceil_to
from utf8 import valid_text

# -----------------------------------------------------------------------------
# the .bin format


UNFINISHED = 'meta.json.part'  # lists the files of a folder while a Writer replaces them


class Writer:
    """
    Write a data folder:

        with Writer('data/mine', tokenizer) as out:
            out.write('train', ids, num_bytes)    # as often as you like
            out.write('val', ids, num_bytes)      # num_bytes: the UTF-8 bytes of the text that the ids stand for

    Everything goes to temporary names first; meta.json is written last, so a folder is either whole or refused by Data.
    notes: what else meta.json is to say, such as what a model of these data knows and prompts to try.
    Files of an earlier Writer are replaced or removed; any other file in their place is refused.
    """

    def __init__(self, folder: str | Path, tokenizer, shard_tokens: int = 2**27, notes: dict | None = None):
        if tokenizer.vocab_size > 2**16:
            raise SystemExit(f'vocab_size is {tokenizer.vocab_size}, expected at most 65536: shards hold uint16 ids')
        self.folder, self.tokenizer, self.shard_tokens = Path(folder), tokenizer, shard_tokens
        names = [] if holds(self.folder / 'tok.json', tokenizer) else ['tok.json']
        refuse_to_replace(self.folder, names)
        with disk.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.splits, self.notes = {}, notes or {}
        self.files = {}  # name: sha256, of what else belongs to the data

    def __enter__(self):
        return self

    def write(self, split: str, ids, num_bytes: int) -> None:
        ids = np.asarray(ids)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
            raise ValueError(f'ids span {ids.min()}..{ids.max()}, expected 0..{self.tokenizer.vocab_size - 1}')
        facts = self.splits.setdefault(split, {'tokens': 0, 'bytes': 0, 'shards': []})
        facts['tokens'] += len(ids)
        facts['bytes'] += num_bytes
        ids = ids.astype('<u2')
        while len(ids):
            shards = facts['shards']
            if not shards or shards[-1]['tokens'] == self.shard_tokens:
                name = f'{split}_{len(shards):05d}.bin'
                shards.append({'name': name, 'tokens': 0, 'largest_id': 0, 'sha256': hashlib.sha256()})
            shard = shards[-1]
            part, ids = np.split(ids, [min(len(ids), self.shard_tokens - shard['tokens'])])
            path = self.folder / (shard['name'] + '.part')
            with disk.writing(path), open(path, 'ab' if shard['tokens'] else 'wb') as file:
                file.write(part.tobytes())
            shard['tokens'] += len(part)
            shard['largest_id'] = max(shard['largest_id'], int(part.max()))
            shard['sha256'].update(part.tobytes())

    def add(self, name: str, content: bytes) -> None:
        """One more file of the folder, such as problems.jsonl."""
        refuse_to_replace(self.folder, [name])
        self.files[name] = hashlib.sha256(content).hexdigest()
        with disk.writing(self.folder):
            (self.folder / (name + '.part')).write_bytes(content)

    def __exit__(self, kind, error, trace):
        shards = [shard for facts in self.splits.values() for shard in facts['shards']]
        names = [shard['name'] for shard in shards] + list(self.files)
        parts = [self.folder / (name + '.part') for name in names]
        try:
            if error is None:
                with disk.writing(self.folder):
                    self.publish(shards, parts)
        finally:
            for part in parts:
                with suppress(OSError):  # it has its final name, or never came to be
                    part.unlink()

    def publish(self, shards: list[dict], parts: list[Path]) -> None:
        """Replace the folder's earlier files by the new ones."""
        # 1) All is on the disk: if that is full, it shows here, and the old data is still whole
        for part in parts:
            disk.sync(part)
        # 2) The final names; a split of one shard has no number
        for split, facts in self.splits.items():
            if len(facts['shards']) == 1:
                facts['shards'][0]['name'] = f'{split}.bin'
        for shard in shards:
            shard['sha256'] = shard['sha256'].hexdigest()
        names = [shard['name'] for shard in shards] + list(self.files)
        # 3) Without meta.json the folder is refused; meanwhile a list says which files are ours
        stale = own_files(self.folder)
        with disk.replacing(self.folder / UNFINISHED) as file:
            file.write(json.dumps(sorted(stale | {*names, 'tok.json', 'meta.json'})).encode())
        (self.folder / 'meta.json').unlink(missing_ok=True)
        # 4) The new files for the old
        self.tokenizer.save(self.folder / 'tok.json')
        for name in stale - {'tok.json', 'meta.json'}:
            (self.folder / name).unlink(missing_ok=True)
        for name, part in zip(names, parts):
            part.replace(self.folder / name)
        # 5) What makes them valid
        meta = {'tokenizer': 'tok.json', 'tokenizer_hash': self.tokenizer.hash, 'vocab_size': self.tokenizer.vocab_size}
        with disk.replacing(self.folder / 'meta.json') as file:
            meta |= {'dtype': 'uint16', 'splits': self.splits, 'files': self.files}
            meta = {**self.notes, **meta}
            file.write(json.dumps(meta, indent=1).encode())
        (self.folder / UNFINISHED).unlink()


def own_files(folder: Path) -> set[str]:
    """
    The names of a data folder's files that a Writer made, which the next one may replace or remove.

    meta.json lists them. problems.jsonl and what else came by Writer.add is text that people edit:
    it counts while it is unchanged.
    """
    there = {path.name: path for path in folder.glob('*') if path.is_file()}
    source = next((name for name in ('meta.json', UNFINISHED) if name in there), None)
    try:
        found = json.loads(there[source].read_text(encoding='utf-8')) if source else []
        if isinstance(found, list):
            return there.keys() & found
        shards = [shard['name'] for facts in found['splits'].values() for shard in facts['shards']]
        listed = there.keys() & {*shards, found['tokenizer'], 'meta.json'}
        files = found.get('files', {})  # data prepared before there was this key have none
        return listed | {n for n, sha in files.items() if n in there and sha256_of(there[n]) == sha}
    except (ValueError, KeyError, TypeError, AttributeError):  # a meta.json of another program
        return set()


def refuse_to_replace(folder: Path, names: Sequence[str] = ()) -> None:
    """SystemExit if the folder has a shard, a meta.json or one of `names` that no Writer made."""
    own = own_files(folder)
    shards = [path.name for split in ('train', 'val') for path in shard_files(folder, split)]
    names = [*shards, 'meta.json', *names]
    others = [str(folder / name) for name in names if name not in own and (folder / name).exists()]
    if others:
        raise SystemExit(
            f'{", ".join(others)} would be replaced, and no preparation wrote it as it is: '
            'move it away, or prepare into another folder'
        )


def holds(path: Path, tokenizer) -> bool:
    """Whether the file is this tokenizer's tok.json, so that writing it changes nothing."""
    try:
        return path.exists() and tokenizers.load(path).hash == tokenizer.hash
    except SystemExit:  # not a tok.json
        return False


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def shard_files(folder: Path, split: str) -> list[Path]:
    """train.bin, or train_00000.bin and so on."""
    numbered = [p for p in folder.glob(f'{split}_*.bin') if p.stem.removeprefix(f'{split}_').isdigit()]
    return [p for p in [folder / f'{split}.bin'] if p.exists()] + sorted(numbered)


class Data:
    """A data folder, checked: meta (None for nanoGPT's files), tokenizer, problems (the path of its problems.jsonl,
    which may lie one folder up, or None), split(name). What is wrong is named here."""

    def __init__(self, folder: str | Path):
        self.folder = folder = Path(folder)
        prepare = next((p for p in (folder / 'prepare.py', folder.parent / 'prepare.py') if p.exists()), None)
        self.mend = f'run: python {prepare}' if prepare else 'prepare it with data/custom/prepare.py'
        if not shard_files(folder, 'train'):
            raise self.refusal(f'no data: {folder}/train.bin does not exist')
        path = folder / 'meta.json'
        if not path.exists() and (folder / 'meta.pkl').exists():
            what = f"{folder} has nanoGPT's meta.pkl and no meta.json; pickles are not read here"
            raise self.refusal(f'{what}: move its .bin files away')
        if not path.exists() and (folder / 'tok.json').exists():
            raise self.refusal(f'{path} is missing: the preparation of {folder} was cut short')
        places = [place / 'problems.jsonl' for place in (folder, folder.parent)]
        self.problems = next((place for place in places if place.exists()), None)
        self.meta = None
        if not path.exists():
            self.tokenizer = tokenizers.from_dict({'kind': 'gpt2'})  # what nanoGPT's files without a meta.pkl hold
            return
        try:
            self.meta = valid_text(json.loads(path.read_bytes()))  # also with a byte order mark
            tokenizer_path, expected = folder / self.meta['tokenizer'], str(self.meta['tokenizer_hash'])
            self.facts = {
                split: {shard['name']: (int(shard['tokens']), int(shard['largest_id'])) for shard in facts['shards']}
                for split, facts in self.meta['splits'].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.refusal(f'{path} cannot be read ({error!r})') from None
        if not tokenizer_path.exists():
            raise self.refusal(f'{tokenizer_path} does not exist')
        self.tokenizer = tokenizers.load(tokenizer_path)
        if self.tokenizer.hash != expected:
            raise self.refusal(f'{tokenizer_path} has hash {self.tokenizer.hash[:12]}, {path} expects {expected[:12]}')

    @property
    def hash(self) -> str | None:
        """Changes when a shard changes; None without meta.json."""
        if self.meta is None:
            return None
        shards = {}
        for split, facts in self.meta['splits'].items():
            shards[split] = [shard.get('sha256') for shard in facts['shards']]
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    def refusal(self, what: str) -> SystemExit:
        return SystemExit(console.printable(f'{what}; {self.mend}'))  # it may quote meta.json

    def split(self, name: str) -> 'Shards':
        paths = shard_files(self.folder, name)
        lengths = [p.stat().st_size for p in paths]
        for path, length in zip(paths, lengths):
            if length % 2:
                raise self.refusal(f'{path} has {length} bytes, expected an even number (uint16 ids)')
        if not sum(lengths):
            raise self.refusal(f"{self.folder} has no tokens in its split '{name}'")
        if self.meta:
            self.check(name, paths, lengths)
        return Shards(paths, [n // 2 for n in lengths], self.tokenizer.vocab_size)

    def check(self, name, paths, lengths):
        known = self.facts.get(name, {})
        if sorted(known) != [p.name for p in paths]:
            raise self.refusal(f'{self.folder} holds {[p.name for p in paths]}, meta.json lists {sorted(known)}')
        for path, length in zip(paths, lengths):
            tokens, largest = known[path.name]
            if length != 2 * tokens:
                raise self.refusal(f'{path} has {length // 2} tokens, meta.json says {tokens}')
            if largest >= self.tokenizer.vocab_size:
                vocab_size = self.tokenizer.vocab_size
                raise self.refusal(f'{path} holds the id {largest}, expected less than vocab_size = {vocab_size}')


class Mixture:
    """Data folders as one, each so many times an epoch; in use like a Data. meta: the first folder's, and what the
    others' say besides; None if one of them has none."""

    def __init__(self, parts: list[tuple[Data, int]]):
        self.parts, first = parts, parts[0][0]
        self.folder, self.tokenizer = first.folder, first.tokenizer
        for data, _ in parts:
            if data.tokenizer.hash != first.tokenizer.hash:
                raise another_tokenizer(data.folder, first.folder)
        self.problems = next((data.problems for data, _ in parts if data.problems), None)
        metas = [data.meta for data, _ in parts]
        self.meta = None if None in metas else {key: x for meta in reversed(metas) for key, x in meta.items()}

    @property
    def hash(self) -> str | None:
        hashes = [data.hash for data, _ in self.parts]
        return None if None in hashes else hashlib.sha256(''.join(hashes).encode()).hexdigest()

    def split(self, name: str) -> 'Shards':
        """Only what is learned from is repeated, what is measured is not."""
        found = [(data.split(name), repeats if name == 'train' else 1) for data, repeats in self.parts]
        laid = [(copy, shards) for copy in range(max(n for _, n in found)) for shards, n in found if copy < n]
        paths = [path for _, shards in laid for path in shards.paths]
        lengths = [length for _, shards in laid for length in np.diff(shards.ends, prepend=0).tolist()]
        copies = [copy for copy, shards in laid for _ in shards.paths]
        return Shards(paths, lengths, self.tokenizer.vocab_size, copies)


def another_tokenizer(data: str | Path, path: str | Path) -> SystemExit:
    """The refusal of data whose tokenizer is not that of path: a checkpoint, or a data folder."""
    what = f'{data} was made with another tokenizer than {path}'
    takers = 'data/custom/prepare.py (for any text) and data/tinyworld/prepare.py'
    return SystemExit(f'{what}; prepare it again with --tokenizer={path}, which {takers} take')


def mixture(dataset: str) -> list[tuple[str, int]]:
    """'smoltalk,gsm8k:4' -> [('smoltalk', 1), ('gsm8k', 4)]: folders, and how often an epoch has each."""
    parts = []
    for item in dataset.split(','):
        name, _, repeats = item.strip().rpartition(':')
        if not (name and repeats.isdecimal()):
            name, repeats = item.strip(), 1
        if not name or int(repeats) < 1:
            raise SystemExit(f"dataset is '{dataset}', expected names or name:repeats, such as smoltalk,gsm8k:4")
        parts.append((name, int(repeats)))
    return parts


def open_data(root: str | Path, dataset: str) -> Data | Mixture:
    """The data that the setting `dataset` names: a folder under root (or an absolute path), or a mixture of such."""
    parts = [(Data(Path(root) / name), repeats) for name, repeats in mixture(dataset)]
    return parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else Mixture(parts)


class Shards:
    """The shards of one split as one long sequence of ids. Read, not mapped: mapped pages count as this process's.

    copies: where a mixture repeats shards, which time each of them is read; else 0 for all.
    """

    def __init__(self, paths: list[Path], lengths: list[int], vocab_size: int, copies: list[int] | None = None):
        self.paths, self.vocab_size = paths, vocab_size
        self.ends, self.copies = np.cumsum(lengths), np.array(copies or [0] * len(paths))

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """(count,) int64 ids, or fewer at the end of the data."""
        out, shard = [np.zeros(0, '<u2')], int(np.searchsorted(self.ends, start, side='right'))
        while count > 0 and shard < len(self.paths):
            first = int(self.ends[shard - 1]) if shard else 0
            part = np.fromfile(self.paths[shard], '<u2', count, offset=2 * (start - first))
            if part.max(initial=0) >= self.vocab_size:
                raise SystemExit(
                    f'{self.paths[shard]} holds the id {part.max()}, expected less than vocab_size = {self.vocab_size}'
                )
            out.append(part)
            start, count, shard = start + len(part), count - len(part), shard + 1
        return np.concatenate(out).astype(np.int64)


# -----------------------------------------------------------------------------
# steps


class Shape(NamedTuple):
    """The shape of a step, and this rank's place in it."""

    rows_per_step: int  # over all micro-batches and ranks; 0: all rows of the data
    batch_size: int  # rows of a micro-batch, at most
    block_size: int  # tokens per row
    rank: int = 0
    world_size: int = 1
    seed: int = 1337
    dtype: torch.dtype = torch.float32  # of the weights


class Batch(NamedTuple):
    """One micro-batch of this rank."""

    inputs: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64, inputs shifted by one
    weights: torch.Tensor  # (B, T) each target's share of the step's loss
    share: torch.Tensor | None = None  # (B,) Pairs: the share of the step's loss of a row's pair
    reference: torch.Tensor | None = None  # (B,) Pairs: the row's log-probability under the reference
    metrics: dict = {}  # {name: number} for the log, additive over micro-batches and ranks

    def to(self, device: str) -> 'Batch':
        """Copy to the device; to CUDA from pinned memory, without waiting."""

        def move(t):
            if device.startswith('cuda'):
                return t.pin_memory().to(device, non_blocking=True)
            return t.to(device)

        tensors = {k: t for k, t in self._asdict().items() if isinstance(t, torch.Tensor)}
        return self._replace(**{k: move(t) for k, t in tensors.items()})


class Reader:
    """
    What all readers share: which rows make up step i on this rank, and how rows become tensors of
    one static shape.

    A subclass has num_rows, row(r) -> (T + 1,) ids and (T,) weights (or one weight for all), and
    count(r), the sum of the weights. It may set group: rows that belong together stay on one rank,
    and in one micro-batch if batch_size is a multiple of group.

    Example: 8 rows on 3 ranks with batch_size 2. The fullest rank has 3 rows, so each rank runs 2
    micro-batches of 2 rows; missing rows have weight 0.
    """

    group = 1

    def __init__(self, num_rows: int, shape: Shape, shuffle: bool = True):
        shape = shape._replace(rows_per_step=shape.rows_per_step or num_rows)
        self.num_rows = num_rows
        self.shape = shape
        self.shuffle = shuffle
        self.orders = {}  # epoch -> order(epoch), the latest two
        groups, rest = divmod(shape.rows_per_step, self.group)
        if rest:
            raise SystemExit(
                f'a step has {shape.rows_per_step} rows (gradient_accumulation_steps * batch_size), '
                f'expected a multiple of {self.group}, the rows that belong together; change either'
            )
        # every rank runs as many micro-batches as the fullest one, all of one size
        unit = self.group if shape.batch_size % self.group == 0 else 1
        most = -(-groups // shape.world_size) * self.group // unit  # units of the fullest rank
        self.micro_batches = -(-most // (shape.batch_size // unit))
        self.micro_batch_rows = -(-most // self.micro_batches) * unit

    def __len__(self):
        return -(-self.num_rows // self.shape.rows_per_step)

    def order(self, epoch: int) -> np.ndarray:
        """The order in which an epoch reads the groups."""
        if epoch not in self.orders:
            while len(self.orders) > 1:
                del self.orders[min(self.orders)]
            groups = self.num_rows // self.group
            rng = np.random.default_rng((self.shape.seed, epoch))
            self.orders[epoch] = rng.permutation(groups) if self.shuffle else np.arange(groups)
        return self.orders[epoch]

    def groups(self, step: int) -> list[int]:
        """The groups of step i over all ranks, in order. Rank r has every world_size-th of them,
        starting at number r."""
        count = self.shape.rows_per_step // self.group
        positions = np.arange(count) + step * count
        epochs, places = np.divmod(positions, self.num_rows // self.group)
        return [int(g) for e in np.unique(epochs) for g in self.order(int(e))[places[epochs == e]]]

    def rows(self, step: int) -> list[int]:
        """The data rows of step i over all ranks, in order."""
        return [g * self.group + i for g in self.groups(step) for i in range(self.group)]

    def mine(self, step: int) -> list[int]:
        """The data rows of step i on this rank, in the order of its micro-batches."""
        groups = self.groups(step)[self.shape.rank :: self.shape.world_size]
        return [g * self.group + i for g in groups for i in range(self.group)]

    def total(self, step: int) -> int:
        """The divisor of the weights: the supervised targets of step i over all ranks."""
        return max(1, sum(self.count(r) for r in self.rows(step)))

    def __getitem__(self, step: int) -> Iterator[Batch]:
        mine = self.mine(step)
        total = self.total(step)
        B = self.micro_batch_rows
        for b in range(0, self.micro_batches * B, B):
            yield self.batch(mine[b : b + B], total)

    def batch(self, rows: list[int], total: int) -> Batch:
        return self.collate((ids, weights / total) for ids, weights in map(self.row, rows))

    def collate(self, rows) -> Batch:
        """(ids, weights) of each row -> tensors. Rows that this rank lacks have weight 0."""
        T = self.shape.block_size
        B = self.micro_batch_rows
        ids = np.zeros((B, T + 1), np.int64)
        weights = np.zeros((B, T))
        for i, (row_ids, row_weights) in enumerate(rows):
            ids[i] = row_ids
            weights[i] = row_weights
        ids = torch.from_numpy(ids)
        weights = torch.from_numpy(weights).to(self.shape.dtype)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights)


def count_rows(shards: Shards, block_size: int) -> int:
    """Rows of block_size tokens and their targets. SystemExit for less than one."""
    if len(shards) <= block_size:
        raise SystemExit(
            f'{shards.paths[0]} holds {len(shards)} tokens, less than one row: '
            f'expected {block_size + 1}, or a smaller --block_size'
        )
    return (len(shards) - 1) // block_size


class Stream(Reader):
    """
    Text, cut into rows in which every token counts (pretraining).

    Row k starts at the first <|bos|> at or after k * T and before (k + 1) * T, so that most rows
    begin a document; at k * T where there is none, or bos is None. limit: at most this many rows. A
    validation reader has all its rows in one step, unshuffled, cut at k * T: each target once.
    """

    def __init__(
        self, shards: Shards, shape: Shape, bos: int | None = None, shuffle: bool = True,
        limit: int | None = None,
    ):  # fmt: skip
        self.shards = shards
        self.bos = bos
        num_rows = count_rows(shards, shape.block_size)
        super().__init__(min(num_rows, limit or num_rows), shape, shuffle)

    def count(self, r: int) -> int:
        return self.shape.block_size

    def row(self, r: int):
        T = self.shape.block_size
        if self.bos is None:
            return self.shards.read(r * T, T + 1), 1.0
        ids = self.shards.read(r * T, 2 * T)
        starts = np.flatnonzero(ids[:T] == self.bos)
        # the last rows of the data read fewer than 2 * T ids: a later start may not leave T + 1
        start = int(starts[0]) if len(starts) and starts[0] + T < len(ids) else 0
        return ids[start : start + T + 1], 1.0


def find_documents(shards: Shards, bos: int) -> np.ndarray:
    """(n + 1,) int64: the position of each document's <|bos|>, and the end of the data."""
    chunk = 2**22
    starts = [
        start + np.flatnonzero(shards.read(start, chunk) == bos)
        for start in range(0, len(shards), chunk)
    ]
    starts = np.concatenate([*starts, [len(shards)]])
    if starts[0] != 0:
        raise SystemExit(
            f'{shards.paths[0]} does not begin with <|bos|>, expected conversations, which do'
        )
    return starts


def count_spoken(shards: Shards, chat, starts: np.ndarray, size: int) -> np.ndarray:
    """(n,) int64: how many of each document's first `size` ids the assistant says. Reads about a
    million ids at a time."""
    counts = np.zeros(len(starts) - 1, np.int64)
    i = 0
    while i < len(counts):
        j = max(i + 1, int(np.searchsorted(starts, starts[i] + 2**20, side='right')) - 1)
        places = starts[i : j + 1] - starts[i]
        spoken = chat.is_spoken(shards.read(int(starts[i]), int(places[-1])))
        # before[k]: spoken targets among ids[:k]; ids[0] is a bos, not a target
        before = np.concatenate(([0, 0], np.cumsum(spoken)))
        ends = np.minimum(places[:-1] + size, places[1:])
        counts[i:j] = before[ends] - before[places[:-1]]
        i = j
    return counts


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """
    Bin packing, best fit decreasing (Johnson, 1974): the largest item first, each into the row it
    fills best. Returns each item's row, and the number of rows.

    Rows are listed by the room they have left. Bit r of `rooms` says that a row with room r exists,
    so that finding the best row takes a few operations, however many rows there are.
    """
    by_room = [[] for _ in range(capacity + 1)]
    rooms = 0
    num_rows = 0
    row_of = np.zeros(len(sizes), np.int64)
    order = np.argsort(-sizes, kind='stable')
    for item, size in zip(order.tolist(), sizes[order].tolist()):
        fitting = rooms >> size
        if fitting:
            lowest_bit = (fitting & -fitting).bit_length() - 1
            room = size + lowest_bit
            row = by_room[room].pop()
            rooms ^= (not by_room[room]) << room
        else:
            room = capacity
            row = num_rows
            num_rows += 1
        row_of[item] = row
        by_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return row_of, num_rows


class Packed(Reader):
    """
    Whole conversations, packed into rows; only what the assistant says counts (mid, SFT).

    A conversation longer than a row is cut by chat.pieces. Pieces in which the assistant says
    nothing are dropped, so that every row teaches something. The rest of a row is bos at weight 0.
    Best fit puts long conversations first, so rows are renumbered by a fixed permutation: the first
    `limit` rows are then a fair sample.
    """

    def __init__(
        self, shards: Shards, chat, shape: Shape, shuffle: bool = True, limit: int | None = None
    ):
        self.shards = shards
        self.chat = chat
        self.size = shape.block_size + 1

        # 1) Pieces of conversations
        pieces = self.find_pieces()
        if not len(pieces):
            raise SystemExit(
                f'{shards.paths[0]} has no token that the assistant says, expected conversations'
            )

        # 2) Pack them. Each copy of a mixture is packed by itself: were a conversation twice in a
        # row, the model could copy it
        row_of = np.zeros(len(pieces), np.int64)
        num_rows = 0
        copies = shards.copies[np.searchsorted(shards.ends, pieces[:, 0], side='right')]
        for copy in np.unique(copies):
            rows, count = best_fit(pieces[copies == copy, 3], self.size)
            row_of[copies == copy] = num_rows + rows
            num_rows += count
        row_of = np.random.default_rng(0).permutation(num_rows)[row_of]

        # 3) Index by row
        self.counts = np.bincount(row_of, pieces[:, 4], num_rows).astype(np.int64)
        self.pieces = pieces[np.argsort(row_of, kind='stable'), :3].copy()
        self.ends = np.cumsum(np.bincount(row_of, minlength=num_rows))  # of each row's pieces
        super().__init__(min(num_rows, limit or num_rows), shape, shuffle)

    def find_pieces(self) -> np.ndarray:
        """(n, 5) int64 for each piece: position and length of its document, number within it, ids,
        and how many of them the assistant says."""
        starts = find_documents(self.shards, self.chat.bos)
        places = starts[:-1]
        lengths = np.diff(starts)
        spoken = count_spoken(self.shards, self.chat, starts, len(self.shards))
        # whole documents
        columns = (places, lengths, 0 * lengths, lengths, spoken)
        whole = np.stack(columns, axis=1)[(spoken > 0) & (lengths <= self.size)]
        # documents longer than a row
        cut = []
        for i in np.flatnonzero((spoken > 0) & (lengths > self.size)):
            document = int(places[i]), int(lengths[i])
            for number, ids in enumerate(self.chat.pieces(self.shards.read(*document), self.size)):
                spoken_here = int(self.chat.is_spoken(ids).sum())
                if spoken_here:
                    cut.append((*document, number, len(ids), spoken_here))
        return np.concatenate((whole, np.array(cut, np.int64).reshape(-1, 5)))

    def count(self, r: int) -> int:
        return int(self.counts[r])

    def row(self, r: int):
        first = self.ends[r - 1] if r else 0
        out = []
        for place, length, number in self.pieces[first : self.ends[r]].tolist():
            ids = self.shards.read(place, length)
            out.append(ids if length <= self.size else self.chat.pieces(ids, self.size)[number])
        ids = pad(np.concatenate(out), self.size, self.chat.bos)
        return ids, self.chat.is_spoken(ids)

    def batch(self, rows: list[int], total: int) -> Batch:
        supervised = float(sum(map(self.count, rows)))
        return super().batch(rows, total)._replace(metrics={'supervised': supervised})


def pad(ids, size: int, bos: int) -> np.ndarray:
    """(n,) ids -> (size,) ids, filled up with bos, which the mask never counts."""
    return np.concatenate((ids, np.full(size - len(ids), bos))).astype(np.int64)


class Pairs(Reader):
    """
    Preferences (DPO): documents 2i and 2i + 1 are the chosen and the rejected answer to one prompt;
    rows of a batch alternate likewise.

    weights are 1 where the assistant speaks, undivided: the loss needs log-probabilities of whole
    rows. share is a pair's part of the step. reference holds one number per row of the data and may
    be set later. Rows are padded to the longest document, rounded up to 64: shape.block_size becomes
    that, if it was more.
    """

    group = 2

    def __init__(
        self, shards: Shards, chat, shape: Shape, reference=None, shuffle: bool = True,
        limit: int | None = None,
    ):  # fmt: skip
        self.shards = shards
        self.chat = chat
        self.starts = find_documents(shards, chat.bos)

        # 1) Documents come in pairs, and each has an answer
        path = shards.paths[0]
        documents = len(self.starts) - 1
        T = shape.block_size
        if documents % 2:
            raise SystemExit(
                f'{path} holds {documents} documents, expected an even number: chosen and rejected'
            )
        if shape.batch_size % 2:
            raise SystemExit(
                f'a micro-batch has {shape.batch_size} rows (batch_size or cpu_micro_batch_size), '
                'expected an even number: a pair stays together'
            )
        silent = np.flatnonzero(count_spoken(shards, chat, self.starts, T + 1) == 0)
        if len(silent):
            raise SystemExit(
                f'document {silent[0]} (of {documents}, counted from 0) of {path} has no answer '
                f'within {T + 1} tokens; shorten or mend it'
            )

        # 2) Rows as long as the longest document
        lengths = np.diff(self.starts)
        too_long = int((lengths > T + 1).sum())
        if too_long and shape.rank == 0:
            print(
                f'{path}: {too_long} of {documents} documents are longer than {T + 1} tokens '
                'and are cut at the end'
            )
        shape = shape._replace(block_size=min(T, ceil_to(int(lengths.max()) - 1, 64)))
        num_rows = min(documents, max(2, limit - limit % 2)) if limit else documents
        super().__init__(num_rows, shape, shuffle)
        self.reference = reference

    @property
    def reference(self) -> np.ndarray | None:
        """(num_rows,) float64: the rows' log-probabilities under the reference model, or None."""
        return self._reference

    @reference.setter
    def reference(self, numbers):
        if numbers is not None and len(numbers) != self.num_rows:
            raise SystemExit(
                f'{len(numbers)} log-probabilities of the reference are for other data than '
                f'{self.shards.paths[0]}, expected one for each of {self.num_rows} rows; '
                'start the stage again'
            )
        self._reference = None if numbers is None else np.asarray(numbers, np.float64)

    def total(self, step: int) -> int:
        return 1

    def row(self, r: int):
        size = self.shape.block_size + 1
        start, end = self.starts[r : r + 2].tolist()
        ids = pad(self.shards.read(start, min(size, end - start)), size, self.chat.bos)
        return ids, self.chat.is_spoken(ids)

    def batch(self, rows: list[int], total: int) -> Batch:
        def column(numbers):
            column = np.zeros(self.micro_batch_rows)  # 0 for the rows that a rank lacks
            column[: len(rows)] = numbers
            return torch.from_numpy(column).to(self.shape.dtype)

        share = column(self.group / self.shape.rows_per_step)
        reference = None if self.reference is None else column(self.reference[rows])
        return super().batch(rows, total)._replace(share=share, reference=reference)


class Rollouts(Reader):
    """
    Reinforcement learning: the model answers each question of the step `samples` times. The weight
    of a sampled token is its answer's advantage, the reward minus the mean reward of the question,
    divided by the sampled tokens of the whole step.

    This is GRPO (Shao et al., 2024) on policy, with the mean as baseline, no division by the
    standard deviation and token-level normalisation (Dr. GRPO, Liu et al., 2025; DAPO, Yu et al.,
    2025). Weights do not sum to 1.

        generate(prompts, numbers, n, seed) -> n Samples (engine.py) per prompt, in order, at
            temperature 1; sample j of prompt number q draws from stream (*seed, q, j) on any rank
        grade(problem, text) -> reward      problem: see tasks.py; text: what a user would see
        add_up(numbers) -> their sums over the ranks; called once per step
        note({'prompt', 'text', 'reward'})  the step's first answer with its calls, on rank 0
        device                              of the batches; Ahead cannot be used here

    Answers with advantage 0 are left out. So ranks may run different numbers of micro-batches, at
    least one each. A step is a pure function of its number and the model's weights.
    """

    def __init__(
        self, generate: Callable, grade: Callable, problems: list[dict], chat, shape: Shape,
        samples: int, max_tokens: int, add_up: Callable, note: Callable | None = None,
        device: str = 'cpu',
    ):  # fmt: skip
        self.generate = generate
        self.grade = grade
        self.problems = problems
        self.chat = chat
        self.add_up = add_up
        self.note = note
        self.group = samples
        self.device = device

        # every question must leave room for an answer
        if not problems or samples < 2 or max_tokens < 1:
            raise SystemExit(
                f'{len(problems)} problems, {samples} samples of each and rl_tokens = {max_tokens}: '
                'expected at least one problem, two samples and one token'
            )
        self.prompts = [chat.prompt(problem['messages']) for problem in problems]
        longest = max(range(len(problems)), key=lambda q: len(self.prompts[q]))
        needed = len(self.prompts[longest]) + max_tokens
        if needed > shape.block_size:
            question = problems[longest]['messages'][-1]['content']
            raise SystemExit(
                f'the question {question!r:.60} takes {needed - max_tokens} tokens, expected at most '
                f'block_size - rl_tokens = {shape.block_size} - {max_tokens}; '
                'take shorter ones, or lower --rl_tokens'
            )
        shape = shape._replace(block_size=min(shape.block_size, ceil_to(needed, 64)))
        super().__init__(len(problems) * samples, shape)

    def __getitem__(self, step: int) -> Iterator[Batch]:
        rank = self.shape.rank
        R = self.shape.rows_per_step
        S = self.group

        # 1) Answer this rank's questions
        questions = self.groups(step)[rank :: self.shape.world_size]
        prompts = [self.prompts[q] for q in questions]
        numbers = list(range(rank, R // S, self.shape.world_size))
        seed = (self.shape.seed, step)
        answers = self.generate(prompts, numbers, S, seed) if prompts else []

        # 2) Grade them; advantage: reward minus the mean of the question's rewards
        asked = [q for q in questions for _ in range(S)]  # the question of each answer
        rewards = [self.grade(self.problems[q], answer.text) for q, answer in zip(asked, answers)]
        rewards = np.array(rewards).reshape(-1, S).astype(np.float64)
        equal = rewards.max(1) == rewards.min(1)  # exactly 0 there, not the mean's rounding error
        centred = rewards - rewards.mean(1, keepdims=True)
        advantages = np.where(equal[:, None], 0.0, centred).flatten()

        # 3) Rows, and the sampled tokens of all ranks
        rows = [self.lay_out(self.prompts[q], answer) for q, answer in zip(asked, answers)]
        sampled = float(sum(spoken.sum() for _, spoken in rows))
        (total,) = self.add_up([sampled])

        # 4) For the log
        cut_off = sum(answer.finish_reason != 'stop' for answer in answers)
        sums = dict(
            reward=rewards.sum(), no_signal=S * equal.sum(), truncated=cut_off, length=sampled
        )
        metrics = {name: float(x) / R for name, x in sums.items()}
        if self.note and rank == 0:
            question = self.problems[asked[0]]['messages'][-1]['content']
            text = self.chat.transcript(answers[0].ids)
            self.note(dict(prompt=question, text=text, reward=float(rewards[0, 0])))

        # 5) Micro-batches of the answers that teach something
        B = self.micro_batch_rows
        taught = np.flatnonzero(advantages)
        for b in range(0, max(1, len(taught)), B):
            batch = self.collate(
                (rows[i][0], rows[i][1] * advantages[i] / total) for i in taught[b : b + B]
            )
            yield batch._replace(metrics={} if b else metrics).to(self.device)

    def lay_out(self, prompt, answer):
        """Prompt and answer -> (T + 1,) ids of a row, (T,) bool: which targets were sampled."""
        ids = pad([*prompt, *answer.ids], self.shape.block_size + 1, self.chat.bos)
        sampled = np.zeros(len(ids) - 1, bool)
        first = len(prompt) - 1
        sampled[first : first + len(answer.ids)] = answer.spoken
        spoken = self.chat.is_spoken(ids)
        spoken[:first] = False  # earlier answers of the assistant belong to the question
        assert np.array_equal(spoken, sampled), 'mask and engine must agree on what was sampled'
        return ids, sampled


class Ahead:
    """The same steps on the device. A thread prepares and copies the next step meanwhile."""

    def __init__(self, reader: Reader, device: str):
        self.reader = reader
        self.device = device
        self.step = None
        self.ready = None
        # a thread has a current card of its own, which pinning memory uses
        own_card = {}
        if device.startswith('cuda'):
            own_card = dict(initializer=torch.cuda.set_device, initargs=(device,))
        self.pool = ThreadPoolExecutor(1, **own_card)

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, step: int) -> list[Batch]:
        if self.step != step:  # through the thread too: a reader is not for two threads at once
            self.step = step
            self.ready = self.pool.submit(self.prepare, step)
        batches = self.ready.result()
        self.step = step + 1
        self.ready = self.pool.submit(self.prepare, step + 1)
        return batches

    def prepare(self, step):
        return [batch.to(self.device) for batch in self.reader[step]]
