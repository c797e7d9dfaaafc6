"""
HumanEval (openai/openai_humaneval): 164 Python functions to complete, for evaluation alone.

$ pip install '.[data]'
$ python data/humaneval/prepare.py

Writes problems.jsonl beside this file. A line has the chat's question (messages) and its plain form
(text), which are both the beginning of a program; and task_id, prompt, entry_point, test, and as
its answer the reference solution. Its grader is code, which runs what the model wrote (sandbox.py):

$ python evaluate.py --problems=data/humaneval/problems.jsonl --num_samples=4 --temperature=0.8

Without a network: put the .parquet file into raw/test beside this file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import console
import disk
from configurator import configure
from data.sets import Unusable, given_text, hub_files, read_rows
from data.writing import json_line

FOLDER = Path(__file__).resolve().parent
NAMES = ('task_id', 'prompt', 'canonical_solution', 'test', 'entry_point')

tries = 5  # attempts at each download


def problem_of(row: dict) -> dict:
    task_id, prompt, solution, test, entry_point = given_text(row, *NAMES)
    return dict(
        split='val',
        skill='humaneval',
        messages=[{'role': 'user', 'content': prompt}],
        text=prompt,
        grader='code',
        answer=solution,
        task_id=task_id,
        prompt=prompt,
        test=test,
        entry_point=entry_point,
    )


def main() -> None:
    folder = FOLDER / 'raw' / 'test'
    files = hub_files('openai/openai_humaneval', 'openai_humaneval', 'test', folder, tries)
    # 1) Convert
    lines = []
    left_out = 0
    for where, row in read_rows(files, dict.fromkeys(NAMES, str)):
        try:
            lines.append(json_line(problem_of(row)))
        except Unusable as error:
            left_out += 1
            print(f'{where}: left out: {error}')
    if not lines:
        raise SystemExit(f'{folder}: 0 rows used, {left_out} left out: expected rows to use')
    # 2) Write
    path = FOLDER / 'problems.jsonl'
    content = b''.join(lines)
    if path.exists() and path.read_bytes() != content:
        raise SystemExit(f'{path} would be replaced, but it was edited: move it away')
    with disk.replacing(path) as file:
        file.write(content)
    print(f'{path}: {len(lines):,} problems, {left_out:,} rows left out')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
