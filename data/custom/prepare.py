"""
Your own text: .txt files (one document each), .jsonl files with a {"text": ...} a line, .parquet with a column "text".

$ python data/custom/prepare.py letters.txt diary.jsonl --name=mine --vocab_size=2048
$ python train.py --dataset=mine

--tokenizer=bpe trains one on these files, char takes a character as an id, gpt2 (or another of tiktoken's names) and
path/to/tok.json are taken as they are. A document begins with the tokenizer's <|bos|>, if it has one; character ids
have none, there it ends with a line break. The last val_fraction of all characters is for validation.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tokenizer as tokenizers
from batches import Writer
from configurator import configure
from data.download import documents

DATA = Path(__file__).resolve().parents[1]

name = 'custom'  # the data is written to data/<name>: train with --dataset=<name>
tokenizer = 'bpe'  # bpe | char | gpt2 | another of tiktoken's names | path/to/tok.json
vocab_size = 8192  # of a bpe that is trained here; short texts give less. Larger means longer tokens, a larger model
val_fraction = 0.1  # share of the characters kept for validation


def choose_tokenizer(texts: Callable[[], Iterator[str]], train_texts: Callable[[], Iterator[str]]):
    """What the setting `tokenizer` names. Characters come from all texts, merges from those to learn from."""
    if tokenizer == 'char':
        return tokenizers.CharTokenizer(''.join(set().union(*texts())))
    if tokenizer == 'bpe':
        return tokenizers.train_bpe(train_texts(), vocab_size, ['<|bos|>'])
    if tokenizer == 'gpt2':
        return tokenizers.gpt2(DATA / 'custom')
    if tokenizer.endswith('.json'):
        return tokenizers.load(tokenizer)
    return tokenizers.from_tiktoken(tokenizer)


def halves(texts: Iterator[str], cut: int) -> Iterator[tuple[str, str]]:
    """(split, text) of each document; the one with character number `cut` is cut in two there."""
    for text in texts:
        head, tail = text[: max(cut, 0)], text[max(cut, 0) :]
        cut -= len(text)
        if head:
            yield 'train', head
        if tail:
            yield 'val', tail


def main(files: list[str]) -> None:
    folder = DATA / name
    if not files:
        raise SystemExit('no files: python data/custom/prepare.py FILE... with .txt, .jsonl or .parquet files')
    if Path(name).name != name or name != 'custom' and (folder / 'prepare.py').exists():
        raise SystemExit(f'--name={name}: expected a name that is no path and no data set of the repository')

    def texts() -> Iterator[str]:  # read anew for each pass, so that no more than one document is in memory
        lines = tokenizer == 'char'
        for text in (text for file in files for text in documents(file)):
            yield text + '\n' if lines and text and not text.endswith('\n') else text

    total = sum(map(len, texts()))
    cut = int(total * (1 - val_fraction))
    if not 0 < cut < total:
        raise SystemExit(
            f'{", ".join(files)}: {total} characters with --val_fraction={val_fraction} leave a split empty: '
            'give more text, or a fraction between 0 and 1'
        )
    chosen = choose_tokenizer(texts, lambda: (text for split, text in halves(texts(), cut) if split == 'train'))
    totals = {'train': 0, 'val': 0}
    with Writer(folder, chosen) as out:
        for split, text in halves(texts(), cut):
            begin = [] if chosen.bos is None else [chosen.bos]
            for part in tokenizers.segments(text):
                try:
                    ids = begin + chosen.encode(part)
                except ValueError as error:  # a character that the tokenizer given does not hold
                    raise SystemExit(f'--tokenizer={tokenizer}: {error}: take another, or char to make one') from None
                out.write(split, ids, len(part.encode('utf-8')))
                totals[split] += len(ids)
                begin = []
    counts = ', '.join(f'{split} {total:,} ids' for split, total in totals.items())
    print(f'{folder}: {counts}, vocabulary {chosen.vocab_size:,}')


if __name__ == '__main__':
    configure(globals(), argv=[argument for argument in sys.argv[1:] if argument.startswith('-')])
    main([argument for argument in sys.argv[1:] if not argument.startswith('-')])
