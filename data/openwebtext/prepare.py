"""
OpenWebText in GPT-2's encoding: 8 million documents, about 9 billion ids (17 GB), one document in 2,000 to test on.

$ pip install '.[data]'
$ python data/openwebtext/prepare.py

The documents come as parquet files through the hub's plain HTTP, into raw/ beside this file; interrupted, it goes on
where it stopped. Files that you have put into raw/ yourself (.parquet, .jsonl or .txt) are used instead, and with
vocab.bpe and encoder.json beside this file no network is needed. Each document begins with <|endoftext|>. Documents
pass through memory a few thousand at a time, in the order of the files.
"""

import json
import os
import sys
from itertools import islice, tee
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tqdm import tqdm

import console
from configurator import configure
from data.documents import SUFFIXES, documents
from data.download import download
from shards import Writer
from tokenizer import gpt2

FOLDER = Path(__file__).resolve().parent
RAW = FOLDER / 'raw'
BATCH = 4096  # documents that are written at a time

url = 'https://huggingface.co/api/datasets/Skylion007/openwebtext/parquet/plain_text/train'  # the list of its files
val_every = 2000  # every so many-th document is for validation: 0.05 %
num_workers = 0  # processes that encode; 0: one a core
tries = 5  # attempts at each download


def raw_files() -> list[Path]:
    """The files in raw/: the user's own, or those of the hub's list, downloaded unless they are there."""
    listing = RAW / 'files.json'
    own = sorted(path for path in RAW.glob('*') if path.suffix.lower() in SUFFIXES)
    if own and not listing.exists():  # the list comes first in a download, so that half of one is never taken for these
        return own
    mend = f'put .parquet, .jsonl or .txt files with the documents into {RAW}'
    urls = json.loads(download(url, listing, tries=tries, mend=mend).read_text(encoding='utf-8'))
    return [download(file, RAW / f'{i:05d}.parquet', tries=tries) for i, file in enumerate(urls)]


def main() -> None:
    if val_every < 2:
        raise SystemExit(f'--val_every={val_every}: at least 2, the documents between two that are kept for validation')
    if num_workers < 0:
        raise SystemExit(f'--num_workers={num_workers}: expected at least 0, which is one a core')
    tokenizer, files = gpt2(FOLDER), raw_files()
    texts = (text for path in tqdm(files, desc='encoding', unit=' files') for text in documents(path) if text)
    begin, seen, totals = np.array([tokenizer.bos], dtype=np.uint16), 0, {'train': 0, 'val': 0}
    texts, copies = tee(texts)
    rows = zip(copies, tokenizer.encode_batch(texts, num_workers or os.cpu_count()))
    with Writer(FOLDER, tokenizer) as out:
        while batch := list(islice(rows, BATCH)):
            parts = {'train': [], 'val': []}
            for text, ids in batch:
                seen += 1
                parts['train' if seen % val_every else 'val'].append((text, ids))
            for split, items in parts.items():
                ids = np.concatenate([np.zeros(0, np.uint16), *(part for _, ids in items for part in (begin, ids))])
                out.write(split, ids, sum(len(text.encode('utf-8')) for text, _ in items))
                totals[split] += len(ids)
        if not all(totals.values()):
            raise SystemExit(f'{RAW}: {seen} documents leave a split empty: --val_every=N with 1 < N <= {seen}')
    counts = ', '.join(f'{split} {total:,} ids' for split, total in totals.items())
    print(f'{FOLDER}: {seen:,} documents, {counts}')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
