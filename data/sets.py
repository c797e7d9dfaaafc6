"""
What the prepare scripts of the post-training sets share: rows of parquet files become conversations
and problems in a data folder.

    parts = [Part('train', files, problems=True), Part('val', more_files, problems=True)]
    write_set(FOLDER, tokenizer, parts, dict(question=str, answer=str), convert)

convert(row, notes) returns the Item of a row. It raises Unusable for a row that it cannot turn into
a right one. Such rows are left out, and their number is printed with the reason. notes is a Counter
of anything else worth a line.
"""

import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import disk
from conversation import Chat, check
from data.documents import Example
from data.download import parquet_files
from data.writing import json_line, write_conversations
from shards import Writer
from tasks import LETTERS, render_choice
from utf8 import valid_text

# How an error names the type of a column
KINDS = {
    str: 'text', int: 'a whole number', bool: 'True or False', list: 'a list', dict: 'a struct',
}  # fmt: skip


class Unusable(Exception):
    """A row that is left out; the text says why."""


class Item(NamedTuple):
    """A row, converted."""

    messages: list[dict]  # the whole conversation; a problem asks all but the last message
    problem: dict | None = None  # grader, answer and what else tasks.py needs


class Part(NamedTuple):
    """Some files of a set, and what becomes of their rows."""

    split: str  # 'train' or 'val'
    files: Sequence[Path]
    skill: str = ''  # of its problems
    conversations: bool = True  # written to train.bin or val.bin
    problems: bool = False  # written to problems.jsonl
    limit: int = 0  # use this many rows, evenly spread; 0: all


# -----------------------------------------------------------------------------
# reading


def chat_tokenizer(path: str):
    """The tokenizer that --tokenizer names. It must have the special tokens of conversations."""
    if not path.startswith('hf:') and not Path(path).exists():
        raise SystemExit(
            f'--tokenizer={path}: no such file or folder, expected the tokenizer of the model to '
            'train: a tok.json (python tokenizer.py writes one), a .pt file, a run or data folder'
        )
    from checkpoint import load_tokenizer  # and torch, which takes seconds

    chosen = load_tokenizer(path)
    try:
        Chat(chosen)
    except SystemExit as error:
        raise SystemExit(f'--tokenizer={path}: {error}') from None
    return chosen


def hub_files(repo: str, subset: str, split: str, folder: Path, tries: int) -> list[Path]:
    """parquet_files(), after a check that they can be read: a download may take an hour."""
    if not importlib.util.find_spec('pyarrow'):
        raise SystemExit(f"reading {repo} takes pyarrow: pip install '.[data]'")
    return parquet_files(repo, subset, split, folder, tries=tries)


def read_rows(
    files: Sequence[Path], columns: dict[str, type], inside: str = '', limit: int = 0
) -> Iterator[tuple[str, dict]]:
    """
    ('file:row', {column: value}) of each row of parquet files. columns: the type of each column;
    null is allowed. inside: if a file lacks the columns, they are the fields of this one. limit:
    this many rows of all files, evenly spread; 0: all.

    SystemExit that names the file if it is not parquet, lacks a column, or has one of another type.
    """
    # 1) Open the files
    opened = {path: open_parquet(path) for path in files}
    total = sum(file.metadata.num_rows for file in opened.values())
    limit = min(limit or total, total)
    seen = 0
    bar = tqdm(total=total, desc=files[0].parent.name if files else '', unit=' rows')

    # 2) Their rows
    for path, file in opened.items():
        nested = check_columns(path, file.schema_arrow, columns, inside)
        wanted = [inside] if nested else list(columns)
        for number, row in enumerate(each_row(path, file, wanted), start=1):
            bar.update()
            seen += 1
            if seen * limit // total > (seen - 1) * limit // total:
                where = f'{path}:{number}'
                row = (row[inside] or {}) if nested else row
                check_types(row, columns, where)
                yield where, valid_text({name: row.get(name) for name in columns})
    bar.close()


def open_parquet(path: Path):
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(
            f'{path}: not a parquet file ({reason}): delete it and run again'
        ) from None


def check_columns(path: Path, schema, columns: dict[str, type], inside: str) -> bool:
    """Whether the columns are fields of the column `inside`. SystemExit if one is missing."""
    names = schema.names
    nested = inside in names and not columns.keys() <= set(names)
    if nested:
        struct = schema.field(inside).type
        names = [struct.field(i).name for i in range(struct.num_fields)]
    for name in columns:
        if name not in names:
            raise SystemExit(
                f'{path}: missing column "{name}", it has {", ".join(names)}: '
                'delete the file and run again'
            )
    return nested


def each_row(path: Path, file, columns: list[str]) -> Iterator[dict]:
    """The rows, a few hundred in memory at a time."""
    import pyarrow

    try:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f'{path}: damaged ({reason}): delete the file and run again') from None


def check_types(row: dict, columns: dict[str, type], where: str) -> None:
    for name, kind in columns.items():
        value = row.get(name)
        if value is not None and type(value) is not kind:
            raise SystemExit(
                f'{where}: "{name}" is {value!r:.60}, expected {KINDS[kind]}: '
                'delete the file and run again'
            )


# -----------------------------------------------------------------------------
# converting


def given_text(row: dict, *names: str) -> list[str]:
    """These texts of a row. Unusable if one is null or blank."""
    for name in names:
        if not (row[name] or '').strip():
            raise Unusable(f'no {name}')
    return [row[name] for name in names]


def conversation(messages: list[dict]) -> list[dict]:
    """The messages, if they are a valid conversation with something to learn; else Unusable."""
    try:
        check(messages)
    except ValueError as error:
        reason = str(error).partition(': ')
        raise Unusable(reason[2] or reason[0]) from None  # without the number of the message
    if not any(message['role'] == 'assistant' for message in messages):
        raise Unusable('no answer of the assistant')
    return messages


def ask(question: str, answer: str | list[dict]) -> list[dict]:
    return [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]


def multiple_choice(question: str, choices: Sequence[str], right: int) -> Item:
    """A question whose answer is a letter. right: the number of the right choice, from 0."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise Unusable(f'{len(choices)} choices')
    if not all(isinstance(choice, str) for choice in choices):
        raise Unusable('a choice that is not text')
    if not 0 <= right < len(choices):
        raise Unusable('no choice is marked as right')
    letter = LETTERS[right]
    problem = dict(grader='letter', answer=letter, choices=list(choices))
    return Item(ask(render_choice(question, choices), letter), problem)


# -----------------------------------------------------------------------------
# writing


def subfolder(folder: Path, part: str) -> Path:
    """folder, or the folder `part` in it: --part of a script."""
    if part and (Path(part).name != part or part in ('raw', '..') or set(part) & set(',:')):
        raise SystemExit(f'--part={part}: expected a plain name for a folder below {folder}')
    return folder / part


def write_set(
    folder: Path,
    tokenizer,
    parts: Sequence[Part],
    columns: dict[str, type],
    convert: Callable[[dict, Counter], Item],
    inside: str = '',
) -> None:
    """
    Convert the rows of all parts, write the data folder, and print what it holds and what was left
    out. SystemExit if no row of a part can be used. columns, inside: see read_rows.

    The problems are shuffled: the first N of a skill, which an evaluation may be limited to, are a
    fair sample.
    """
    lines = []
    report = []

    # 1) Rows to conversations and problems
    def examples() -> Iterator[tuple[str, Example]]:
        """What write_conversations takes; a line is kept of each problem as it passes."""
        for part in parts:
            left_out = Counter()
            notes = Counter()
            used = 0
            for where, row in read_rows(part.files, columns, inside, part.limit):
                try:
                    item = convert(row, notes)
                except Unusable as error:
                    left_out[str(error)] += 1
                    continue
                used += 1
                if part.problems:
                    lines.append(json_line(problem_of(item, part)))
                if part.conversations:
                    yield part.split, Example(where, [item.messages])
            report.append(summary(part, used, left_out, notes))
            if not used:
                raise SystemExit(f'{report[-1]}: expected rows to use')

    # 2) Write them
    with Writer(folder, tokenizer, notes={'kind': 'conversations'}) as out:
        write_conversations(out, examples())
        if lines:
            random.Random(42).shuffle(lines)
            out.add('problems.jsonl', b''.join(lines))
    # 3) Report
    print('\n'.join(report))
    ids = [f'{split} {facts["tokens"]:,} ids' for split, facts in out.splits.items()]
    print(f'{folder}: {", ".join(ids)}, {len(lines):,} problems')


def write_problems(
    folder: Path,
    source: tuple[str, str, str],
    columns: dict[str, type],
    convert: Callable[[dict, Counter], Item],
    tries: int,
) -> None:
    """
    All that the script of a set for evaluation alone does: download the source (repository, subset,
    split), and write each row as a problem of the split val. The skill is named after the folder.
    It takes no tokenizer: problems are text. SystemExit rather than replace an edited file.
    """
    # 1) Convert
    repo, subset, split = source
    part = Part('val', hub_files(repo, subset, split, folder / 'raw' / split, tries), folder.name)
    lines = []
    left_out = Counter()
    notes = Counter()
    for _, row in read_rows(part.files, columns):
        try:
            lines.append(json_line(problem_of(convert(row, notes), part)))
        except Unusable as error:
            left_out[str(error)] += 1
    report = summary(part, len(lines), left_out, notes)
    if not lines:
        raise SystemExit(f'{report}: expected rows to use')

    # 2) Shuffle and write them, as write_set does
    random.Random(42).shuffle(lines)
    path = folder / 'problems.jsonl'
    content = b''.join(lines)
    if path.exists() and path.read_bytes() != content:
        raise SystemExit(f'{path} would be replaced, but it was edited: move it away')
    with disk.replacing(path) as file:
        file.write(content)
    print(f'{report}\n{path}: {len(lines):,} problems')


def problem_of(item: Item, part: Part) -> dict:
    """A line of problems.jsonl; tasks.py describes its keys."""
    return dict(split=part.split, skill=part.skill, messages=item.messages[:-1], **item.problem)


def summary(part: Part, used: int, left_out: Counter, notes: Counter) -> str:
    """One line about a part."""
    where = ', '.join(dict.fromkeys(str(path.parent) for path in part.files)) or 'no files'
    line = f'{where}: {used:,} rows used for {part.split}, {left_out.total():,} left out'
    if left_out:
        line += f' ({", ".join(f"{count:,}: {why}" for why, count in left_out.most_common(6))})'
    return '; '.join([line, *(f'{count:,} {what}' for what, count in sorted(notes.items()))])
