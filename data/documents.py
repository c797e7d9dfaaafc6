"""
Read files: documents from .txt, .jsonl and .parquet, and the other kinds of lines that a .jsonl may
have.

    for text in documents(folder / 'mine.jsonl'):
        ...

    source = find_source(['chats.jsonl'])     # source.kind is 'conversations'
    for example in read_examples(source):
        ...

An error in a file is a SystemExit that names the file, and the line of a .jsonl.
"""

import codecs
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import segments
from conversation import (
    LOST,
    LOST_OF_MESSAGE,
    UNUSED,
    first_given,
    plain_message,
    read_messages,
    read_rows,
)
from utf8 import valid_text

SUFFIXES = ('.txt', '.jsonl', '.parquet')  # of the files that documents() reads; also in capitals


# -----------------------------------------------------------------------------
# documents


def documents(path: str | Path) -> Iterator[str]:
    """
    The texts of a file, in order: a .txt is one document, a .jsonl has one object with "text" per
    line, a .parquet has a column "text".
    """
    path = Path(path)
    if path.suffix.lower() == '.txt' and path.is_file():
        yield read_text(path)
    else:
        yield from pieces(path)


def pieces(path: str | Path, size: int = 2**22) -> Iterator[str]:
    """documents(path), but a long .txt in parts of about `size` characters, cut between words."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SystemExit(f'{path}: expected a file that ends in {", ".join(SUFFIXES)}')
    if not path.is_file():
        raise SystemExit(f'{path}: no such file')
    if suffix == '.txt':
        rest = ''
        for block in read_blocks(path, size):
            *parts, rest = segments.split(rest + block, size, anywhere=False)
            yield from parts
        yield rest
    elif suffix == '.jsonl':
        for where, row in read_rows(path):
            yield text_of(row, where)
    else:
        yield from read_parquet(path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with \\n for Windows' line ends."""
    return ''.join(read_blocks(path, 2**24))


def read_blocks(path: Path, size: int) -> Iterator[str]:
    """read_text(path) in blocks of `size` bytes. A byte order mark at the start is left out."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    block = b' '
    with open(path, 'rb') as file:
        while block:
            block = file.read(size)
            # the decoder may hold the first bytes of a character that the last block cut in two
            start = offset - len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = start + error.start
                raise SystemExit(f'{path}: not UTF-8 at byte {place}: save it as UTF-8') from None
            if not offset:
                text = text.removeprefix('\ufeff')
            yield newlines.decode(text, final=not block)
            offset += len(block)


def text_of(row: dict, where: str) -> str:
    """The "text" of a line."""
    if 'text' not in row:
        raise SystemExit(f'{where}: missing "text"')
    if not isinstance(row['text'], str):
        raise SystemExit(f'{where}: "text" must be a string, got {row["text"]!r:.60}')
    return row['text']


def read_parquet(path: Path) -> Iterator[str]:
    """The column "text"."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SystemExit(f"{path}: reading it takes pyarrow: pip install '.[data]'") from None
    try:
        for rows in parquet.ParquetFile(path).iter_batches(batch_size=256, columns=['text']):
            for text in rows.column('text').to_pylist():
                if not isinstance(text, str):
                    raise SystemExit(f'{path}: "text" must be a string, got {text!r:.60}')
                yield valid_text(text)
    except (pyarrow.ArrowException, KeyError) as error:
        raise SystemExit(
            f'{path}: not a parquet file with a column "text" ({error}): delete it and run again'
        ) from None


# -----------------------------------------------------------------------------
# kinds of data. All lines of a data set are of one kind

# Names that a line of each kind has. A line is of the first kind that fits
KINDS = {
    'preferences': [{'chosen', 'rejected'}],
    'conversations': [{'messages'}, {'conversations'}],
    'text': [{'text'}],
    'problems': [{'prompt', 'answer'}],
}


def kind_of(row: dict, where: str) -> str:
    """The kind of a line, a key of KINDS."""
    for kind, spellings in KINDS.items():
        if any(row.keys() >= names for names in spellings):
            return kind
    got = ', '.join(map(repr, row)) or 'nothing'
    hint = '; --prompts_only=True prepares prompts without answers' if 'prompt' in row else ''
    raise SystemExit(
        f'{where}: missing "text" (or "messages", or "chosen" and "rejected", or "prompt" and '
        f'"answer"), got {got}{hint}'
    )


class Source(NamedTuple):
    """Files, and the kind that all their lines must have."""

    files: Sequence[str]
    kind: str  # of the first line, a key of KINDS; or prompts: lines of any kind, without answers
    where: str  # the first line, 'chats.jsonl:1'


def find_source(files: Sequence[str], prompts_only: bool = False) -> Source:
    """The files with the kind of their first line. A .txt or .parquet is text."""
    for path in map(Path, files):
        if not is_jsonl(path):
            return Source(files, 'text', str(path))
        for where, row in read_rows(path):
            return Source(files, 'prompts' if prompts_only else kind_of(row, where), where)
    raise SystemExit(f'{", ".join(files)}: 0 characters, expected lines of JSON')


def is_jsonl(path: Path) -> bool:
    return path.suffix.lower() == '.jsonl'


def check_kind(kind: str, where: str, source: Source) -> None:
    """SystemExit if this line is of another kind than the first."""
    if kind != source.kind:
        raise SystemExit(
            f'{where} is {kind}, expected {source.kind} as in {source.where}: '
            'give each kind a data set of its own'
        )


def checked_rows(path: Path, source: Source) -> Iterator[tuple[str, dict]]:
    """(where, row) of each line of one of the source's .jsonl files."""
    for where, row in read_rows(path):
        if source.kind != 'prompts':
            check_kind(kind_of(row, where), where, source)
        yield where, row


def read_texts(source: Source) -> Iterator[str]:
    """The documents of all files."""
    for path in map(Path, source.files):
        if is_jsonl(path):
            for where, row in checked_rows(path, source):
                yield text_of(row, where)
        else:
            yield from documents(path)


# -----------------------------------------------------------------------------
# conversations, preferences, problems and prompts


class Example(NamedTuple):
    """A line of a .jsonl file, checked."""

    where: str  # 'chats.jsonl:117', for errors
    conversations: list[list[dict]]  # one; of a preference two, with the chosen answer first
    answer: str = ''  # of a problem: what an answer is compared with; '' for a prompt


class Examples(Sequence):
    """Examples in memory, as JSON: as Python objects they take about four times as much."""

    def __init__(self, examples: Iterable[Example]):
        self.lines = [
            json.dumps(example, ensure_ascii=False).encode('utf-8') for example in examples
        ]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> Example:
        return Example(*json.loads(self.lines[i]))


def read_examples(source: Source, skipped: list[str] | None = None) -> Examples:
    """The lines of all files, which are read once. skipped: a list; conversations that use tools
    are left out, and 'file:line' of each is appended to it. None: they are an error."""
    return Examples(each_example(source, skipped))


def uses_tools(row: dict) -> bool:
    """Whether a conversation has calls of tools, or other keys that read_messages refuses."""
    messages = row.get('messages') or row.get('conversations')
    messages = [x for x in messages if isinstance(x, dict)] if isinstance(messages, list) else []
    lost = [row.get(key) for key in LOST]
    lost += [message.get(key) for message in messages for key in LOST_OF_MESSAGE]
    roles = [plain_message(message).get('role') for message in messages]
    return any(value not in UNUSED for value in lost) or 'tool' in roles or 'function' in roles


def each_example(source: Source, skipped: list[str] | None = None) -> Iterator[Example]:
    """The lines of all files, checked one by one."""
    reader = READERS[source.kind]
    for path in map(Path, source.files):
        if not is_jsonl(path):
            check_kind('text', str(path), source)
        for where, row in checked_rows(path, source):
            if skipped is not None and uses_tools(row):
                skipped.append(where)
            else:
                yield reader(row, where)


def read_conversation(row: dict, where: str) -> Example:
    """{"messages": [...]} or {"conversations": [...]}"""
    return Example(where, [read_messages(row, where)])


def read_preference(row: dict, where: str) -> Example:
    """{"chosen": ..., "rejected": ...}: two conversations, or two answers to "prompt"."""
    sides = []
    for side in ('chosen', 'rejected'):
        messages = as_messages(row, side, 'assistant', where)
        opening = plain_message(messages[0]) if messages else None
        if isinstance(opening, dict) and opening.get('role') == 'assistant':  # an answer alone
            if 'prompt' not in row:
                raise SystemExit(f'{where}: missing "prompt", which "{side}" answers')
            messages = as_messages(row, 'prompt', 'user', where) + messages
        sides.append(read_answered(row, messages, where))
    return Example(where, sides)


def read_problem(row: dict, where: str) -> Example:
    """{"prompt": ..., "answer": ...}: the conversation in which the assistant gives the answer."""
    answer = row['answer']
    is_infinite = answer in (float('inf'), -float('inf'))  # json reads 1e999 so
    if type(answer) not in (str, int, float) or is_infinite or not to_grade(answer):
        raise SystemExit(
            f'{where}: "answer" must be a number or a text that is not empty, got {answer!r:.60}'
        )
    prompt = as_messages(row, 'prompt', 'user', where)
    messages = [*prompt, {'role': 'assistant', 'content': answer_text(answer)}]
    return Example(where, [read_answered(row, messages, where)], to_grade(answer))


def read_prompt(row: dict, where: str) -> Example:
    """{"prompt": ...}, or a conversation without the answer that it ends with: files for RLAIF have
    a placeholder there."""
    if 'prompt' in row:
        messages = as_messages(row, 'prompt', 'user', where)
    else:
        messages = first_given(row, 'messages', 'conversations')
    if isinstance(messages, list) and messages:
        last = plain_message(messages[-1])
        if isinstance(last, dict) and last.get('role') == 'assistant':
            messages = messages[:-1]
    return Example(where, [read_messages({**row, 'messages': messages}, where, prompt=True)])


READERS = {
    'conversations': read_conversation,
    'preferences': read_preference,
    'problems': read_problem,
    'prompts': read_prompt,
}


def as_messages(row: dict, key: str, role: str, where: str) -> list:
    """row[key] as a list of messages, not checked; a text is one message of that role."""
    value = row[key]
    if isinstance(value, str):
        return [{'role': role, 'content': value}]
    if not isinstance(value, list):
        raise SystemExit(
            f'{where}: "{key}" must be a text or a list of messages, got {value!r:.60}'
        )
    return value


def read_answered(row: dict, messages: list, where: str) -> list[dict]:
    """The messages, checked; the assistant's must be the last. The row may have a "system"."""
    messages = read_messages({**row, 'messages': messages}, where)
    if messages[-1]['role'] != 'assistant':
        raise SystemExit(
            f'{where}: the last message has role "{messages[-1]["role"]}", expected "assistant"'
        )
    return messages


def answer_text(answer: str | int | float) -> str:
    """An answer as people write it: 0.00005 and not 5e-05."""
    text = str(answer)
    return format(Decimal(text), 'f') if isinstance(answer, float) and 'e' in text else text


def to_grade(answer: str | int | float) -> str:
    """The part of an answer to compare with: the text after #### in a worked one, as GSM8K has."""
    return answer_text(answer).rpartition('####')[2].strip()
