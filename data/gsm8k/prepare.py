"""
GSM8K (openai/gsm8k): word problems of grade school with worked answers. 7,473 to train on, 1,319 to
evaluate with.

$ pip install '.[data]'
$ python data/gsm8k/prepare.py --tokenizer=out/run
$ python train.py --stage=rl --init_from=out/run --dataset=gsm8k --out_dir=out/rl

train.bin and val.bin (of the test split) hold conversations, problems.jsonl the questions of both.
A call <<48/2=24>> of a worked answer becomes a call of the calculator and its output, spelled as
the calculator spells it. A call that our calculator cannot run, or to which it gives another
result, is removed and leaves the text around it. A row whose answer is not a number is left out.

Without a network: put the .parquet files into raw/train and raw/test beside this file.
"""

import re
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
import tasks
from configurator import configure
from data.sets import Item, Part, Unusable, ask, chat_tokenizer, given_text, hub_files, write_set
from tools import calculate

FOLDER = Path(__file__).resolve().parent
CALL = re.compile(r'<<([^<>]*)>>')
SIGNS = str.maketrans('×÷−–', '*/--', '$€£')  # for the calculator

tokenizer = 'tok.json'  # of the model to train: a tok.json, a .pt file, a run's or data folder
tries = 5  # attempts at each download


def convert(row: dict, notes: Counter) -> Item:
    question, worked = given_text(row, 'question', 'answer')
    # 1) The answer: the number after ####
    _, *numbers = worked.split('####')
    if len(numbers) > 1:
        raise Unusable('more than one ####')
    if not numbers or not re.fullmatch(tasks.NUMBER, numbers[0].strip()):
        raise Unusable('no number after ####')
    answer = format(tasks.find_number(numbers[0]), 'f')
    # 2) The calls. Split at them, every second piece is the inside of one
    parts = [text_part('')]
    for i, piece in enumerate(CALL.split(worked)):
        if i % 2:
            parts += call_parts(piece, notes)
        elif '<<' in piece or '>>' in piece:
            raise Unusable('<< without >>')
        elif parts[-1]['type'] == 'text':  # the call between them was removed
            parts[-1] = text_part(parts[-1]['text'] + piece)
        else:
            parts.append(text_part(piece))
    parts = [part for part in parts if part['text']]
    return Item(ask(question, parts), dict(grader='number', answer=answer))


def text_part(text: str) -> dict:
    return {'type': 'text', 'text': text}


def call_parts(inside: str, notes: Counter) -> list[dict]:
    """The parts that stand for <<inside>>: a call and its output, or none."""
    expression, *results = inside.translate(SIGNS).split('=')
    stated = results[-1].strip() if results else ''
    try:
        result = calculate('='.join([expression, *results[:-1]]))  # ValueError for a second =
    except ValueError:
        notes['calls removed that the calculator cannot run'] += 1
        return []
    if not stated:
        notes['calls without a result, computed'] += 1
    elif not agrees(result, stated):
        notes['calls removed whose result the calculator contradicts'] += 1
        return []
    return [{'type': 'python', 'text': expression.strip()}, {'type': 'output', 'text': result}]


def agrees(result: str, stated: str) -> bool:
    """Whether stated is the result, perhaps rounded or cut to fewer decimals."""
    if not re.fullmatch(tasks.NUMBER, stated):
        return False
    number = tasks.find_number(stated)
    unit = Decimal(1).scaleb(number.as_tuple().exponent)  # of the last decimal: 0.01 of 3.14
    return abs(Decimal(result) - number) < unit if '.' in stated else Decimal(result) == number


def main() -> None:
    chosen = chat_tokenizer(tokenizer)
    parts = [
        Part(
            split,
            hub_files('openai/gsm8k', 'main', name, FOLDER / 'raw' / name, tries),
            skill='gsm8k',
            problems=True,
        )
        for split, name in (('train', 'train'), ('val', 'test'))
    ]
    write_set(FOLDER, chosen, parts, dict(question=str, answer=str), convert)


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
