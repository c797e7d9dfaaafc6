"""
Your own data, for every stage: .txt files (one document each), .parquet with a column "text", and .jsonl with a line

    {"text": "..."}                                                       text             pretrain
    {"messages": [{"role": "user", "content": "..."}, ...]}               a conversation   mid, sft
    {"chosen": [{"role": ..., "content": ...}, ...], "rejected": [...]}   a preference     dpo
    {"prompt": "...", "answer": "..."}                                    a problem        rl, and sft

as MiniMind's data sets have them. messages may be called conversations, a prompt may be a list of messages, and chosen
and rejected may be texts that answer a prompt. A text "system" beside them is the system message. A key that is null is
not there; one that would be lost, such as tool_calls or "weight": 0, is refused. A data set is of one kind.

$ python data/custom/prepare.py letters.txt diary.jsonl --name=mine --vocab_size=2048
$ python train.py --dataset=mine

$ python data/custom/prepare.py chats.jsonl --name=mine --tokenizer=assets/tinyworld.pt
$ python train.py config/tinyworld_sft.py --init_from=assets/tinyworld.pt --dataset=mine \
  --out_dir=out/mine --max_iters=30 --learning_rate=5e-4

--tokenizer=bpe trains one on these files, char takes a character as an id, gpt2 (or another of
tiktoken's names) is taken as it is. To train a model further, also on a text that has grown, take
its own: --tokenizer=out/run, the run's folder (or a .pt file, a tok.json, a data folder).
Conversations need special tokens, which gpt2 and char have not. A document begins with the
tokenizer's <|bos|>, if it has one; character ids have none, there it ends with a line break.
The last val_fraction of all characters is for validation; of lines that are more than text that
share of the lines, evenly spread: at least one and never all, of ten lines the last.

data/<name> may hold an earlier preparation, which is replaced. Other files in the way are refused:
a train.bin that meta.json does not list, a problems.jsonl that was edited.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import tee
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import checkpoint
import console
import segments
import tasks
import tokenizer as tokenizers
from configurator import configure
from conversation import SPECIAL, Chat, plain_message, read_messages, read_rows
from data.documents import documents
from shards import Writer, refuse_to_replace

DATA = Path(__file__).resolve().parents[1]

name = 'custom'  # the data is written to data/<name>: train with --dataset=<name>
tokenizer = 'bpe'  # bpe | char | gpt2 | another of tiktoken's | out/run, a .pt file, a tok.json
vocab_size = 8192  # of a bpe that is trained here; short texts give less. Larger means longer tokens, a larger model
num_workers = 0  # processes that train a tokenizer and encode text; 0 is one a core
val_fraction = 0.1  # share of the characters, or lines, kept for validation; 0 trains on all and validates on the same

INFINITE = (float('inf'), -float('inf'))  # what JSON's 1e999 is read as
MEND = 'take bpe, or that of the model to train further, such as assets/tinyworld.pt'

# -----------------------------------------------------------------------------
# what a line is

KINDS = {  # kind: the ways to spell it, and the stages it is for; the first that a line has all names of is its kind
    'preferences': ([('chosen', 'rejected')], 'dpo'),
    'conversations': ([('messages',), ('conversations',)], 'mid or sft'),
    'text': ([('text',)], 'pretrain'),
    'problems': ([('prompt', 'answer')], 'rl or sft'),
}


def kind_of(row: dict, where: str) -> str:
    for kind, (spellings, _) in KINDS.items():
        if any(row.keys() >= set(names) for names in spellings):
            return kind
    raise SystemExit(
        f'{where}: missing "text" (or "messages", or "chosen" and "rejected", or "prompt" and "answer"), '
        f'got {", ".join(map(repr, row)) or "nothing"}'
    )


def find_kind(files: list[str]) -> str:
    """The kind that every line of every file is of."""
    first = None
    for file in map(Path, files):
        lines = read_rows(file) if file.suffix.lower() == '.jsonl' else [(str(file), {'text': ''})]
        for where, row in lines:
            kind = kind_of(row, where)
            first = first or (kind, where)
            if kind != first[0]:
                raise SystemExit(f'{where} is {kind}, {first[1]} {first[0]}: give each kind a data set of its own')
    if first is None:
        raise SystemExit(f'{", ".join(files)}: 0 characters')
    return first[0]


def as_messages(row: dict, key: str, role: str, where: str) -> list:
    """row[key] as a list of messages, unchecked; a text is one message of that role."""
    value = row[key]
    if not isinstance(value, (str, list)):
        raise SystemExit(f'{where}: "{key}" must be a text or a list of messages, got {value!r:.60}')
    return [{'role': role, 'content': value}] if isinstance(value, str) else value


def read_answered(row: dict, messages: list, where: str) -> list[dict]:
    """Messages of a row, checked, of which the last is the assistant's."""
    messages = read_messages({**row, 'messages': messages}, where)
    if messages[-1]['role'] != 'assistant':
        raise SystemExit(f'{where}: the last message is of role "{messages[-1]["role"]}", expected the assistant\'s')
    return messages


def read_preference(row: dict, where: str) -> list[list[dict]]:
    """The conversations with the chosen and with the rejected answer. Before an answer alone stands the prompt."""
    sides = []
    for side in ('chosen', 'rejected'):
        messages = as_messages(row, side, 'assistant', where)
        first = plain_message(messages[0]) if messages else None
        if isinstance(first, dict) and first.get('role') == 'assistant':
            if 'prompt' not in row:
                raise SystemExit(f'{where}: missing "prompt", which "{side}" answers')
            messages = as_messages(row, 'prompt', 'user', where) + messages
        sides.append(read_answered(row, messages, where))
    return sides


def answer_text(answer: str | int | float) -> str:
    """An answer as people write it: 0.00005 and not 5e-05."""
    text = str(answer)
    return format(Decimal(text), 'f') if isinstance(answer, float) and 'e' in text else text


def to_grade(answer: str | int | float) -> str:
    """What an answer comes to: in a worked one, like GSM8K's, what stands behind ####."""
    return answer_text(answer).rpartition('####')[2].strip()


def read_problem(row: dict, where: str) -> list[list[dict]]:
    """The conversation in which the assistant gives the answer."""
    answer = row['answer']
    if type(answer) not in (str, int, float) or answer in INFINITE or not to_grade(answer):
        raise SystemExit(f'{where}: "answer" must be a number or a text that is not empty, got {answer!r:.60}')
    prompt = as_messages(row, 'prompt', 'user', where)
    answered = [*prompt, {'role': 'assistant', 'content': answer_text(answer)}]
    return [read_answered(row, answered, where)]


def to_problem(row: dict, messages: list[dict], split: str) -> dict:
    """A line of problems.jsonl."""
    answer, grader = to_grade(row['answer']), 'contains'
    if re.fullmatch(tasks.NUMBER, answer):  # 1,000 and $5 too
        answer, grader = format(tasks.find_number(answer), 'f'), 'number'
    return {'split': split, 'skill': name, 'messages': messages[:-1], 'grader': grader, 'answer': answer}


READ = {
    'conversations': lambda row, where: [read_messages(row, where)],
    'preferences': read_preference,
    'problems': read_problem,
}

# -----------------------------------------------------------------------------
# the tokenizer


def choose_tokenizer(texts: Callable[[], Iterator[str]], train_texts: Callable[[], Iterator[str]], special: tuple):
    """What the setting `tokenizer` names. Characters come from all texts, merges from those to learn from."""
    if tokenizer == 'char':
        return tokenizers.CharTokenizer(''.join(set().union(*texts())))
    if tokenizer == 'bpe':
        return tokenizers.train_bpe(train_texts(), vocab_size, special, num_workers=num_workers or os.cpu_count())
    if tokenizer == 'gpt2':
        return tokenizers.gpt2(DATA / 'custom')
    if is_path(tokenizer):
        return checkpoint.load_tokenizer(tokenizer)
    return tokenizers.from_tiktoken(tokenizer)


def is_path(tokenizer: str) -> bool:
    """Whether this is a file or a folder. The name of a tokenizer has neither a slash nor an ending."""
    return tokenizer != Path(tokenizer).stem or Path(tokenizer).is_dir()


def texts_of(conversations: list[list[dict]]) -> Iterator[str]:
    for content in (message['content'] for messages in conversations for message in messages):
        yield from [content] if isinstance(content, str) else (part['text'] for part in content)


# -----------------------------------------------------------------------------
# writing


def halves(texts: Iterator[str], cut: int) -> Iterator[tuple[str, str]]:
    """(split, text) of each document; the one with character number `cut` is cut in two there."""
    for text in texts:
        head, tail = text[: max(cut, 0)], text[max(cut, 0) :]
        cut -= len(text)
        if head:
            yield 'train', head
        if tail:
            yield 'val', tail


def parts_of(documents: Iterator[tuple[str, str]]) -> Iterator[tuple[str, bool, str]]:
    """(split, whether a document begins, text), so that a long document passes through memory in parts."""
    for split, text in documents:
        for i, part in enumerate(segments.split(text)):
            yield split, i == 0, part


def splits_of(split: str) -> tuple[str, ...]:
    """Where a document of that split goes: with --val_fraction=0 all are train's, and val is a copy."""
    return (split,) if val_fraction else ('train', 'val')


def write_text(files: list[str], folder: Path) -> str:
    """Returns what was written, for people."""

    def texts() -> Iterator[str]:  # read anew for each pass, so that no more than one document is in memory
        lines = tokenizer == 'char'
        for text in (text for file in files for text in documents(file)):
            yield text + '\n' if lines and text and not text.endswith('\n') else text

    total = sum(map(len, texts()))
    cut = int(total * (1 - val_fraction))
    if not 0 < cut < total + (val_fraction == 0):
        raise SystemExit(
            f'{", ".join(files)}: {total} characters with --val_fraction={val_fraction} leave a split empty: '
            'give more text, or a fraction between 0 and 1'
        )
    train_texts = lambda: (text for split, text in halves(texts(), cut) if split == 'train')  # noqa: E731
    chosen = choose_tokenizer(texts, train_texts, SPECIAL)  # all of them, so that the model can learn to chat later
    parts, copies = tee(parts_of(halves(texts(), cut)))
    encoded = chosen.encode_batch((part for _, _, part in parts), num_workers or os.cpu_count())
    with Writer(folder, chosen, notes={'kind': 'text'}) as out:
        try:
            for (split, begins, part), ids in zip(copies, encoded):
                if begins and chosen.bos is not None:
                    ids = np.append(np.uint16(chosen.bos), ids)
                for target in splits_of(split):
                    out.write(target, ids, len(part.encode('utf-8')))
        except ValueError as error:  # a character that the tokenizer given does not hold
            hint = 'remove it, or make another tokenizer (char, bpe) and train a new model'
            raise SystemExit(f'--tokenizer={tokenizer}: {error}; {hint}') from None
    return f'{total:,} characters'


def is_val(i: int, total: int) -> bool:
    """Whether line i is kept for validation: their number is the share's, but at least one and never all."""
    kept = min(max(1, round(val_fraction * total)), total - 1) if val_fraction else 0
    return (i + 1) * kept // total > i * kept // total  # evenly spread: files are often sorted by topic


def render(chat: Chat, messages: list[dict], where: str) -> list[int]:
    try:
        return chat.render(messages)
    except ValueError as error:  # tools, which ChatML has not
        raise SystemExit(f'{where}: {error}') from None


def write_conversations(kind: str, files: list[str], folder: Path) -> str:
    """The conversations of each line, one or (preferences) two behind each other. Returns what was written."""

    def lines() -> Iterator[tuple[str, dict, list[list[dict]]]]:  # read anew for each pass: memory holds one
        for where, row in (pair for file in files for pair in read_rows(file)):
            yield where, row, READ[kind](row, where)

    def learned() -> Iterator[str]:
        conversations = (c for i, (_, _, c) in enumerate(lines()) if not is_val(i, total))
        return (text for c in conversations for text in texts_of(c))

    if tokenizer != 'bpe' and not is_path(tokenizer):
        raise SystemExit(f'--tokenizer={tokenizer}: it has no tokens for conversations: {MEND}')
    total = sum(1 for _ in lines())
    if total == 1 and val_fraction:
        raise SystemExit(
            f'{", ".join(files)}: 1 line, and validation needs one of its own: give more, or --val_fraction=0'
        )
    chosen = choose_tokenizer(learned, learned, SPECIAL)
    try:
        chat = Chat(chosen)
    except SystemExit as error:
        raise SystemExit(f'--tokenizer={tokenizer}: {error}; {MEND}') from None
    problems, counts = [], {'train': 0, 'val': 0}
    with Writer(folder, chosen, notes={'kind': kind}) as out:
        for i, (where, row, conversations) in enumerate(lines()):
            rendered = [render(chat, messages, where) for messages in conversations]
            for split in splits_of('val' if is_val(i, total) else 'train'):
                counts[split] += 1
                for ids in rendered:
                    out.write(split, ids, int(chosen.bytes_per_id[ids].sum()))
                if kind == 'problems':
                    problems.append(to_problem(row, conversations[0], split))
        if kind == 'problems':
            lines = (json.dumps(problem, ensure_ascii=False) + '\n' for problem in problems)
            out.add('problems.jsonl', ''.join(lines).encode())
    return f'{kind}, {counts["train"]:,} to train on and {counts["val"]:,} to validate with'


def check_name() -> None:
    """SystemExit unless the data can lie in data/<name> and be trained on with --dataset=<name>."""
    has_folders = Path(name).name != name or name in ('', '..')
    if has_folders or name != name.strip() or ',' in name or ':' in name:
        what = 'expected a name that is no path, without comma, colon and outer blanks'
        raise SystemExit(f'--name={name}: {what}')
    folder = DATA / name
    is_taken = DATA.joinpath(f'{name}.py').exists() or folder.exists() and not folder.is_dir()
    if is_taken or name != 'custom' and (folder / 'prepare.py').exists():
        raise SystemExit(f'--name={name}: data/ has a file or data set of that name: take another')


def check_folder(files: list[str], folder: Path, kind: str) -> None:
    """SystemExit if the preparation would replace a file that it did not make, before the work."""
    problems = folder / 'problems.jsonl'
    inputs = [file for file in files if Path(file).exists()]
    if problems.exists() and any(problems.samefile(file) for file in inputs):
        raise SystemExit(
            f'{problems}: an input cannot lie where the problems of the prepared data belong: '
            'rename it, or take another --name'
        )
    made = ['tok.json'] if tokenizer in ('bpe', 'char') else []
    refuse_to_replace(folder, [*made, 'problems.jsonl'] if kind == 'problems' else made)


def main(files: list[str]) -> None:
    folder = DATA / name
    # 1) What would fail later is said now
    if not files:
        raise SystemExit('no files: python data/custom/prepare.py FILE... with .txt, .jsonl or .parquet files')
    check_name()
    if not 0 <= val_fraction < 1:
        raise SystemExit(f'val_fraction={val_fraction}: expected a share from 0 to less than 1')
    if num_workers < 0:
        raise SystemExit(f'--num_workers={num_workers}: expected at least 0, which is one a core')
    kind = find_kind(files)
    check_folder(files, folder, kind)
    # 2) The work
    written = write_text(files, folder) if kind == 'text' else write_conversations(kind, files, folder)
    # 3) What was written
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    ids = ', '.join(f'{split} {meta["splits"][split]["tokens"]:,} ids' for split in ('train', 'val'))
    print(f'{folder}: {written}, for --stage={KINDS[kind][1]}; {ids}, vocabulary {meta["vocab_size"]:,}')
    if not val_fraction:
        print('val is a copy of train: its loss says what was memorised, not what was understood')
    if kind != 'problems' and (folder / 'problems.jsonl').exists():
        print(f'{folder / "problems.jsonl"} stays: no preparation wrote it, or it was edited since')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals(), argv=[argument for argument in sys.argv[1:] if argument.startswith('-')])
    main([argument for argument in sys.argv[1:] if not argument.startswith('-')])
