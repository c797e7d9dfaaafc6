"""
Python's standard library as text to learn from: some 30 MB of code that lies on every machine with a Python, for when
there is no network (dev/dial.py uses it).

$ python data/stdlib/prepare.py                        # bytes
$ python data/stdlib/prepare.py --vocab_size=4096      # a BPE trained on it

A file is a document. The files of one Python version are the same everywhere, save that some Linux distributions leave
out the library's own tests, which are more than half of it (too little is left for dev/dial.py's depth 3). One file in 43,
chosen by a hash of its name, is for validation.
"""

import hashlib
import os
import platform
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import console
from configurator import configure
from shards import Writer
from tokenizer import train_bpe

FOLDER = Path(__file__).resolve().parent
HELD_OUT = 50  # kept for validation is what has a multiple of this as its hash's last byte

vocab_size = 257  # 256 bytes and <|bos|>; more are merges of a BPE


def documents() -> list[tuple[str, str]]:
    """(split, text) of each of the library's files, in an order that says nothing."""
    root = Path(sysconfig.get_path('stdlib'))
    names = [path.relative_to(root) for path in root.rglob('*.py')]
    names = [name.as_posix() for name in names if not {'site-packages', 'dist-packages'} & {*name.parts}]
    numbered = sorted((hashlib.sha256(name.encode('utf-8')).digest(), name) for name in names)
    found = []
    for number, name in numbered:
        try:
            text = (root / name).read_text(encoding='utf-8')
        except UnicodeDecodeError:  # some of the tests are in other encodings, or in none
            continue
        if text:
            found.append(('val' if number[-1] % HELD_OUT == 0 else 'train', text))
    return found


def main() -> None:
    found = documents()
    learned = (text for split, text in found if split == 'train')
    tokenizer = train_bpe(learned, vocab_size, ('<|bos|>',), num_workers=os.cpu_count())
    count = {'train': 0, 'val': 0}
    with Writer(FOLDER, tokenizer) as out:
        for (split, text), ids in zip(found, tokenizer.encode_batch((text for _, text in found), os.cpu_count())):
            out.write(split, np.append(np.uint16(tokenizer.bos), ids), len(text.encode('utf-8')))
            count[split] += len(ids) + 1
    print(f'{FOLDER}: the library of Python {platform.python_version()}, {len(found):,} files, {count["train"]:,} ids')
    print(f'to learn from and {count["val"]:,} to test on, vocabulary {tokenizer.vocab_size:,}')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
