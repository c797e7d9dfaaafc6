"""
Token files: writing, checking and reading them.

    with Writer('data/mine', tokenizer) as out:
        out.write('train', ids, num_bytes)

    data = Data('data/mine')
    ids = data.split('train').read(0, 1000)

On disk: raw little-endian uint16 ids, nothing else, in train.bin or train_00000.bin,
train_00001.bin, …, the same for val; beside them meta.json (facts about the shards) and tok.json
(the tokenizer). nanoGPT's .bin files work as they are.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

import console
import disk
import tokenizer as tokenizers
from utf8 import valid_text

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
        self.name = str(folder)
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
        self.name = ','.join(data.name for data, _ in parts)
        for data, _ in parts:
            check_tokenizer(data, first.tokenizer.hash, first.folder)
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
# does the data suit the run?


def check_tokenizer(data: Data | Mixture, tokenizer_hash: str, path: str | Path) -> None:
    """SystemExit unless the data has the tokenizer of `path`, a checkpoint or a data folder, whose
    hash is given."""
    if data.tokenizer.hash != tokenizer_hash:
        raise another_tokenizer(data.name, path)


def another_tokenizer(name: str | Path, path: str | Path) -> SystemExit:
    return SystemExit(
        f'{name} was made with another tokenizer than {path}; prepare it again with '
        f'--tokenizer={path}, which data/custom/prepare.py (for any text) and '
        'data/tinyworld/prepare.py take'
    )


def check_kind(data: Data | Mixture, stage: str) -> None:
    """SystemExit if only one of the data and the stage is about preferences. Data whose meta.json
    names no kind suits every stage."""
    kind = (data.meta or {}).get('kind')
    if kind and (kind == 'preferences') != (stage == 'dpo'):
        raise SystemExit(
            f'{data.name} holds {kind} and stage is {stage}; '
            'preferences are for --stage=dpo and for no other stage'
        )


def check_isolate(data: Data | Mixture) -> None:
    """SystemExit if the tokenizer has no token that begins a document."""
    if data.tokenizer.bos is None:
        raise SystemExit(
            f'{data.name} has no token that begins a document, '
            'so --isolate=True cannot tell documents apart; leave it out'
        )
