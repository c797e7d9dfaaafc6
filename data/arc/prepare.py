"""
ARC (allenai/ai2_arc): science questions of grade school with 3 to 5 choices, in an easy and a
challenging set. 3,370 to train on, 3,548 to evaluate with.

$ pip install '.[data]'
$ python data/arc/prepare.py --tokenizer=out/run

train.bin is the training splits, val.bin the validation splits. problems.jsonl holds the training
and the test splits; the skills are arc_easy and arc_challenge. The questions have the form of
tasks.render_choice: choices labelled 1 to 4 become A to D.

Without a network: put the .parquet files into raw/ARC-Easy/train and so on, beside this file.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from data.sets import (
    Item,
    Part,
    Unusable,
    chat_tokenizer,
    given_text,
    hub_files,
    multiple_choice,
    write_set,
)

FOLDER = Path(__file__).resolve().parent
SKILLS = {'ARC-Easy': 'arc_easy', 'ARC-Challenge': 'arc_challenge'}

tokenizer = 'tok.json'  # of the model to train: a tok.json, a .pt file, a run's or data folder
tries = 5  # attempts at each download


def convert(row: dict, notes: Counter) -> Item:
    question, key = given_text(row, 'question', 'answerKey')
    choices = row['choices'] or {}
    texts, labels = (choices.get(name) or [] for name in ('text', 'label'))
    if not isinstance(texts, list) or not isinstance(labels, list):
        raise Unusable('choices that are not lists')
    if len(texts) != len(labels) or len(set(labels)) != len(labels):
        raise Unusable('choices without a label of their own')
    # the label is only looked up: 1 or A, the first choice is A
    right = labels.index(key) if key in labels else -1
    return multiple_choice(question, texts, right)


def main() -> None:
    chosen = chat_tokenizer(tokenizer)
    parts = []
    for subset, skill in SKILLS.items():

        def files(name: str, subset: str = subset) -> list[Path]:
            folder = FOLDER / 'raw' / subset / name
            return hub_files('allenai/ai2_arc', subset, name, folder, tries)

        parts += [
            Part('train', files('train'), skill, problems=True),
            Part('val', files('validation')),
            Part('val', files('test'), skill, conversations=False, problems=True),
        ]
    columns = dict(question=str, choices=dict, answerKey=str)
    write_set(FOLDER, chosen, parts, columns, convert)


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
