"""
Token files: writing, checking and reading them.

    with Writer('data/mine', tokenizer) as out:
        out.write('train', ids, num_bytes)

    data = Data('data/mine')
    ids = data.split('train').read(0, 1000)

On disk, a split is one shard, train.bin, or several, train_00000.bin, train_00001.bin, …; the same
for val. A shard holds raw ids (see id_dtype) and nothing else. Beside the shards are meta.json
(facts about them) and tok.json (the tokenizer). nanoGPT's .bin files work as they are.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

import console
import disk
import tokenizer as tokenizers
from tokenizer import id_dtype
from utf8 import valid_text

COUNTED = 2**24  # ids in which the documents of a mixture's part are counted
UNFINISHED = 'meta.json.part'  # lists the files of a folder while a Writer replaces them
DTYPES = {'uint16': np.dtype('<u2'), 'uint32': np.dtype('<u4')}  # by their name in meta.json


# -----------------------------------------------------------------------------
# writing


class Writer:
    """
    Write a data folder:

        with Writer('data/mine', tokenizer) as out:
            out.write('train', ids, num_bytes)  # as often as needed
            out.write('val', ids, num_bytes)    # num_bytes: the UTF-8 bytes of the ids' text

    Everything gets temporary names first, and meta.json is written last: Data either finds a whole
    folder or refuses it. Files of an earlier Writer are replaced or removed. SystemExit if another
    file would be replaced.

    shard_tokens: the most ids in one shard. notes: further keys of meta.json, such as the kind of
    the data, what a model trained on it knows, and prompts to try.
    """

    def __init__(
        self, folder: str | Path, tokenizer, shard_tokens: int = 2**27, notes: dict | None = None
    ):
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.dtype = id_dtype(tokenizer.vocab_size)
        self.shard_tokens = shard_tokens
        names = [] if holds(self.folder / 'tok.json', tokenizer) else ['tok.json']
        refuse_to_replace(self.folder, names)
        with disk.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.splits = {}
        self.notes = notes or {}
        self.files = {}  # {name of an added file: its sha256}

    def __enter__(self):
        return self

    def write(self, split: str, ids, num_bytes: int) -> None:
        """Append ids, (n,), to a split. ValueError for ids outside the vocabulary."""
        # 1) Check and count
        ids = np.asarray(ids)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
            raise ValueError(
                f'ids span {ids.min()}..{ids.max()}, expected 0..{self.tokenizer.vocab_size - 1}'
            )
        facts = self.splits.setdefault(split, {'tokens': 0, 'bytes': 0, 'shards': []})
        facts['tokens'] += len(ids)
        facts['bytes'] += num_bytes

        # 2) Fill the last shard, then new ones
        ids = ids.astype(self.dtype)
        while len(ids):
            shards = facts['shards']
            if not shards or shards[-1]['tokens'] == self.shard_tokens:
                name = f'{split}_{len(shards):05d}.bin'
                shards.append(dict(name=name, tokens=0, largest_id=0, sha256=hashlib.sha256()))
            shard = shards[-1]
            part, ids = np.split(ids, [min(len(ids), self.shard_tokens - shard['tokens'])])
            path = self.folder / (shard['name'] + '.part')
            with disk.writing(path), open(path, 'ab' if shard['tokens'] else 'wb') as file:
                file.write(part.tobytes())
            shard['tokens'] += len(part)
            shard['largest_id'] = max(shard['largest_id'], int(part.max()))
            shard['sha256'].update(part.tobytes())

    def adopt(self, split: str, path: Path, facts: dict) -> None:
        """
        Append a whole shard that another Writer made: path, and its entry in that one's meta.json
        with 'bytes'. The file is linked, or copied where the disk has no hard links. A split has
        shards that are written or adopted, not both.
        """
        found = self.splits.setdefault(split, {'tokens': 0, 'bytes': 0, 'shards': []})
        shard = dict(facts, name=f'{split}_{len(found["shards"]):05d}.bin')
        found['tokens'] += shard['tokens']
        found['bytes'] += shard['bytes']
        found['shards'].append(shard)
        part = self.folder / (shard['name'] + '.part')
        with disk.writing(part):
            part.unlink(missing_ok=True)  # of a killed process; it may be a link to another shard
            try:
                os.link(path, part)
            except OSError:
                shutil.copyfile(path, part)

    def add(self, name: str, content: bytes) -> None:
        """Add another file to the folder, such as problems.jsonl."""
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
                with suppress(OSError):  # renamed, or never created
                    part.unlink()

    def publish(self, shards: list[dict], parts: list[Path]) -> None:
        """Replace the folder's earlier files by the new ones."""
        # 1) Flush to the disk. A full disk fails here, while the old data is still whole
        for part in parts:
            disk.sync(part)

        # 2) Final names; a split of one shard has no number
        for split, facts in self.splits.items():
            if len(facts['shards']) == 1:
                facts['shards'][0]['name'] = f'{split}.bin'
        for shard in shards:
            if not isinstance(shard['sha256'], str):  # an adopted one has it
                shard['sha256'] = shard['sha256'].hexdigest()
        names = [shard['name'] for shard in shards] + list(self.files)

        # 3) Remove meta.json, so that Data refuses the folder; UNFINISHED lists our files instead
        stale = own_files(self.folder)
        with disk.replacing(self.folder / UNFINISHED) as file:
            file.write(json.dumps(sorted(stale | {*names, 'tok.json', 'meta.json'})).encode())
        (self.folder / 'meta.json').unlink(missing_ok=True)

        # 4) Replace the old files
        self.tokenizer.save(self.folder / 'tok.json')
        for name in stale - {'tok.json', 'meta.json'}:
            (self.folder / name).unlink(missing_ok=True)
        for name, part in zip(names, parts):
            part.replace(self.folder / name)

        # 5) Write meta.json: the folder is valid
        meta = {
            **self.notes,
            'tokenizer': 'tok.json',
            'tokenizer_hash': self.tokenizer.hash,
            'vocab_size': self.tokenizer.vocab_size,
            'dtype': self.dtype.name,
            'splits': self.splits,
            'files': self.files,
        }
        with disk.replacing(self.folder / 'meta.json') as file:
            file.write(json.dumps(meta, indent=1).encode())
        (self.folder / UNFINISHED).unlink()


def own_files(folder: Path) -> set[str]:
    """
    Names of the files in a data folder that a Writer made: the next one may replace or remove them.

    meta.json lists them. A file added by Writer.add, such as problems.jsonl, is text that people
    edit: it counts only while it is unchanged.
    """
    there = {path.name: path for path in folder.glob('*') if path.is_file()}
    source = next((name for name in ('meta.json', UNFINISHED) if name in there), None)
    try:
        found = json.loads(there[source].read_text(encoding='utf-8')) if source else []
        if isinstance(found, list):
            return there.keys() & found
        shards = [shard['name'] for facts in found['splits'].values() for shard in facts['shards']]
        listed = there.keys() & {*shards, found['tokenizer'], 'meta.json'}
        added = found.get('files', {})  # older data has no such key
        unchanged = {n for n, sha in added.items() if n in there and sha256_of(there[n]) == sha}
        return listed | unchanged
    except (ValueError, KeyError, TypeError, AttributeError):  # another program's meta.json
        return set()


def refuse_to_replace(folder: Path, names: Sequence[str] = ()) -> None:
    """SystemExit if the folder has a shard, a meta.json or one of `names` that no Writer made."""
    own = own_files(folder)
    shards = [path.name for split in ('train', 'val') for path in shard_files(folder, split)]
    names = [*shards, 'meta.json', *names]
    others = [str(folder / name) for name in names if name not in own and (folder / name).exists()]
    if others:
        raise SystemExit(
            f'{", ".join(others)} would be replaced, but no preparation wrote it as it is: '
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
    numbered = [
        path
        for path in folder.glob(f'{split}_*.bin')
        if path.stem.removeprefix(f'{split}_').isdigit()
    ]
    single = folder / f'{split}.bin'
    return ([single] if single.exists() else []) + sorted(numbered)


# -----------------------------------------------------------------------------
# reading


class NotPrepared(SystemExit):
    """The data do not exist yet. The message names the program that prepares them."""


class Data:
    """
    A data folder, checked. SystemExit says what is wrong, and which command prepares the folder.

    folder, name    its path; the path as text, for messages
    meta            the content of meta.json; None for nanoGPT's files: their ids are GPT-2's
    tokenizer       see tokenizer.py
    dtype           of the ids in its files
    problems        path of problems.jsonl, in the folder or the one above it, or None
    """

    def __init__(self, folder: str | Path):
        self.folder = folder = Path(folder)
        self.name = str(folder)
        self.hint = self.find_hint()

        # 1) Shards and meta.json
        if not shard_files(folder, 'train'):
            missing = self.refusal(f'no data: {folder}/train.bin does not exist')
            raise NotPrepared(missing.code) if self.hint.startswith('run: ') else missing
        path = folder / 'meta.json'
        if not path.exists() and (folder / 'meta.pkl').exists():
            raise self.refusal(
                f"{folder} has nanoGPT's meta.pkl and no meta.json; pickles are not read here: "
                'move its .bin files away'
            )
        if not path.exists() and (folder / 'tok.json').exists():
            raise self.refusal(f'{path} is missing: the preparation of {folder} was cut short')
        places = [place / 'problems.jsonl' for place in (folder, folder.parent)]
        self.problems = next((place for place in places if place.exists()), None)

        # 2) nanoGPT's files without a meta.pkl hold GPT-2's encoding
        self.meta = None
        if not path.exists():
            self.tokenizer = tokenizers.from_dict({'kind': 'gpt2'})
            self.dtype = id_dtype(self.tokenizer.vocab_size)
            return

        # 3) What meta.json says
        try:
            self.meta = valid_text(json.loads(path.read_bytes()))  # also with a byte order mark
            tokenizer_path = folder / self.meta['tokenizer']
            expected = str(self.meta['tokenizer_hash'])
            self.dtype = DTYPES[self.meta.get('dtype', 'uint16')]
            self.facts = {  # split: {shard: (tokens, largest id)}
                split: {
                    shard['name']: (int(shard['tokens']), int(shard['largest_id']))
                    for shard in facts['shards']
                }
                for split, facts in self.meta['splits'].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.refusal(f'{path} cannot be read ({error!r})') from None

        # 4) The tokenizer
        if not tokenizer_path.exists():
            raise self.refusal(f'{tokenizer_path} does not exist')
        self.tokenizer = tokenizers.load(tokenizer_path)
        if self.tokenizer.hash != expected:
            raise self.refusal(
                f'{tokenizer_path} has hash {self.tokenizer.hash[:12]}, '
                f'{path} expects {expected[:12]}'
            )

    def find_hint(self) -> str:
        """How to prepare the folder: by a prepare.py in it or one folder up, else data/custom's."""
        for place in (self.folder, self.folder.parent):
            if (place / 'prepare.py').exists():
                return f'run: python {place / "prepare.py"}'
        return 'prepare it with data/custom/prepare.py'

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
        # the text may quote meta.json, which may hold control characters
        return SystemExit(console.printable(f'{what}; {self.hint}'))

    def split(self, name: str) -> 'Shards':
        """The ids of a split. SystemExit if there are none, or if the files contradict
        meta.json."""
        paths = shard_files(self.folder, name)
        lengths = []  # ids per shard
        for path in paths:
            length, rest = divmod(path.stat().st_size, self.dtype.itemsize)
            if rest:
                raise self.refusal(
                    f'{path} has {path.stat().st_size} bytes, expected a multiple of '
                    f'{self.dtype.itemsize} ({self.dtype.name} ids)'
                )
            lengths.append(length)
        if not sum(lengths):
            raise self.refusal(f"{self.folder} has no tokens in its split '{name}'")
        if self.meta:
            self.check(name, paths, lengths)
        return Shards(paths, lengths, self.tokenizer.vocab_size, dtypes=[self.dtype] * len(paths))

    def check(self, name: str, paths: list[Path], lengths: list[int]) -> None:
        """Compare the shards of a split with meta.json."""
        known = self.facts.get(name, {})
        if sorted(known) != [p.name for p in paths]:
            raise self.refusal(
                f'{self.folder} holds {[p.name for p in paths]}, meta.json lists {sorted(known)}'
            )
        vocab_size = self.tokenizer.vocab_size
        for path, length in zip(paths, lengths):
            tokens, largest = known[path.name]
            if length != tokens:
                raise self.refusal(f'{path} has {length} tokens, meta.json says {tokens}')
            if largest >= vocab_size:
                raise self.refusal(
                    f'{path} holds the id {largest}, expected less than vocab_size = {vocab_size}'
                )


class Mixture:
    """
    Several data folders, used like one Data. parts: (data, how often an epoch reads it).

    folder is the first part's. meta has the keys of all parts; where they differ, the earlier part
    wins. It is None if a part has none. SystemExit if the parts have different tokenizers.
    """

    def __init__(self, parts: list[tuple[Data, int]]):
        first = parts[0][0]
        self.parts = parts
        self.folder = first.folder
        self.name = ','.join(data.name for data, _ in parts)
        self.tokenizer = first.tokenizer
        for data, _ in parts:
            check_tokenizer(data, first.tokenizer.hash, first.folder)
        self.problems = next((data.problems for data, _ in parts if data.problems), None)
        metas = [data.meta for data, _ in parts]
        self.meta = None
        if None not in metas:
            self.meta = {}
            for meta in reversed(metas):
                self.meta |= meta

    @property
    def hash(self) -> str | None:
        """Changes when a shard of a part changes; None if a part has no meta.json."""
        hashes = [data.hash for data, _ in self.parts]
        return None if None in hashes else hashlib.sha256(''.join(hashes).encode()).hexdigest()

    def shares(self) -> list[dict]:
        """
        For each part: its name, how often an epoch reads it, and the share of an epoch's documents
        and tokens that is its own. Documents are counted in a part's first COUNTED ids.
        """
        found = []
        for data, repeats in self.parts:
            ids = data.split('train')
            first = ids.read(0, COUNTED)
            begins = np.count_nonzero(first == data.tokenizer.bos)
            documents = begins * len(ids) / max(1, len(first))
            found.append((data.name, repeats, repeats * documents, repeats * len(ids)))
        all_documents = sum(documents for _, _, documents, _ in found) or 1  # 0 without a bos
        all_tokens = sum(tokens for _, _, _, tokens in found)
        return [
            dict(
                name=name,
                repeats=repeats,
                documents=round(documents / all_documents, 4),
                tokens=round(tokens / all_tokens, 4),
            )
            for name, repeats, documents, tokens in found
        ]

    def split(self, name: str) -> 'Shards':
        """The shards of all parts, copy by copy: first every part, then those that an epoch
        reads at least twice, and so on. Only 'train' repeats; data for evaluation is read once."""
        found = [
            (data.split(name), repeats if name == 'train' else 1) for data, repeats in self.parts
        ]
        paths, lengths, copies, dtypes = [], [], [], []
        for copy in range(max(repeats for _, repeats in found)):
            for shards, repeats in found:
                if copy < repeats:
                    paths += shards.paths
                    lengths += np.diff(shards.ends, prepend=0).tolist()
                    copies += [copy] * len(shards.paths)
                    dtypes += shards.dtypes
        return Shards(paths, lengths, self.tokenizer.vocab_size, copies, dtypes)


def mixture(dataset: str) -> list[tuple[str, int]]:
    """'smoltalk,gsm8k:4' -> [('smoltalk', 1), ('gsm8k', 4)]: folders, and how often an epoch reads
    each."""
    parts = []
    for item in dataset.split(','):
        name, _, repeats = item.strip().rpartition(':')
        if not (name and repeats.isdecimal()):  # no number of repeats; C:\data has a : too
            name = item.strip()
            repeats = 1
        if not name or int(repeats) < 1:
            raise SystemExit(
                f"dataset is '{dataset}', expected names or name:repeats, such as smoltalk,gsm8k:4"
            )
        parts.append((name, int(repeats)))
    return parts


def open_data(root: str | Path, dataset: str) -> Data | Mixture:
    """The data of the setting `dataset`: a folder below root (or an absolute path), or a mixture of
    several."""
    parts = [(Data(Path(root) / name), repeats) for name, repeats in mixture(dataset)]
    data, repeats = parts[0]
    return data if len(parts) == 1 and repeats == 1 else Mixture(parts)


class Shards:
    """
    The shards of a split as one sequence of ids. They are read, not memory-mapped: mapped pages
    would count as this process's memory.

    lengths: number of ids in each shard. copies: a mixture may list a shard several times; these
    count its copies from 0, the default. dtypes: of each file; by default id_dtype(vocab_size).
    """

    def __init__(
        self,
        paths: list[Path],
        lengths: list[int],
        vocab_size: int,
        copies: list[int] | None = None,
        dtypes: list[np.dtype] | None = None,
    ):
        self.paths = paths
        self.vocab_size = vocab_size
        self.ends = np.cumsum(lengths)
        self.copies = np.array(copies or [0] * len(paths))
        self.dtypes = dtypes or [id_dtype(vocab_size)] * len(paths)

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """(count,) int64 ids, or fewer at the end of the data. SystemExit for an id outside the
        vocabulary."""
        parts = [np.zeros(0, self.dtypes[0])]
        shard = int(np.searchsorted(self.ends, start, side='right'))
        while count > 0 and shard < len(self.paths):
            first = int(self.ends[shard - 1]) if shard else 0
            dtype = self.dtypes[shard]
            offset = dtype.itemsize * (start - first)
            part = np.fromfile(self.paths[shard], dtype, count, offset=offset)
            if part.max(initial=0) >= self.vocab_size:
                raise SystemExit(
                    f'{self.paths[shard]} holds the id {part.max()}, '
                    f'expected less than vocab_size = {self.vocab_size}'
                )
            parts.append(part)
            start += len(part)
            count -= len(part)
            shard += 1
        return np.concatenate(parts).astype(np.int64)


# -----------------------------------------------------------------------------
# checks of data against a run


def check_tokenizer(data: Data | Mixture, tokenizer_hash: str, path: str | Path) -> None:
    """SystemExit unless the data has the tokenizer with this hash. path, for the message, is the
    checkpoint or data folder which that tokenizer comes from."""
    if data.tokenizer.hash != tokenizer_hash:
        raise SystemExit(
            f'{data.name} was made with another tokenizer than {path}; prepare it again with '
            f'--tokenizer={path}, which data/custom/prepare.py (for any text), '
            'data/tinyworld/prepare.py and those of the sets of conversations accept'
        )


def kind_of(data: Data | Mixture) -> str | None:
    """What meta.json says that the data holds: text, conversations, preferences, … None: nothing"""
    return (data.meta or {}).get('kind')


def check_kind(data: Data | Mixture, stage: str) -> None:
    """SystemExit if the data is of a kind for another stage: preferences are for dpo, which takes
    nothing else, and prompts for rl. Data whose meta.json names no kind suits every stage."""
    kind = kind_of(data)
    if kind and (kind == 'preferences') != (stage == 'dpo'):
        raise SystemExit(
            f'{data.name} holds {kind} and stage is {stage}; '
            'preferences are for --stage=dpo and for no other stage'
        )
    if kind == 'prompts' and stage != 'rl':
        raise SystemExit(
            f'{data.name} holds prompts without answers and stage is {stage}; '
            'they are for --stage=rl with --reward=FILE.py:function'
        )


def check_isolate(data: Data | Mixture) -> None:
    """SystemExit if the tokenizer has no token that begins a document."""
    if data.tokenizer.bos is None:
        raise SystemExit(
            f'{data.name} has no token that begins a document, '
            'so --isolate=True cannot tell documents apart; leave it out'
        )
