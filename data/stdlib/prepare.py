"""
Python's standard library as text to train on: about 30 MB of code that every machine with Python
has, for use without a network. dev/dial.py trains on it.

$ python data/stdlib/prepare.py                        # bytes
$ python data/stdlib/prepare.py --vocab_size=4096      # a BPE trained on it

Each file is a document. One in 43, chosen by a hash of its name, is for validation. The files of
one Python version are the same everywhere, but some Linux distributions leave out the library's own
tests. Those are more than half of it; the rest is too little for dev/dial.py's depth 3.
"""

import hashlib
import os
import platform
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from data.writing import write_text
from shards import Writer
from tokenizer import train_bpe

FOLDER = Path(__file__).resolve().parent
HELD_OUT = 50  # a file is for validation if the last byte of its hash is a multiple of this

vocab_size = 257  # 256 bytes and <|bos|>; more are merges of a BPE


def documents() -> list[tuple[str, str]]:
    """(split, text) of each of the library's files, in the order of their hashes."""
    root = Path(sysconfig.get_path('stdlib'))
    # 1) The files, without installed packages
    names = []
    for path in root.rglob('*.py'):
        name = path.relative_to(root)
        if not {'site-packages', 'dist-packages'} & set(name.parts):
            names.append(name.as_posix())
    hashed = sorted((hashlib.sha256(name.encode('utf-8')).digest(), name) for name in names)
    # 2) Their texts
    found = []
    for digest, name in hashed:
        try:
            text = (root / name).read_text(encoding='utf-8')
        except UnicodeDecodeError:  # some of the tests have another encoding, or none
            continue
        if text:
            found.append(('val' if digest[-1] % HELD_OUT == 0 else 'train', text))
    return found


def main() -> None:
    found = documents()
    train = (text for split, text in found if split == 'train')
    tokenizer = train_bpe(train, vocab_size, ('<|bos|>',), num_workers=os.cpu_count())
    with Writer(FOLDER, tokenizer) as out:
        write_text(out, found, os.cpu_count())
    ids = ', '.join(f'{split} {facts["tokens"]:,} ids' for split, facts in out.splits.items())
    print(
        f'{FOLDER}: the library of Python {platform.python_version()}, {len(found):,} files, ',
        end='',
    )
    print(f'{ids}, vocabulary {tokenizer.vocab_size:,}')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
