"""
HumanEval (openai/openai_humaneval): 164 Python functions to complete, for evaluation alone.

$ pip install '.[data]'
$ python data/humaneval/prepare.py

Writes problems.jsonl beside this file. A line has the chat's question (messages) and its plain form
(text), which are both the beginning of a program; and task_id, prompt, entry_point, test, and as
its answer the reference solution. Its grader is code, which runs what the model wrote (sandbox.py):

$ python evaluate.py --problems=humaneval --num_samples=4 --temperature=0.8

Without a network: put the .parquet file into raw/test beside this file.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
from configurator import configure
from data.sets import Item, ask, given_text, write_problems

FOLDER = Path(__file__).resolve().parent
NAMES = ('task_id', 'prompt', 'canonical_solution', 'test', 'entry_point')

tries = 5  # attempts at each download


def convert(row: dict, notes: Counter) -> Item:
    task_id, prompt, solution, test, entry_point = given_text(row, *NAMES)
    problem = dict(
        text=prompt,
        grader='code',
        answer=solution,
        task_id=task_id,
        prompt=prompt,
        test=test,
        entry_point=entry_point,
    )
    return Item(ask(prompt, prompt + solution), problem)


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    source = ('openai/openai_humaneval', 'openai_humaneval', 'test')
    write_problems(FOLDER, source, dict.fromkeys(NAMES, str), convert, tries)
