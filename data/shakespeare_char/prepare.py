"""
Tiny Shakespeare as ids of its 65 characters: the first 1,003,854 to learn from, the last 111,540 to test on.

$ python data/shakespeare_char/prepare.py

Uses input.txt beside this file where there is one, so that it works without a network. The split is nanoGPT's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from data.documents import read_text
from data.download import download
from shards import Writer
from tokenizer import CharTokenizer

FOLDER = Path(__file__).resolve().parent

url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # of input.txt; empty: take any text
tries = 5  # attempts at the download


def main() -> None:
    path = download(url, FOLDER / 'input.txt', sha256=sha256, tries=tries)
    text = read_text(path)
    cut = int(len(text) * 0.9)
    if not 0 < cut < len(text):
        raise SystemExit(f'{path}: {len(text)} characters, expected a text: delete the file and run again')
    tokenizer = CharTokenizer(text)
    with Writer(FOLDER, tokenizer) as out:
        for split, part in (('train', text[:cut]), ('val', text[cut:])):
            out.write(split, tokenizer.encode(part), len(part.encode('utf-8')))
            print(f'{split}: {len(part):,} ids')
    print(f'{FOLDER}: {tokenizer.vocab_size} characters')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
