"""
This repository's own Python and Markdown files, as ids of a small BPE trained on them: seconds, no network.

$ python data/source/prepare.py

What `python train.py` learns from on a fresh clone. One document a file, beginning with <|bos|>; the last tenth of each
file's lines is for validation, as a document of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from batches import Writer
from configurator import configure
from data.download import read_text
from tokenizer import train_bpe

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
PATTERNS = ('*.py', '*.md', 'config/*.py', 'data/*.py', 'data/*/prepare.py', 'tests/*.py')

vocab_size = 1024  # ids in all, <|bos|> counted


def main() -> None:
    paths = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file())
    texts = [text for text in map(read_text, paths) if text]
    parts = {'train': [], 'val': []}
    for text in texts:
        cut = text.rfind('\n', 0, int(len(text) * 0.9)) + 1
        parts['train'].append(text[:cut])
        parts['val'].append(text[cut:])
    tokenizer = train_bpe(parts['train'], vocab_size, ['<|bos|>'])
    with Writer(FOLDER, tokenizer) as out:
        for split, documents in parts.items():
            ids = [i for text in documents if text for i in (tokenizer.bos, *tokenizer.encode(text))]
            out.write(split, ids, sum(len(text.encode('utf-8')) for text in documents))
            print(f'{split}: {len(ids):,} ids')
    print(f'{FOLDER}: {len(texts)} files, {tokenizer.vocab_size} different ids')


if __name__ == '__main__':
    configure(globals())
    main()
