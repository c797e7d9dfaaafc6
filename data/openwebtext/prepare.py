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
from collections import deque
from collections.abc import Iterator
from itertools import islice
from multiprocessing import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tqdm import tqdm

from batches import Writer
from configurator import configure
from data.download import SUFFIXES, documents, download
from tokenizer import from_dict, gpt2

FOLDER = Path(__file__).resolve().parent
RAW = FOLDER / 'raw'
BATCH = 256  # documents that a worker encodes at a time

url = 'https://huggingface.co/api/datasets/Skylion007/openwebtext/parquet/plain_text/train'  # the list of its files
val_every = 2000  # every so many-th document is for validation: 0.05 %
num_workers = 0  # processes that encode; 0: one a core
tries = 5  # attempts at each download

worker = {}  # what a worker process keeps between calls


def raw_files() -> list[Path]:
    """The files in raw/: the user's own, or those of the hub's list, downloaded unless they are there."""
    listing = RAW / 'files.json'
    own = sorted(path for path in RAW.glob('*') if path.suffix in SUFFIXES)
    if own and not listing.exists():  # the list comes first in a download, so that half of one is never taken for these
        return own
    mend = f'put .parquet, .jsonl or .txt files with the documents into {RAW}'
    urls = json.loads(download(url, listing, tries=tries, mend=mend).read_text(encoding='utf-8'))
    return [download(file, RAW / f'{i:05d}.parquet', tries=tries) for i, file in enumerate(urls)]


def start_worker(table: dict) -> None:
    worker['tokenizer'] = from_dict(table)


def encode(texts: list[str]) -> list[tuple[np.ndarray, int]]:
    """(ids, UTF-8 bytes) of each document."""
    tokenizer = worker['tokenizer']
    rows = ([tokenizer.bos, *tokenizer.encode(text)] for text in texts)
    return [(np.array(ids, dtype=np.uint16), len(text.encode('utf-8'))) for ids, text in zip(rows, texts)]


def encoded(texts: Iterator[str], table: dict, workers: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    """Batches in order. At most four a worker are under way: Pool.imap would read all the texts at once."""
    with Pool(workers, start_worker, [table]) as pool:
        waiting = deque()
        while batch := list(islice(texts, BATCH)):
            waiting.append(pool.apply_async(encode, [batch]))
            if len(waiting) == 4 * workers:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def main() -> None:
    if val_every < 2:
        raise SystemExit(f'--val_every={val_every}: at least 2, the documents between two that are kept for validation')
    tokenizer, files = gpt2(FOLDER), raw_files()
    texts = (text for path in tqdm(files, desc='encoding', unit=' files') for text in documents(path) if text)
    seen, totals = 0, {'train': 0, 'val': 0}
    with Writer(FOLDER, tokenizer) as out:
        for batch in encoded(texts, tokenizer.to_dict(), num_workers or os.cpu_count()):
            parts = {'train': [], 'val': []}
            for item in batch:
                seen += 1
                parts['train' if seen % val_every else 'val'].append(item)
            for split, items in parts.items():
                if items:
                    ids = np.concatenate([ids for ids, _ in items])
                    out.write(split, ids, sum(num_bytes for _, num_bytes in items))
                    totals[split] += len(ids)
        if not all(totals.values()):
            raise SystemExit(f'{RAW}: {seen} documents leave a split empty: --val_every=N with 1 < N <= {seen}')
    counts = ', '.join(f'{split} {total:,} ids' for split, total in totals.items())
    print(f'{FOLDER}: {seen:,} documents, {counts}')


if __name__ == '__main__':
    configure(globals())
    main()
