"""
SmolTalk (HuggingFaceTB/smol-smoltalk): 460,000 conversations about everything, and 24,000 to
validate with.

$ pip install '.[data]'
$ python data/smoltalk/prepare.py --tokenizer=out/run
$ python data/smoltalk/prepare.py --tokenizer=out/run --max_rows=10000 --part=10k    # smoltalk/10k

Conversations with an empty message, or whose roles do not alternate, are left out. An empty system
message is removed.

Without a network: put the .parquet files into raw/train and raw/test beside this file.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from conversation import text_of
from data.sets import (
    Item,
    Part,
    Unusable,
    chat_tokenizer,
    conversation,
    hub_files,
    subfolder,
    write_set,
)

FOLDER = Path(__file__).resolve().parent

tokenizer = 'tok.json'  # of the model to train: a tok.json, a .pt file, a run's or data folder
max_rows = 0  # use this many rows of each split, evenly spread; 0: all
part = ''  # write to data/smoltalk/<part>, for a smaller set beside the whole one
tries = 5  # attempts at each download


def convert(row: dict, notes: Counter) -> Item:
    messages = row['messages'] or []
    # 1) An empty system message says nothing
    opening = messages[0] if messages and isinstance(messages[0], dict) else {}
    if opening.get('role') == 'system' and not opening.get('content'):
        notes['empty system messages removed'] += 1
        messages = messages[1:]
    # 2) Roles and order; any other empty message is a gap
    messages = conversation(messages)
    if not all(text_of(message).strip() for message in messages):
        raise Unusable('an empty message')
    return Item([{name: message[name] for name in ('role', 'content')} for message in messages])


def main() -> None:
    if max_rows < 0:
        raise SystemExit(f'--max_rows={max_rows}: expected at least 0, which is all')
    folder = subfolder(FOLDER, part)
    chosen = chat_tokenizer(tokenizer)
    parts = [
        Part(
            split,
            hub_files('HuggingFaceTB/smol-smoltalk', 'default', name, FOLDER / 'raw' / name, tries),
            limit=max_rows,
        )
        for split, name in (('train', 'train'), ('val', 'test'))
    ]
    write_set(folder, chosen, parts, dict(messages=list), convert)


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
