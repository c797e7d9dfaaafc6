"""
OpenWebText in GPT-2's encoding: 8 million documents, about 9 billion ids (17 GB). One document in
2,000 is for validation.

$ pip install '.[data]'
$ python data/openwebtext/prepare.py

The documents come as parquet files over HTTP from Hugging Face, into raw/ beside this file. An
interrupted download is resumed by the next run. Your own files in raw/ (.parquet, .jsonl or .txt)
are used instead; with vocab.bpe and encoder.json beside this file no network is needed. Each
document begins with <|endoftext|>. Memory holds a few thousand documents at a time.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm

import console
from configurator import configure
from data.documents import SUFFIXES, documents
from data.download import own_files, parquet_files
from data.writing import write_text
from shards import Writer
from tokenizer import gpt2

FOLDER = Path(__file__).resolve().parent
RAW = FOLDER / 'raw'

repo = 'Skylion007/openwebtext'  # a data set on Hugging Face with the subset plain_text
val_every = 2000  # one document in this many is for validation: 0.05 %
num_workers = 0  # processes that encode; 0 is one per core
tries = 5  # attempts at each download


def raw_files() -> list[Path]:
    """The user's own files in raw/, else those of the hub, downloaded where missing."""
    own = own_files(RAW, SUFFIXES)
    return own or parquet_files(repo, 'plain_text', 'train', RAW, tries=tries)


def split_documents(files: list[Path]) -> Iterator[tuple[str, str]]:
    """(split, text) of each document that is not empty."""
    number = 0
    for path in tqdm(files, desc='encoding', unit=' files'):
        for text in documents(path):
            if text:
                number += 1
                yield ('train' if number % val_every else 'val'), text


def main() -> None:
    # 1) Check
    if val_every < 2:
        raise SystemExit(f'--val_every={val_every}: expected at least 2, which is every other one')
    if num_workers < 0:
        raise SystemExit(f'--num_workers={num_workers}: expected at least 0, which is one per core')
    # 2) Read and write
    tokenizer = gpt2(FOLDER)
    files = raw_files()
    with Writer(FOLDER, tokenizer) as out:
        counts = write_text(out, split_documents(files), num_workers or os.cpu_count())
        total = counts['train'] + counts['val']
        if not counts['train'] or not counts['val']:
            raise SystemExit(
                f'{RAW}: {total} documents leave a split empty: --val_every=N with 1 < N <= {total}'
            )
    # 3) Report
    ids = ', '.join(f'{split} {facts["tokens"]:,} ids' for split, facts in out.splits.items())
    print(f'{FOLDER}: {total:,} documents, {ids}')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
