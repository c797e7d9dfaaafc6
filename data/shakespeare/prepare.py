"""
Tiny Shakespeare in GPT-2's encoding, for finetuning GPT-2: 301,966 ids to train on and 36,059 for
validation, split as in nanoGPT.

$ python data/shakespeare/prepare.py

With input.txt, vocab.bpe and encoder.json beside this file no network is needed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from data.documents import read_text
from data.download import download
from shards import Writer
from tokenizer import gpt2

FOLDER = Path(__file__).resolve().parent

url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = (
    '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'  # '' accepts any input.txt
)
tries = 5  # attempts at the download


def main() -> None:
    # 1) The text: nine tenths to train on
    path = download(url, FOLDER / 'input.txt', sha256=sha256, tries=tries)
    text = read_text(path)
    cut = int(len(text) * 0.9)
    if not 0 < cut < len(text):
        raise SystemExit(
            f'{path}: {len(text)} characters, expected a text: delete the file and run again'
        )
    # 2) The ids. No id begins or ends the text
    tokenizer = gpt2(FOLDER)
    with Writer(FOLDER, tokenizer) as out:
        for split, part in (('train', text[:cut]), ('val', text[cut:])):
            ids = tokenizer.encode(part)
            out.write(split, ids, len(part.encode('utf-8')))
            print(f'{split}: {len(ids):,} ids')
    print(f"{FOLDER}: GPT-2's encoding, {tokenizer.vocab_size:,} ids")


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
