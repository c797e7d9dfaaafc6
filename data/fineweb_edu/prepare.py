"""
FineWeb-Edu in nanochat's shuffled form: web pages chosen for their educational value, in shards of
about 250 million characters (100 MB of parquet, 50 million ids) each.

$ pip install '.[data]'
$ python data/fineweb_edu/prepare.py --num_shards=8 --download_only=True
$ python tokenizer.py config/tokenizer_65536.py     # learns from the first 2 billion characters
$ python data/fineweb_edu/prepare.py                # 240 shards and the last one, for validation

The parquet files come from Hugging Face into raw/ beside this file; docs/data.md says how to use a
mirror, or files that you put there by hand. The next files are downloaded while one is encoded.
Each document begins with <|bos|>. A training shard is the ids of one raw file.

A call that was interrupted, or one with a larger --num_shards, encodes what is missing only.
ClimbMix takes about a quarter less training for the same loss, as nanochat measured it:
--repo=karpathy/climbmix-400b-shuffle
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm

import console
import tokenizer as tokenizers
from configurator import configure
from data.documents import SUFFIXES, documents
from data.download import (
    Remote,
    by_hand,
    bytes_left,
    check_space,
    download_all,
    get,
    in_order,
    is_listed,
    list_repo,
    listing,
    locked,
    own_files,
)
from data.writing import write_text
from shards import Writer, id_dtype, refuse_to_replace

FOLDER = Path(__file__).resolve().parent
RAW = FOLDER / 'raw'
ENCODED = FOLDER / 'encoded'  # a data folder for each raw file, until all are there
SHARDS = r'shard_\d+\.parquet'  # the set's files; the last one is for validation
IDS_PER_BYTE = 1.2  # bytes of ids for each byte of parquet, to estimate the disk space

repo = 'karpathy/fineweb-edu-100b-shuffle'  # or karpathy/climbmix-400b-shuffle
num_shards = 240  # shards for training: 12 billion ids, enough for a model of depth 20
tokenizer = 'tok.json'  # of tokenizer.py; or gpt2
download_only = False  # do not encode: to train a tokenizer first
first_shards = 0  # with download_only: this many shards, for the tokenizer; 0 is num_shards
keep_raw = True  # False deletes each downloaded file once it is encoded
num_workers = 0  # processes that encode; 0 is one per core
files_at_once = 8  # downloads at the same time, and files that wait to be encoded
tries = 5  # attempts at each download

# -----------------------------------------------------------------------------
# what there is


def raw_files() -> list[tuple[Remote, Path]]:
    """The training files and then the one for validation: those of the hub, or the user's own."""
    number = download_only and first_shards or num_shards
    # 1) The user's
    own = own_files(RAW, SUFFIXES)
    if own:
        if len(own) < 2:
            raise SystemExit(f'{RAW}: 1 file, expected at least 2: the last one is for validation')
        chosen = [*own[:-1][:number], own[-1]]
        return [(Remote('', path.stat().st_size), path) for path in chosen]
    # 2) The hub's
    hint = by_hand(repo, RAW)
    remotes = listing(repo, RAW, lambda: list_repo(repo, SHARDS, tries, hint))
    if num_shards >= len(remotes):
        raise SystemExit(
            f'--num_shards={num_shards}: {repo} has {len(remotes)} files, so at most '
            f'{len(remotes) - 1}: the last one is for validation'
        )
    chosen = [*remotes[:number], remotes[-1]]
    return [(remote, RAW / remote.url.rpartition('/')[2]) for remote in chosen]


def finished(bpe) -> dict[tuple, tuple[Path, dict]]:
    """{(name, size) of a raw file: (the file with its ids, the facts of that)} of earlier calls
    with this tokenizer."""
    id_size = id_dtype(bpe.vocab_size).itemsize
    found = {}
    for path in [FOLDER / 'meta.json', *sorted(ENCODED.glob('*/meta.json'))]:
        if not path.exists():
            continue
        meta = json.loads(path.read_bytes())
        if meta.get('repo') != repo or meta['tokenizer_hash'] != bpe.hash:
            continue
        for facts in meta['splits'].values():
            for shard in facts['shards']:
                ids = path.parent / shard['name']
                if ids.exists() and ids.stat().st_size == id_size * shard['tokens']:
                    found[shard['raw'], shard['raw_size']] = ids, shard
    return found


# -----------------------------------------------------------------------------
# encoding


class Encoded:
    """
    What write_text writes to: the ids of each raw file go into a data folder of their own, which is
    complete or not there. `split` is the name of the raw file.
    """

    def __init__(self, tokenizer, paths: Sequence[Path], bar: tqdm):
        self.tokenizer = tokenizer
        self.paths = {path.name: path for path in paths}
        self.bar = bar
        self.path = None  # the raw file that is being encoded
        self.writer = None

    def write(self, split: str, ids, num_bytes: int) -> None:
        if self.path != self.paths[split]:
            self.finish()
            self.path = self.paths[split]
            notes = {'repo': repo}
            folder = ENCODED / self.path.name
            self.writer = Writer(folder, self.tokenizer, shard_tokens=2**40, notes=notes)
        self.writer.write('train', ids, num_bytes)

    def finish(self) -> None:
        """Complete the folder of the current raw file."""
        if self.writer is None:
            return
        facts = self.writer.splits['train']
        name, size = key_of(self.path)
        facts['shards'][0] |= dict(raw=name, raw_size=size, bytes=facts['bytes'])
        self.writer.__exit__(None, None, None)
        self.writer = None
        delete_raw(self.path)
        self.bar.update()


def delete_raw(path: Path) -> None:
    """Delete an encoded file if that is asked for, and never the user's own."""
    if not keep_raw and is_listed(RAW):
        path.unlink(missing_ok=True)


def key_of(path: Path) -> tuple[str, int]:
    return path.name, path.stat().st_size


def encode(files: Sequence[tuple[Remote, Path]], bpe, bar: tqdm) -> None:
    """Encode raw files, downloaded where missing, into folders of their own."""
    out = Encoded(bpe, [path for _, path in files], bar)
    with closing(downloads(files)) as paths:  # an error ends the downloads too
        write_text(out, named_documents(paths), num_workers or os.cpu_count())
    out.finish()


def downloads(files: Sequence[tuple[Remote, Path]]) -> Iterator[Path]:
    """
    The raw files, in order. The next ones are downloaded while the caller works.

    The first is downloaded without a thread: the processes that encode it are forked meanwhile,
    and a fork is safest while there are no threads.
    """
    if not is_listed(RAW):
        yield from (path for _, path in files)
        return
    yield get(*files[0], tries)
    silent = tqdm(disable=True)
    yield from in_order(files[1:], tries, silent, files_at_once, ahead=files_at_once)


def named_documents(paths: Iterator[Path]) -> Iterator[tuple[str, str]]:
    """(name of the file, text) of each document that is not empty."""
    for path in paths:
        empty = True
        for text in documents(path):
            if text:
                empty = False
                yield path.name, text
        if empty:
            raise SystemExit(f'{path}: no text in it: delete it and run again')


# -----------------------------------------------------------------------------
# all of it


def main() -> None:
    # 1) Check, and download only
    refuse_to_replace(FOLDER)
    check_settings()
    bpe = None if download_only else open_tokenizer()
    files = raw_files()
    if any(path.suffix == '.parquet' for _, path in files):
        if not importlib.util.find_spec('pyarrow'):
            raise SystemExit("reading .parquet takes pyarrow; run: pip install '.[data]'")
    if download_only:
        if is_listed(RAW):
            download_all(files, repo, tries, files_at_once)
        print(f'{RAW}: {len(files):,} files')
        return

    # 2) Encode what is missing
    keys = [(path.name, remote.size) for remote, path in files]
    found = finished(bpe)
    missing = [file for file, key in zip(files, keys) if key not in found]
    if missing:
        estimate_space(missing)
        done = len(files) - len(missing)
        shown = dict(total=len(files), initial=done, desc='encoding', unit=' shards')
        with locked(RAW), tqdm(**shown) as bar:
            encode(missing, bpe, bar)
        found = finished(bpe)

    # 3) One data folder of all
    with Writer(FOLDER, bpe, notes={'kind': 'text', 'repo': repo}) as out:
        for key in keys[:-1]:
            out.adopt('train', *found[key])
        out.adopt('val', *found[keys[-1]])
    shutil.rmtree(ENCODED, ignore_errors=True)
    for _, path in files:
        delete_raw(path)
    ids = ', '.join(f'{split} {facts["tokens"]:,} ids' for split, facts in out.splits.items())
    print(f'{FOLDER}: {len(files):,} shards, {ids}')


def check_settings() -> None:
    if num_shards < 1:
        raise SystemExit(f'--num_shards={num_shards}: expected at least 1')
    if files_at_once < 1:
        raise SystemExit(f'--files_at_once={files_at_once}: expected at least 1')
    if num_workers < 0:
        raise SystemExit(f'--num_workers={num_workers}: expected at least 0, which is one per core')


def open_tokenizer():
    """The tokenizer of the setting."""
    if tokenizer == 'gpt2':
        return tokenizers.gpt2(FOLDER)
    if not Path(tokenizer).is_file():
        raise SystemExit(
            f'--tokenizer={tokenizer}: no such file, expected one of tokenizer.py, or gpt2; run: '
            'python data/fineweb_edu/prepare.py --num_shards=8 --download_only=True && '
            'python tokenizer.py config/tokenizer_65536.py'
        )
    bpe = tokenizers.load(tokenizer)
    if bpe.bos is None:
        raise SystemExit(f'--tokenizer={tokenizer}: it has no <|bos|>, which begins each document')
    return bpe


def estimate_space(missing: Sequence[tuple[Remote, Path]]) -> None:
    """Print the disk space that these files need. SystemExit if there is less."""
    sizes = [remote.size or 0 for remote, _ in missing]
    raw = bytes_left(missing)
    if not keep_raw:  # a few of them at a time
        raw = min(raw, (files_at_once + 2) * max(sizes))
    check_space(
        RAW, int(raw + IDS_PER_BYTE * sum(sizes)), f'{repo}: {len(missing):,} files to encode'
    )


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
