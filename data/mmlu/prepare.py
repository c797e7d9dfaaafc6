"""
MMLU (cais/mmlu): multiple-choice questions of 57 subjects. 99,842 to train on, 14,042 to evaluate
with.

$ pip install '.[data]'
$ python data/mmlu/prepare.py --tokenizer=out/run

train.bin is the auxiliary training split, val.bin the validation split, problems.jsonl the test
split. Its lines have the key subject; their skill is mmlu. The questions have the form of
tasks.render_choice.

Without a network: put the .parquet files into raw/auxiliary_train, raw/validation and raw/test
beside this file.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from data.sets import Item, Part, chat_tokenizer, given_text, hub_files, multiple_choice, write_set

FOLDER = Path(__file__).resolve().parent

tokenizer = 'tok.json'  # of the model to train: a tok.json, a .pt file, a run's or data folder
tries = 5  # attempts at each download


def convert(row: dict, notes: Counter) -> Item:
    [question] = given_text(row, 'question')
    right = -1 if row['answer'] is None else row['answer']
    item = multiple_choice(question, row['choices'] or [], right)
    item.problem['subject'] = row['subject'] or ''
    return item


def main() -> None:
    chosen = chat_tokenizer(tokenizer)

    def files(name: str) -> list[Path]:
        return hub_files('cais/mmlu', 'all', name, FOLDER / 'raw' / name, tries)

    parts = [
        Part('train', files('auxiliary_train')),
        Part('val', files('validation')),
        Part('val', files('test'), skill='mmlu', conversations=False, problems=True),
    ]
    columns = dict(question=str, subject=str, choices=list, answer=int)
    # the auxiliary split has also been published as one column of structs
    write_set(FOLDER, chosen, parts, columns, convert, inside='train')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
