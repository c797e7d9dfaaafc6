"""
Token files and the ways of reading them. A reader is a sequence of training steps:

    len(reader)    steps per epoch
    reader[i]      yields this rank's micro-batches of step i, a pure function of i: resuming needs no state

    data = Data('data/shakespeare_char')
    reader = Stream(data.split('train'), Shape(rows_per_step=12, batch_size=12, block_size=64))
    for batch in reader[0]:
        (batch.weights * model(batch.inputs, batch.targets)).sum().backward()

Row g of a run is row order(epoch)[g mod n] of the data, epoch = g div n: steps span epochs, small data wraps, nothing
is dropped. Weights divide by the whole step, over all its micro-batches and all ranks, so that losses, counts and
gradients simply add up.

On disk: raw little-endian uint16 ids, nothing else, in train.bin or train_00000.bin, train_00001.bin, …, the same for
val; beside them meta.json (facts about the shards) and tok.json (the tokenizer). nanoGPT's .bin files work as they are.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import runtime
import tokenizer as tokenizers

# -----------------------------------------------------------------------------
# the .bin format


class Writer:
    """
    Write a data folder:

        with Writer('data/mine', tokenizer) as out:
            out.write('train', ids, num_bytes)    # as often as you like
            out.write('val', ids, num_bytes)      # num_bytes: the UTF-8 bytes of the text that the ids stand for

    Everything goes to temporary names first; meta.json is written last, so a folder is either whole or refused by Data.
    """

    def __init__(self, folder: str | Path, tokenizer, shard_tokens: int = 2**27):
        if tokenizer.vocab_size > 2**16:
            raise SystemExit(f'vocab_size is {tokenizer.vocab_size}, expected at most 65536: shards hold uint16 ids')
        self.folder, self.tokenizer, self.shard_tokens = Path(folder), tokenizer, shard_tokens
        self.folder.mkdir(parents=True, exist_ok=True)
        self.splits, self.file = {}, None

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
            with open(self.folder / (shard['name'] + '.part'), 'ab' if shard['tokens'] else 'wb') as file:
                file.write(part.tobytes())
            shard['tokens'] += len(part)
            shard['largest_id'] = max(shard['largest_id'], int(part.max()))
            shard['sha256'].update(part.tobytes())

    def __exit__(self, kind, error, trace):
        parts = [(s, self.folder / (s['name'] + '.part')) for f in self.splits.values() for s in f['shards']]
        if error is not None:
            for _, part in parts:
                part.unlink(missing_ok=True)
            return
        (self.folder / 'meta.json').unlink(missing_ok=True)
        self.tokenizer.save(self.folder / 'tok.json')
        for split in ('train', 'val'):
            for stale in shard_files(self.folder, split):
                stale.unlink()
        for shard, part in parts:
            runtime.sync(part)
            split = shard['name'].split('_')[0]
            if len(self.splits[split]['shards']) == 1:
                shard['name'] = f'{split}.bin'
            shard['sha256'] = shard['sha256'].hexdigest()
            part.replace(self.folder / shard['name'])
        meta = {'tokenizer': 'tok.json', 'tokenizer_hash': self.tokenizer.hash, 'vocab_size': self.tokenizer.vocab_size}
        with runtime.replacing(self.folder / 'meta.json') as file:
            file.write(json.dumps({**meta, 'dtype': 'uint16', 'splits': self.splits}, indent=1).encode())


def shard_files(folder: Path, split: str) -> list[Path]:
    """train.bin, or train_00000.bin and so on."""
    numbered = [p for p in folder.glob(f'{split}_*.bin') if p.stem.removeprefix(f'{split}_').isdigit()]
    return [p for p in [folder / f'{split}.bin'] if p.exists()] + sorted(numbered)


class Data:
    """A data folder, checked: meta (None for nanoGPT's files), tokenizer, split(name). What is wrong is named here."""

    def __init__(self, folder: str | Path):
        self.folder = folder = Path(folder)
        prepare = folder / 'prepare.py'
        self.mend = f'run: python {prepare}' if prepare.exists() else 'prepare it with data/custom/prepare.py'
        if not shard_files(folder, 'train'):
            raise self.refusal(f'no data: {folder}/train.bin does not exist')
        path = folder / 'meta.json'
        if not path.exists() and (folder / 'meta.pkl').exists():
            raise self.refusal(f"{folder} has nanoGPT's meta.pkl and no meta.json; pickles are not read here")
        if not path.exists() and (folder / 'tok.json').exists():
            raise self.refusal(f'{path} is missing: the preparation of {folder} was cut short')
        self.meta = None
        if not path.exists():
            self.tokenizer = tokenizers.from_dict({'kind': 'gpt2'})  # what nanoGPT's files without a meta.pkl hold
            return
        try:
            self.meta = json.loads(path.read_text(encoding='utf-8'))
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

    def refusal(self, what: str) -> SystemExit:
        return SystemExit(f'{what}; {self.mend}')

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
        return Shards(paths, [n // 2 for n in lengths], self.tokenizer.vocab_size, checked=self.meta is not None)

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


class Shards:
    """The shards of one split as one long sequence of ids. Read, not mapped: mapped pages count as this process's."""

    def __init__(self, paths: list[Path], lengths: list[int], vocab_size: int, checked: bool):
        self.paths, self.vocab_size, self.checked = paths, vocab_size, checked
        self.ends = np.cumsum(lengths)

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """(count,) int64 ids, or fewer at the end of the data."""
        out, shard = [np.zeros(0, '<u2')], int(np.searchsorted(self.ends, start, side='right'))
        while count > 0 and shard < len(self.paths):
            first = int(self.ends[shard - 1]) if shard else 0
            part = np.fromfile(self.paths[shard], '<u2', count, offset=2 * (start - first))
            if not self.checked and part.max(initial=0) >= self.vocab_size:
                raise SystemExit(
                    f'{self.paths[shard]} holds the id {part.max()}, expected less than vocab_size = {self.vocab_size}'
                )
            out.append(part)
            start, count, shard = start + len(part), count - len(part), shard + 1
        return np.concatenate(out).astype(np.int64)


# -----------------------------------------------------------------------------
# steps


class Shape(NamedTuple):
    rows_per_step: int  # over all micro-batches and ranks; 0 is all rows there are
    batch_size: int  # rows of a micro-batch, at most
    block_size: int  # tokens of a row
    rank: int = 0
    world_size: int = 1
    seed: int = 1337
    dtype: torch.dtype = torch.float32  # of the weights


class Batch(NamedTuple):
    inputs: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64, inputs shifted by one
    weights: torch.Tensor  # (B, T) each target's share of the step's loss
    metrics: dict = {}  # {name: number} for the log, additive over micro-batches and ranks

    def to(self, device: str) -> 'Batch':
        """Copy to the device; to CUDA from pinned memory, without waiting."""
        if not device.startswith('cuda'):
            move = lambda t: t.to(device)  # noqa: E731
        else:
            move = lambda t: t.pin_memory().to(device, non_blocking=True)  # noqa: E731
        return self._replace(inputs=move(self.inputs), targets=move(self.targets), weights=move(self.weights))


class Reader:
    """Shared by all readers: which rows make up step i on this rank, and how they become tensors of one static shape.

    A subclass says num_rows, row(r) -> (T + 1,) ids and (T,) weights (or one for all), and count(r), their sum.
    8 rows on 3 ranks with batch_size 2: the fullest rank has 3 rows, so each rank runs 2 micro-batches of 2 rows.
    """

    def __init__(self, num_rows: int, shape: Shape, shuffle: bool = True):
        shape = shape._replace(rows_per_step=shape.rows_per_step or num_rows)
        self.num_rows, self.shape, self.shuffle = num_rows, shape, shuffle
        self.orders = {}
        share = -(-shape.rows_per_step // shape.world_size)  # rows of the fullest rank
        self.micro_batches = -(-share // shape.batch_size)
        self.micro_batch_rows = -(-share // self.micro_batches)  # evenly full, and the same on every rank

    def __len__(self):
        return -(-self.num_rows // self.shape.rows_per_step)

    def order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:  # a step rarely spans more than two
            while len(self.orders) > 1:
                del self.orders[min(self.orders)]
            rng = np.random.default_rng((self.shape.seed, epoch))
            self.orders[epoch] = rng.permutation(self.num_rows) if self.shuffle else np.arange(self.num_rows)
        return self.orders[epoch]

    def rows(self, step: int) -> list[int]:
        """The data rows of step i over all ranks, in order."""
        epochs, places = np.divmod(np.arange(self.shape.rows_per_step) + step * self.shape.rows_per_step, self.num_rows)
        return [int(r) for e in np.unique(epochs) for r in self.order(int(e))[places[epochs == e]]]

    def __getitem__(self, step: int) -> Iterator[Batch]:
        rows = self.rows(step)
        total = max(1, sum(self.count(r) for r in rows))
        mine = rows[self.shape.rank :: self.shape.world_size]
        T, B = self.shape.block_size, self.micro_batch_rows
        for b in range(self.micro_batches):
            ids, weights = np.zeros((B, T + 1), np.int64), np.zeros((B, T))  # rows that a rank lacks stay at weight 0
            for i, r in enumerate(mine[b * B : (b + 1) * B]):
                ids[i], weights[i] = self.row(r)
            ids, weights = torch.from_numpy(ids), torch.from_numpy(weights / total).to(self.shape.dtype)
            yield Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights)


def count_rows(shards: Shards, block_size: int) -> int:
    """Rows of block_size tokens and their targets; less than one is an error."""
    if len(shards) <= block_size:
        have, needed = f'{shards.paths[0]} holds {len(shards)} tokens', block_size + 1
        raise SystemExit(f'{have}, less than one row: expected {needed}, or a smaller --block_size')
    return (len(shards) - 1) // block_size


class Stream(Reader):
    """
    Pretraining and midtraining: one long text cut into rows of which every token counts.

    Row k starts at the first <|bos|> at or after k * T and before (k + 1) * T, so that most rows begin a document;
    where none is, or bos is None, at k * T. limit: no more than so many rows. A validation reader has all its rows in
    one step, unshuffled, cut at k * T: each target once.
    """

    def __init__(
        self, shards: Shards, shape: Shape, bos: int | None = None, shuffle: bool = True, limit: int | None = None
    ):
        self.shards, self.bos = shards, bos
        num_rows = count_rows(shards, shape.block_size)
        num_rows = min(num_rows, limit or num_rows)
        super().__init__(num_rows, shape, shuffle)

    def count(self, r: int) -> int:
        return self.shape.block_size

    def row(self, r: int):
        T = self.shape.block_size
        if self.bos is None:
            return self.shards.read(r * T, T + 1), 1.0
        ids = self.shards.read(r * T, 2 * T)
        starts = np.flatnonzero(ids[:T] == self.bos)
        # a start before T leaves T + 1 of the 2 * T ids, but for the data's last rows, where fewer were read
        start = int(starts[0]) if len(starts) and starts[0] + T < len(ids) else 0
        return ids[start : start + T + 1], 1.0


class Ahead:
    """The same steps on the device, the step after the one asked for prepared and copied by a thread meanwhile."""

    def __init__(self, reader: Reader, device: str):
        self.reader, self.device = reader, device
        # a thread has a current card of its own, which pinning memory touches
        own_card = dict(initializer=torch.cuda.set_device, initargs=(device,)) if device.startswith('cuda') else {}
        self.pool, self.step, self.ready = ThreadPoolExecutor(1, **own_card), None, None

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, step: int) -> list[Batch]:
        if self.step != step:  # through the thread too: a reader is not for two threads at once
            self.step, self.ready = step, self.pool.submit(self.prepare, step)
        batches = self.ready.result()
        self.step, self.ready = step + 1, self.pool.submit(self.prepare, step + 1)
        return batches

    def prepare(self, step):
        return [batch.to(self.device) for batch in self.reader[step]]
