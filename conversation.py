"""
Conversations to ids and back, and which ids the assistant says: special tokens, headers, rendering, the loss mask.

    chat = Chat(tokenizer)                      # our own format, or ChatML, by the tokenizer's special tokens
    ids = chat.render([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}])
    chat.is_spoken(ids)                         # for each target ids[1:]: does the assistant have to say it?

A message is {'role': 'system' | 'user' | 'assistant', 'content': text or a list of parts}, a part is {'type': 'text' |
'python' | 'output', 'text': text}: python is what the assistant calls the calculator with, output what it answered.

    ours     <|bos|><|user_start|>What is 12*7?<|user_end|><|assistant_start|>It is
             <|python_start|>12*7<|python_end|><|output_start|>84<|output_end|>84.<|assistant_end|>
    ChatML   <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello!<|im_end|>⏎

There are no mask files: who says an id follows from the ids before it. The last *header* completed before a target
decides, a header being a short sequence of ids: one special token in our format, `<|im_start|>role⏎` in ChatML. Text
never becomes a special token, so no user can write a header, whatever they type.

$ python conversation.py chats.jsonl --tokenizer=out/run      prints conversations token by token, the supervised marked
$ python conversation.py data/tinyworld/sft                   the same of a data folder's validation split

Left out on purpose: tools in ChatML, Jinja templates.
"""

import codecs
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utf8 import valid_text

SPECIAL = (
    '<|bos|>', '<|user_start|>', '<|user_end|>', '<|assistant_start|>', '<|assistant_end|>',
    '<|python_start|>', '<|python_end|>', '<|output_start|>', '<|output_end|>',
)  # fmt: skip
CHATML = ('<|im_start|>', '<|im_end|>')
ROLES = ('system', 'user', 'assistant')
FOLLOWS = {None: ('system', 'user'), 'system': ('user',), 'user': ('assistant',), 'assistant': ('user',)}
SHAREGPT = {'role': 'from', 'content': 'value'}  # other people's names for the keys of a message
SPEAKERS = {'human': 'user', 'gpt': 'assistant', 'developer': 'system'}  # and for the roles
SYSTEM = ('system', 'system_prompt')  # keys beside the messages that hold the system's text
# Keys that no format here can render. Without them the messages would teach something else: silence
# for a call, a conclusion without its reasoning, a description of a picture that is not there.
LOST = ('tools', 'functions', 'image', 'images')  # beside the messages, or in one
LOST_OF_MESSAGE = (
    'tool_calls', 'function_call', 'reasoning_content', 'reasoning', 'thinking', 'refusal', *LOST,
)  # fmt: skip
UNUSED = (None, '', '[]', [], {})  # values of such keys in rows that do not use them
WEIGHTS = ('weight', 'loss', 'train', 'training')  # of a message; 0 or false: not learned


class Header(NamedTuple):
    """What decides about all ids after it, up to the next header."""

    ids: tuple[int, ...]
    spoken: bool = False  # the assistant says what follows
    again: tuple[int, ...] = ()  # what a piece cut off behind it begins with, after bos
    speakable: tuple[int, ...] = ()  # special ids that the assistant may say there


class Chat:
    """
    One format of conversations over a tokenizer's ids.

    Attributes: stop, the ids that end an answer; python_start and python_end, the ids around a call of the calculator,
    None where the format has no tools. A tokenizer without a format's special tokens is a SystemExit that names them.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.bos = tokenizer, tokenizer.bos
        self.parts_between: dict[str, tuple[int, int]] = {}  # kind of part -> the ids around it
        self.python_start = self.python_end = None
        missing = [name for name in SPECIAL if name not in tokenizer.special]
        plain = Header((), speakable=() if self.bos is None else (self.bos,))  # before any header, and after bos
        if not missing:
            headers = self._ours()
        elif all(name in tokenizer.special for name in CHATML):
            headers = self._chatml()
        else:
            raise SystemExit(
                f'this tokenizer has no format for conversations: {" ".join(missing)} missing (and no '
                f'{" ".join(CHATML)} either); data/custom/prepare.py --tokenizer=bpe makes one that has it'
            )
        documents = [] if self.bos is None else [plain._replace(ids=(self.bos,))]
        self.headers = [plain, *documents, *headers]
        self.stop = frozenset(self.closing['assistant'][:1])

    def _ours(self) -> list[Header]:
        one = {name.strip('<|>'): self.tokenizer.special[name] for name in SPECIAL}
        self.opening = {role: [one[f'{role}_start']] for role in ROLES[1:]}  # no system: it goes to the first user turn
        self.closing = {role: [one[f'{role}_end']] for role in ROLES[1:]}
        self.parts_between = {kind: (one[f'{kind}_start'], one[f'{kind}_end']) for kind in ('python', 'output')}
        self.python_start, self.python_end = self.parts_between['python']
        answer = (one['assistant_start'],)
        either = (one['assistant_end'], one['python_start'])
        return [
            Header((one['user_start'],), again=(one['user_start'],)),
            Header((one['user_end'],)),
            Header(answer, spoken=True, again=answer, speakable=either),
            Header((one['assistant_end'],)),
            Header((one['python_start'],), spoken=True, again=(one['python_start'],), speakable=(one['python_end'],)),
            Header((one['python_end'],)),
            Header((one['output_start'],), again=(one['output_start'],)),
            Header((one['output_end'],), spoken=True, again=answer, speakable=either),
        ]

    def _chatml(self) -> list[Header]:
        start, end = (self.tokenizer.special[name] for name in CHATML)
        newline = self.tokenizer.encode('\n')
        # role and line break are encoded by themselves, so that a header's ids do not depend on the text behind it
        self.opening = {role: [start, *self.tokenizer.encode(role), *newline] for role in ROLES}
        self.closing = {role: [end, *newline] for role in ROLES}
        system, user, answer = (tuple(self.opening[role]) for role in ROLES)
        asked = [Header(ids, again=ids) for ids in (system, user)]
        return [*asked, Header(answer, spoken=True, again=answer, speakable=(end,)), Header((end,))]

    # ---- messages to ids

    def render(self, messages: list[dict]) -> list[int]:
        """The ids of a conversation: bos, then each turn between its header and its end. ValueError as in check()."""
        check(messages, tools=bool(self.parts_between))
        ids = [] if self.bos is None else [self.bos]
        for message in messages if 'system' in self.opening else merge_system(messages):
            ids += self.opening[message['role']]
            for part in as_parts(message['content']):
                inner = self.tokenizer.encode(part['text'])
                before, after = self.parts_between.get(part['type'], (None, None))
                ids += inner if before is None else [before, *inner, after]
            ids += self.closing[message['role']]
        return ids

    def prompt(self, messages: list[dict]) -> list[int]:
        """The ids that an answer to the last message, a user's, goes on from."""
        ids = self.render(messages)
        check_last(messages)
        return ids + self.opening['assistant']

    def output(self, text: str) -> list[int]:
        """What follows a call: the ids of its result, which nobody says."""
        if not self.parts_between:
            raise ValueError('this format of conversations (ChatML) has no tools')
        before, after = self.parts_between['output']
        return [before, *self.tokenizer.encode(text), after]

    # ---- who says what

    def completed(self, ids: np.ndarray) -> np.ndarray:
        """(n,) ids -> (n,) for each id the number in self.headers of the header that it completes, else 0."""
        completed = np.zeros(len(ids), np.int64)
        for number, header in enumerate(self.headers[1:], start=1):
            places = max(0, len(ids) - len(header.ids) + 1)  # where it could begin
            found = ids[:places] == header.ids[0]
            for k, i in enumerate(header.ids[1:], start=1):
                found &= ids[k : k + places] == i
            completed[len(header.ids) - 1 :][found] = number
        return completed

    def last_headers(self, completed: np.ndarray) -> np.ndarray:
        """(n,) for each id the number of the header that decides about the ids behind it."""
        return completed[np.maximum.accumulate(np.where(completed > 0, np.arange(len(completed)), 0))]

    def is_spoken(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) ids -> (n - 1,) bool: whether the assistant has to say target ids[1:]. A target bos is nobody's."""
        ids = np.asarray(ids, dtype=np.int64)
        spoken = np.array([header.spoken for header in self.headers])[self.last_headers(self.completed(ids))[:-1]]
        return spoken if self.bos is None else spoken & (ids[1:] != self.bos)

    def speakable(self, ids: Sequence[int] | np.ndarray) -> frozenset[int]:
        """The special ids that may be sampled after ids: an answer may end or call, a call end, plain text end (bos);
        where somebody else speaks there are none."""
        last = self.last_headers(self.completed(np.asarray(ids, dtype=np.int64)))
        return frozenset(self.headers[last[-1] if len(last) else 0].speakable)

    def pieces(self, ids: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
        """
        Cut a conversation into pieces of at most size ids, so that is_spoken says the same of every target as before.

        A cut is made before the last question that fits, so that it stays with its answer; where none fits, anywhere
        but inside a header. Every further piece begins with bos and the header of the turn it goes on with.
        """
        ids = np.asarray(ids, dtype=np.int64)
        smallest = 1 + 2 * max(len(header.ids) for header in self.headers)  # bos, header, and a header uncut
        if size < smallest:
            raise ValueError(f'pieces of {size} ids, expected at least {smallest}: bos, a header and something behind')
        completed = self.completed(ids)
        last, inside = self.last_headers(completed), np.zeros(len(ids), bool)
        for number, header in enumerate(self.headers):
            for k in range(1, len(header.ids)):
                inside[np.flatnonzero(completed == number) + 1 - k] = True
        question = tuple(self.opening['user'])
        ends = np.flatnonzero(completed == [header.ids for header in self.headers].index(question))
        questions = ends[1:] + 1 - len(question)  # but the first: before it nothing has been answered
        pieces, prefix, start = [], np.zeros(0, np.int64), 0
        while start + size - len(prefix) < len(ids):
            limit = start + size - len(prefix)
            fitting = questions[(questions > start) & (questions <= limit)]
            cut = int(fitting[-1]) if len(fitting) else limit
            while inside[cut]:
                cut -= 1
            pieces.append(np.concatenate((prefix, ids[start:cut])))
            again = self.headers[last[cut - 1]].again
            prefix = np.array([*([] if self.bos is None else [self.bos]), *again], dtype=np.int64)
            start = cut
        return [*pieces, np.concatenate((prefix, ids[start:]))]

    # ---- ids to messages

    def parts(self, answer_ids: Sequence[int]) -> list[dict]:
        """The parts of an answer, given what follows its header up to an end or wherever it breaks off."""
        begins = {before: kind for kind, (before, _) in self.parts_between.items()}
        ends = {after for _, after in self.parts_between.values()}
        parts, kind, inner = [], 'text', []

        def finish():
            if inner or kind != 'text':
                parts.append({'type': kind, 'text': self.tokenizer.decode(inner)})

        for i in map(int, answer_ids):
            if i in self.stop or i == self.bos:
                break
            if i in begins or i in ends:
                finish()
                kind, inner = begins.get(i, 'text'), []
            else:
                inner.append(i)
        finish()
        return parts

    def text(self, answer_ids: Sequence[int]) -> str:
        """What the user sees of an answer: its text parts, without calls and their results."""
        return ''.join(part['text'] for part in self.parts(answer_ids) if part['type'] == 'text')

    def transcript(self, answer_ids: Sequence[int]) -> str:
        """An answer with its calls, as a line of text: Tom has <<3+4=7>>7 apples."""
        marks = {'text': '{}', 'python': '<<{}', 'output': '={}>>'}
        return ''.join(marks[part['type']].format(part['text']) for part in self.parts(answer_ids))

    # ---- a context that is full

    def fit(self, messages: list[dict], room: int) -> list[dict]:
        """The messages, less as many of the oldest turns as it takes for their prompt to have at most `room` ids.

        A turn is a user's message and what follows it. The last one stays, be it too long, and so does system text.
        """
        starts = [i for i, message in enumerate(messages) if message['role'] == 'user']
        for start in starts:
            kept = messages[: starts[0]] + messages[start:]
            if len(self.prompt(kept)) <= room:
                break
        return kept


# -----------------------------------------------------------------------------
# messages


def as_parts(content: str | list[dict]) -> list[dict]:
    return [{'type': 'text', 'text': content}] if isinstance(content, str) else content


def merge_system(messages: list[dict]) -> list[dict]:
    """The same conversation with the system's text at the head of the first user turn, an empty line between."""
    if messages[0]['role'] != 'system':
        return messages
    system, first = (''.join(part['text'] for part in as_parts(message['content'])) for message in messages[:2])
    return [{'role': 'user', 'content': f'{system}\n\n{first}'}, *messages[2:]]


def check(messages: list[dict], tools: bool = True) -> None:
    """
    ValueError that names the message (counted from 1) and its problem, unless there is a system message at most, then
    user and assistant in turn. tools: whether python and output parts may occur.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('no messages, expected a list of {"role": …, "content": …}')
    previous = None
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise ValueError(f'message {number}: {type(message).__name__}, expected {{"role": …, "content": …}}')
        for key in ('role', 'content'):
            if key not in message:
                raise ValueError(f'missing {key} in message {number}')
        role = message['role']
        if role not in ROLES:
            raise ValueError(f'message {number}: role is {role!r}, expected system, user or assistant')
        if role not in FOLLOWS[previous]:
            place = f'after {previous}' if previous else 'in the first place'
            raise ValueError(f'message {number}: role is "{role}" {place}, expected {" or ".join(FOLLOWS[previous])}')
        problem = content_problem(message['content'], role, tools)
        if problem:
            raise ValueError(f'message {number}: {problem}')
        previous = role
    if previous == 'system':
        raise ValueError('message 1: role is "system" and no other follows, expected user after it')


def content_problem(content: str | list[dict], role: str, tools: bool) -> str:
    """What is wrong with a message's content, '' if nothing is."""
    if not isinstance(content, (str, list)):
        return f'content is {type(content).__name__}, expected text or a list of parts'
    previous = None
    for number, part in enumerate(as_parts(content), start=1):
        if not isinstance(part, dict) or not isinstance(part.get('text'), str) or 'type' not in part:
            return f'part {number} of its content is no {{"type": …, "text": …}}'
        kind = part['type']
        if kind not in ('text', 'python', 'output'):
            return f'part {number} has type {kind!r}, expected text, python or output'
        if kind != 'text' and role != 'assistant':
            return f'part {number} has type "{kind}", which the assistant alone may have, not the {role}'
        if kind != 'text' and not tools:
            return f'part {number} has type "{kind}", which this format of conversations (ChatML) does not have'
        if kind == 'output' and previous != 'python':
            return f'part {number} is an output without a python part before it'
        if kind != 'output' and previous == 'python':  # a call may be the last thing said: the answer was cut short
            return f'part {number} follows a python part, expected its output between them'
        previous = kind
    return ''


def check_last(messages: list[dict]) -> None:
    if messages[-1]['role'] != 'user':
        raise ValueError(f'message {len(messages)}: role is "{messages[-1]["role"]}", expected user: the last one asks')


def read_messages(row: dict, where: str, prompt: bool = False) -> list[dict]:
    """
    The messages of a user's row, from "messages" or "conversations", role / content or ShareGPT's from / value.
    A text "system" beside them becomes the first message.

    prompt: it has to end with the user's message; else at least one must be the assistant's. What is wrong is a
    SystemExit that begins with where, 'chats.jsonl:117'.
    """
    messages = first_given(row, 'messages', 'conversations') if isinstance(row, dict) else None
    if messages is None:
        raise SystemExit(f'{where}: missing messages: expected an object with "messages" or "conversations"')
    try:
        check_rendered(row, LOST)
        if isinstance(messages, list):
            numbered = enumerate(messages, start=1)
            messages = [read_message(message, i, learned=not prompt) for i, message in numbered]
        check(messages)
        messages = add_system(messages, row)
        if prompt:
            check_last(messages)
    except ValueError as error:
        raise SystemExit(f'{where}: {error}') from None
    if not prompt and not any(message['role'] == 'assistant' for message in messages):
        raise SystemExit(f'{where}: no message with role "assistant", there would be nothing to learn')
    return messages


def first_given(row: dict, *keys: str):
    """The value of the first of the keys that is there and not null, else None."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def read_message(message, number: int, learned: bool):
    """plain_message(), or ValueError if other keys count too. learned: the assistant's are."""
    if not isinstance(message, dict):
        return message
    check_rendered(message, LOST_OF_MESSAGE, f'message {number}: ')
    plain = plain_message(message)
    if learned and plain.get('role') == 'assistant':
        for key in WEIGHTS:
            if message.get(key) not in (None, 1):
                raise ValueError(
                    f'message {number}: "{key}" is {message[key]!r:.60}, but all that the '
                    'assistant says is learned alike: leave the line out'
                )
    return plain


def check_rendered(row: dict, keys: Sequence[str], where: str = '') -> None:
    """ValueError for a key in use that is not rendered."""
    for key in keys:
        if row.get(key) not in UNUSED:
            raise ValueError(
                f'{where}"{key}" cannot be learned, and the rest means something else without it: '
                'write it into the content, or leave the line out'
            )


def plain_message(message):
    """Role and content alone, by our names; what is no message stays what it is, for check() to name."""
    if not isinstance(message, dict):
        return message
    names = {key: other for key, other in SHAREGPT.items() if key in message or other in message}
    plain = {key: first_given(message, key, other) for key, other in names.items()}
    if isinstance(plain.get('role'), str):
        plain['role'] = SPEAKERS.get(plain['role'], plain['role'])
    return plain


def add_system(messages: list[dict], row: dict) -> list[dict]:
    """The messages, begun with the system's text that the row has beside them, if it has one."""
    for key in SYSTEM:
        text = row.get(key)
        if text in (None, ''):
            continue
        if not isinstance(text, str):
            raise ValueError(f'"{key}" is {type(text).__name__}, expected text')
        if messages[0]['role'] != 'system':
            messages = [{'role': 'system', 'content': text}, *messages]
        elif ''.join(part['text'] for part in as_parts(messages[0]['content'])) != text:
            raise ValueError(f'"{key}" differs from the system message that is there too: keep one')
    return messages


# -----------------------------------------------------------------------------
# looking at conversations


def read_rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """('file:line', object) of each line of a .jsonl file that is not blank, without null keys."""
    try:
        with open(path, 'rb') as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8)  # Windows' editors put it first
                if line.strip():
                    yield f'{path}:{number}', parse_row(line, f'{path}:{number}')
    except OSError as error:
        raise SystemExit(
            f'{path}: cannot read it ({error.strerror}): expected a .jsonl file or a data folder'
        ) from None


def parse_row(line: bytes, where: str) -> dict:
    try:
        row = valid_text(json.loads(line.decode('utf-8'), parse_constant=refuse_constant))
    except UnicodeDecodeError as error:
        raise SystemExit(f'{where}: no UTF-8 at byte {error.start}: save it as UTF-8') from None
    except (ValueError, RecursionError) as error:
        raise SystemExit(f'{where}: not JSON ({error})') from None
    if not isinstance(row, dict):
        raise SystemExit(f'{where}: a JSON {type(row).__name__}, expected an object')
    return {key: value for key, value in row.items() if value is not None}


def refuse_constant(name: str):
    """json reads NaN and Infinity too, which tables have for empty cells. They are not JSON."""
    raise ValueError(f'{name} is not a value: leave the key out')


def show(chat: Chat, ids: Sequence[int], visible: Callable[[str], str], colour: bool) -> str:
    """
    One conversation for the eye, one line per turn: tokens divided by dots, supervised ones green
    (or in brackets). visible: how the text of a token is spelled, console.visible.
    """
    names = {i: name for name, i in chat.tokenizer.special.items()}
    turn_ends = {end[0] for end in chat.closing.values()}
    shown = ''
    for i, spoken in zip(map(int, ids), [False, *chat.is_spoken(ids)]):
        piece = names.get(i) or chat.tokenizer.decode_bytes([i]).decode('utf-8', 'backslashreplace')
        text = visible(piece)
        if colour:
            text = f'\x1b[{32 if spoken else 2}m{text}\x1b[0m'
        elif spoken:
            text = f'[{text}]'
        shown += text + ('\n' if '\n' in piece or i in turn_ends else '·')
    return shown.rstrip('·\n')


if __name__ == '__main__':
    from itertools import islice

    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

    import console
    import tokenizer as tokenizers
    from configurator import configure
    from console import visible, wants_colour

    tokenizer = ''  # whose ids a .jsonl file is shown in; '' is tinyworld's; a data folder has its own
    limit = 10  # conversations shown of each file or folder
    console.set_up(must_finish=False, missing='backslashreplace')
    configure(globals(), argv=[argument for argument in sys.argv[1:] if argument.startswith('-')])

    def from_folder(path: str) -> Iterator[tuple[str, Chat, Sequence[int]]]:
        from batches import Data  # and torch, which takes seconds and no .jsonl needs

        data = Data(path)
        chat, ids = Chat(data.tokenizer), data.split('val').read(0, 2**20)
        for number, document in enumerate(np.split(ids, np.flatnonzero(ids == chat.bos))):
            if len(document):  # what stands before the first bos is mostly nothing
                yield f'{path} (validation), conversation {number}', chat, document

    def open_tokenizer(path: str):
        if not path.endswith('.pt') and not Path(path).is_dir():
            return tokenizers.load(path)
        from checkpoint import load_tokenizer  # and torch, as above

        return load_tokenizer(path)

    def from_file(path: str) -> Iterator[tuple[str, Chat, Sequence[int]]]:
        own = Path(__file__).resolve().parent / 'data' / 'tinyworld' / 'sft' / 'tok.json'
        chat = Chat(open_tokenizer(tokenizer or str(own)))
        for where, row in read_rows(path):
            try:
                yield where, chat, chat.render(read_messages(row, where))
            except ValueError as error:  # parts that this format does not have
                raise SystemExit(f'{where}: {error}') from None

    PATHS = [argument for argument in sys.argv[1:] if not argument.startswith('-')]
    if not PATHS:
        raise SystemExit('no files: python conversation.py chats.jsonl, or a data folder as data/tinyworld/sft')
    if limit < 0:
        raise SystemExit(f'limit is {limit}, expected at least 0')
    for PATH in PATHS:
        for WHERE, CHAT, IDS in islice((from_folder if Path(PATH).is_dir() else from_file)(PATH), limit):
            print(f'{WHERE}: {len(IDS)} ids, {int(CHAT.is_spoken(IDS).sum())} of them supervised')
            print(show(CHAT, IDS, visible, colour=wants_colour(sys.stdout)) + '\n')
