"""
Conversations as token ids, and the loss on them: special tokens, headers, rendering, the mask.

    chat = Chat(tokenizer)         # our format, ChatML or Llama 3's, by its special tokens
    ids = chat.render(
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    )
    chat.is_spoken(ids)            # for each target ids[1:]: does the assistant say it?

From a conversation to a loss:

1) Messages. A message is {'role': 'system' | 'user' | 'assistant', 'content': text or a list of
   parts}. A part is {'type': 'text' | 'python' | 'output', 'text': text}: python is a call of the
   calculator, output is its answer.

2) Rendering. Special tokens say where each turn begins and ends:

     ours     <|bos|><|user_start|>What is 12*7?<|user_end|><|assistant_start|>It is
              <|python_start|>12*7<|python_end|><|output_start|>84<|output_end|>84.<|assistant_end|>
     ChatML   <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello!<|im_end|>⏎
     Llama 3  <|start_header_id|>user<|end_header_id|>⏎⏎Hi<|eot_id|>

3) The mask. The model learns what the assistant says, so only spoken targets count:

     input                  target                 spoken
     <|bos|>                <|user_start|>         no
     <|user_start|>         Hi                     no
     Hi                     <|user_end|>           no
     <|user_end|>           <|assistant_start|>    no
     <|assistant_start|>    Hello                  yes
     Hello                  !                      yes
     !                      <|assistant_end|>      yes: the model learns to end its answer

   In an answer with a call, the call is spoken, <|python_end|> included. Its output is not, because
   the calculator writes it. After <|output_end|> the assistant speaks again.

   The mask is computed from the ids alone, so data folders need no mask files. The last *header*
   before a target decides. A header is a short sequence of ids: one special token in our format,
   `<|im_start|>role⏎` in ChatML. Text never encodes to a special token, so a user cannot write a
   header, whatever they type.

4) The loss of a step (stages mid and sft) is the sum of -log p(target) over its spoken targets,
   divided by their number. batches.py gives each of them the weight 1 / number, and all other
   targets 0. DPO compares this sum, undivided, for the two answers of a pair.

The first half of the file, Chat, is steps 1 to 3. Session keeps the ids of a conversation in
progress. The rest checks messages, reads them from JSON, and prints conversations:

    $ python conversation.py chats.jsonl --tokenizer=out/run    # token by token, spoken ones marked
    $ python conversation.py data/tinyworld/sft                 # a data folder's validation split

The models of other projects add texts of their own to ChatML and Llama 3's format. hf_tokenizer.py
finds them in a chat template and keeps them in the tokenizer's table, as tokenizer.chat:

     bos          False: a prompt does not begin with bos. A document of a data folder still does
     system       the system's text where a conversation has none
     preamble     what each system turn begins with, before its text
     cue          what comes after the header of the answer to be sampled, such as an empty
                  <think> … </think>; nobody says it
     cue_always   True: it also comes after the headers of earlier answers

Left out on purpose: tools in other formats than ours, Jinja templates.
"""

import codecs
import copy
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == '__main__':  # python -P leaves the program's folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import console
from utf8 import valid_text

# The special tokens of our format, and those of ChatML
SPECIAL = (
    '<|bos|>', '<|user_start|>', '<|user_end|>', '<|assistant_start|>', '<|assistant_end|>',
    '<|python_start|>', '<|python_end|>', '<|output_start|>', '<|output_end|>',
)  # fmt: skip
CHATML = ('<|im_start|>', '<|im_end|>')
LLAMA3 = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
ROLES = ('system', 'user', 'assistant')


# -----------------------------------------------------------------------------
# a format: rendering and the mask


class Format(NamedTuple):
    """
    How a format writes a turn: pieces before and after the content, {role} for the role. A piece is
    a special token, or text that is encoded apart from the content, so that a header's ids do not
    depend on the text after it.
    """

    name: str
    needs: tuple[str, ...]  # its special tokens
    opening: tuple[str, ...]
    closing: tuple[str, ...]
    roles: tuple[str, ...] = ROLES  # without system: the first user turn begins with its text
    strips: bool = False  # blanks around a content are left out


FORMATS = (
    Format('ours', SPECIAL, ('<|{role}_start|>',), ('<|{role}_end|>',), roles=ROLES[1:]),
    Format('ChatML', CHATML, ('<|im_start|>', '{role}', '\n'), ('<|im_end|>', '\n')),
    Format(
        'Llama 3',
        LLAMA3,
        ('<|start_header_id|>', '{role}', '<|end_header_id|>', '\n\n'),
        ('<|eot_id|>',),
        strips=True,
    ),
)


class Header(NamedTuple):
    """A sequence of ids that decides who says the ids after it, up to the next header."""

    ids: tuple[int, ...]
    spoken: bool = False  # the assistant says what follows
    again: tuple[int, ...] = ()  # header that the next piece repeats, if the cut is after this
    speakable: tuple[int, ...] = ()  # special ids that may be sampled there


class Chat:
    """
    One format of conversations over a tokenizer's ids: ours, ChatML or Llama 3's.

        opening, closing            {role: ids before and after the content of its turn}
        parts_between               {'python' | 'output': (id before, id after)}, {} without tools
        python_start, python_end    the ids around a call, None without tools
        cue                         the ids after which an answer is sampled, opening included
        stop                        the ids that end an answer
        headers                     headers[0] applies before any header
        begin                       the ids that begin a document: [bos], [] without bos
        head                        the ids that begin a prompt: begin, or []

    SystemExit that names the missing special tokens if the tokenizer has no format's.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.bos = tokenizer.bos
        self.begin = [] if self.bos is None else [self.bos]
        self.head = self.begin if tokenizer.chat.get('bos', True) else []

        # 1) Which format?
        named = [form for form in FORMATS if tokenizer.special.keys() >= set(form.needs)]
        if not named:
            missing = [name for name in SPECIAL if name not in tokenizer.special]
            raise SystemExit(
                f'this tokenizer has no format for conversations: {" ".join(missing)} missing (and '
                f'{" ".join(CHATML)} too); data/custom/prepare.py --tokenizer=bpe makes one that '
                'has them'
            )
        self.format = named[0]

        # 2) Turns and parts
        self.opening = {role: self.write(self.format.opening, role) for role in self.format.roles}
        self.closing = {role: self.write(self.format.closing, role) for role in self.format.roles}
        self.cue = self.opening['assistant'] + self.marked(tokenizer.chat.get('cue', ''))
        if tokenizer.chat.get('cue_always'):
            self.opening['assistant'] = self.cue
        self.stop = frozenset(self.closing['assistant'][:1])
        self.parts_between: dict[str, tuple[int, int]] = {}
        self.python_start = None
        self.python_end = None
        if self.merges_system:
            for kind in ('python', 'output'):
                before, after = f'<|{kind}_start|>', f'<|{kind}_end|>'
                self.parts_between[kind] = tokenizer.special[before], tokenizer.special[after]
            self.python_start, self.python_end = self.parts_between['python']

        # 3) Headers. In plain text, before any header and after bos, nothing is spoken
        plain = Header((), speakable=tuple(self.begin))
        documents = [] if self.bos is None else [plain._replace(ids=(self.bos,))]
        self.headers = [plain, *documents, *self.headers_of_turns(), *self.headers_of_parts()]

    def write(self, pieces: Sequence[str], role: str) -> list[int]:
        """The ids of the pieces of a format."""
        ids = []
        for piece in pieces:
            piece = piece.replace('{role}', role)
            special = self.tokenizer.special.get(piece)
            ids += self.tokenizer.encode(piece) if special is None else [special]
        return ids

    def marked(self, text: str) -> list[int]:
        """The ids of a text of the format itself, in which special tokens are spelled."""
        names = '|'.join(map(re.escape, self.tokenizer.special))
        pieces = re.split(f'({names})', text)
        return self.write([piece for piece in pieces if piece], role='')

    def headers_of_turns(self) -> list[Header]:
        *others, answer = map(tuple, self.opening.values())
        speakable = (*self.stop, *([self.python_start] if self.has_tools else []))
        answers = dict.fromkeys((answer, tuple(self.cue)))  # usually one
        ends = dict.fromkeys(closing[0] for closing in self.closing.values())
        return [
            *(Header(ids, again=ids) for ids in others),
            *(Header(ids, spoken=True, again=ids, speakable=speakable) for ids in answers),
            *(Header((end,)) for end in ends),
        ]

    def headers_of_parts(self) -> list[Header]:
        if not self.has_tools:
            return []
        answer = tuple(self.opening['assistant'])
        call, output = ((before,) for before, _ in self.parts_between.values())
        after_output = self.parts_between['output'][1]
        return [
            Header(call, spoken=True, again=call, speakable=(self.python_end,)),
            Header((self.python_end,)),
            Header(output, again=output),
            Header((after_output,), spoken=True, again=answer, speakable=(*self.stop, *call)),
        ]

    @property
    def has_tools(self) -> bool:
        return bool(self.parts_between)

    @property
    def merges_system(self) -> bool:
        """Whether the system's text is part of the first user turn, not a turn of its own."""
        return 'system' not in self.opening

    # ---- rendering: messages to ids

    def render(self, messages: list[dict]) -> list[int]:
        """The ids of a conversation: bos, then its turns. ValueError as in check()."""
        check(messages, tools=self.has_tools)
        ids = list(self.begin)
        if self.merges_system:
            messages = merge_system(messages)
        elif messages[0]['role'] == 'system':
            ids += self.system_turn(messages[0])
            messages = messages[1:]
        else:
            ids += self.system_turn(None)
        for message in messages[:-1]:
            ids += self.encode_message(message)
        return ids + self.encode_message(messages[-1], is_last=True)

    def system_turn(self, message: dict | None) -> list[int]:
        """The ids of the system's turn. Without a message: of the format's own text, if any."""
        own = self.tokenizer.chat.get('system')
        if self.merges_system or message is None and own is None:
            return []
        text = own if message is None else text_of(message)
        text = text.strip() if self.format.strips and message else text
        text = self.tokenizer.chat.get('preamble', '') + text
        return self.opening['system'] + self.tokenizer.encode(text) + self.closing['system']

    def encode_message(self, message: dict, is_last: bool = False) -> list[int]:
        """The ids of one turn: its opening, the content, its closing. is_last: an answer begins as
        a sampled one does."""
        role = message['role']
        ids = list(self.cue if is_last and role == 'assistant' else self.opening[role])
        content = message['content']
        if self.format.strips:
            content = text_of(message).strip()
        for part in as_parts(content):
            inner = self.tokenizer.encode(part['text'])
            if part['type'] in self.parts_between:
                before, after = self.parts_between[part['type']]
                inner = [before, *inner, after]
            ids += inner
        return ids + self.closing[role]

    def prompt(self, messages: list[dict]) -> list[int]:
        """The ids after which the answer begins. The last message must be the user's."""
        ids = self.render(messages)[len(self.begin) :]
        check_last(messages)
        return self.head + ids + self.cue

    def output(self, text: str) -> list[int]:
        """The ids of a call's result. They follow the call, and the assistant does not say them."""
        if not self.has_tools:
            raise ValueError(f'this format of conversations ({self.format.name}) has no tools')
        before, after = self.parts_between['output']
        return [before, *self.tokenizer.encode(text), after]

    # ---- the mask: which ids the assistant says

    def is_spoken(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) ids -> (n - 1,) bool: does the assistant say target ids[1:]? It never says bos."""
        ids = np.asarray(ids, dtype=np.int64)
        header_speaks = np.array([header.spoken for header in self.headers])
        completed = self.completed(ids)
        spoken = header_speaks[self.last_headers(completed)[:-1]]
        if self.cue != self.opening['assistant']:  # it goes on after a header that is whole by then
            spoken = spoken & ~self.inside(completed)[1:]
        return spoken if self.bos is None else spoken & (ids[1:] != self.bos)

    def completed(self, ids: np.ndarray) -> np.ndarray:
        """(n,) ids -> (n,) number in self.headers of the header that ends at each id, or 0."""
        completed = np.zeros(len(ids), np.int64)
        for number, header in enumerate(self.headers[1:], start=1):
            places = max(0, len(ids) - len(header.ids) + 1)  # positions at which it could begin
            found = ids[:places] == header.ids[0]
            for k, i in enumerate(header.ids[1:], start=1):
                found &= ids[k : k + places] == i
            completed[len(header.ids) - 1 :][found] = number
        return completed

    def inside(self, completed: np.ndarray) -> np.ndarray:
        """(n,) bool: is each id in a header, and not its first?"""
        inside = np.zeros(len(completed), bool)
        for number, header in enumerate(self.headers):
            for k in range(1, len(header.ids)):
                inside[np.flatnonzero(completed == number) + 1 - k] = True
        return inside

    def last_headers(self, completed: np.ndarray) -> np.ndarray:
        """(n,) number of the last header up to each id: [0, 2, 0, 5, 0] -> [0, 2, 2, 5, 5]."""
        positions = np.where(completed > 0, np.arange(len(completed)), 0)
        return completed[np.maximum.accumulate(positions)]

    def speakable(self, ids: Sequence[int] | np.ndarray) -> frozenset[int]:
        """
        The special ids that may be sampled after ids. An answer may end or call, a call may end,
        plain text may end (bos). None in a user's turn, between turns, or in a call's output.
        """
        last = self.last_headers(self.completed(np.asarray(ids, dtype=np.int64)))
        number = last[-1] if len(last) else 0
        return frozenset(self.headers[number].speakable)

    def pieces(self, ids: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
        """
        Cut a conversation into pieces of at most size ids. Each target keeps its mask.

        A cut is made before the last question that begins within the piece, so that a question
        stays with its answer. Where none does, the piece is filled up, but no header is split.
        Every piece but the first begins with bos and, if a turn was cut, the header of that turn.
        """
        # 1) The smallest size: bos, the header that a piece repeats, and one that must not be split
        ids = np.asarray(ids, dtype=np.int64)
        smallest = 1 + 2 * max(len(header.ids) for header in self.headers)
        if size < smallest:
            raise ValueError(
                f'pieces of {size} ids, expected at least {smallest}: bos and two headers'
            )

        # 2) Where a cut is good, and where it is not allowed
        completed = self.completed(ids)
        last = self.last_headers(completed)
        inside = self.inside(completed)
        question = tuple(self.opening['user'])
        number = [header.ids for header in self.headers].index(question)
        ends = np.flatnonzero(completed == number)
        questions = ends[1:] + 1 - len(question)  # not the first: no answer is before it

        # 3) Cut
        pieces = []
        prefix = np.zeros(0, np.int64)
        start = 0
        while start + size - len(prefix) < len(ids):
            limit = start + size - len(prefix)
            fitting = questions[(questions > start) & (questions <= limit)]
            cut = int(fitting[-1]) if len(fitting) else limit
            while inside[cut]:
                cut -= 1
            pieces.append(np.concatenate((prefix, ids[start:cut])))
            again = self.headers[last[cut - 1]].again
            prefix = np.array([*self.begin, *again], dtype=np.int64)
            start = cut
        return [*pieces, np.concatenate((prefix, ids[start:]))]

    # ---- answers: ids to messages

    def parts(self, answer_ids: Sequence[int]) -> list[dict]:
        """
        The parts of an answer. answer_ids begin after its header, and may go on after its end or
        break off anywhere: 'It is <|python_start|>1+' has a text part and a python part.
        """
        kind_of = {before: kind for kind, (before, _) in self.parts_between.items()}
        ends = {after for _, after in self.parts_between.values()}
        parts = []
        kind = 'text'
        inner = []

        def finish_part():
            if inner or kind != 'text':
                parts.append({'type': kind, 'text': self.tokenizer.decode(inner)})

        for i in self.up_to_end(answer_ids):
            if i in kind_of or i in ends:
                finish_part()
                kind = kind_of.get(i, 'text')
                inner = []
            else:
                inner.append(i)
        finish_part()
        return parts

    def text(self, answer_ids: Sequence[int]) -> str:
        """What the user sees of an answer: its text parts, without calls and their results."""
        return ''.join(p['text'] for p in self.parts(answer_ids) if p['type'] == 'text')

    def transcript(self, answer_ids: Sequence[int]) -> str:
        """An answer with its calls, as plain text: Tom has <<3+4=7>>7 apples."""
        marks = {'text': '{}', 'python': '<<{}', 'output': '={}>>'}
        return ''.join(marks[p['type']].format(p['text']) for p in self.parts(answer_ids))

    def up_to_end(self, answer_ids: Sequence[int]) -> list[int]:
        """The ids before the first that ends the answer: a stop id, or bos."""
        ids = []
        for i in map(int, answer_ids):
            if i in self.stop or i == self.bos:
                break
            ids.append(i)
        return ids

    def closed(self, answer_ids: Sequence[int]) -> list[int]:
        """
        The ids of an answer that may break off anywhere, with the closing ids that it lacks:

            It is <|python_start|>1+  ->  It is <|python_start|>1+<|python_end|><|assistant_end|>
        """
        ids = self.up_to_end(answer_ids)
        end_of = dict(self.parts_between.values())  # id before a part -> id after it
        marks = [i for i in ids if i in end_of or i in end_of.values()]
        if marks and marks[-1] in end_of:
            ids.append(end_of[marks[-1]])
        return ids + self.closing['assistant']


# -----------------------------------------------------------------------------
# a conversation in progress


class Turn(NamedTuple):
    message: dict  # the user's
    question: list[int]  # its ids
    answer: list[int]  # [] until it is added

    @property
    def size(self) -> int:
        return len(self.question) + len(self.answer)


class Session:
    """
    A conversation that keeps its ids: each message is encoded once, when it is added.

        session = Session(chat, messages)             # any list of messages, or none
        session.add({'role': 'user', 'content': 'Hi'})
        ids, dropped = session.prompt(room=1000)      # drops the oldest turns if it is longer
        session.add_answer(answer_ids)                # what the engine sampled after ids

    An answer keeps the ids that were sampled. encode() might split its text into other tokens, and
    the model should see what it said. In our format the first user turn begins with the system's
    text. When that turn is dropped, the next question is encoded again, with the system's
    text. Nothing else is encoded twice.

    ValueError as in check() for a message that is wrong or out of turn.
    """

    def __init__(self, chat: Chat, messages: Sequence[dict] = ()):
        if not isinstance(messages, (list, tuple)):
            raise ValueError(NO_MESSAGES)
        self.chat = chat
        self.head = chat.head + chat.system_turn(None)  # ids before the first turn
        self.system: dict | None = None
        self.turns: list[Turn] = []
        self.count = 0  # messages so far, dropped ones included
        self.last_role: str | None = None
        for message in messages:
            self.add(message)

    def add(self, message: dict) -> None:
        """Append a message of any role. For an answer whose ids are known: add_answer()."""
        check_message(message, self.count + 1, self.last_role, tools=self.chat.has_tools)
        role = message['role']
        if role == 'user':
            question = self.encode_question(message, is_first=not self.turns)
            self.turns.append(Turn(message, question, []))
        elif role == 'assistant':
            self.turns[-1] = self.turns[-1]._replace(answer=self.chat.encode_message(message))
        else:
            self.system = message
            self.head = self.chat.head + self.chat.system_turn(message)
        self.count += 1
        self.last_role = role

    def add_answer(self, ids: Sequence[int]) -> None:
        """Append the answer that the engine sampled after prompt(), complete or cut off anywhere.
        Its ids are kept; the closing ids that they lack are added."""
        check_message({'role': 'assistant', 'content': ''}, self.count + 1, self.last_role)
        opening = self.chat.opening['assistant']
        answer = opening + self.chat.closed(ids)
        self.turns[-1] = self.turns[-1]._replace(answer=answer)
        self.count += 1
        self.last_role = 'assistant'

    def prompt(self, room: int) -> tuple[list[int], int]:
        """
        (ids after which the answer begins, number of turns dropped for it).

        The oldest turns are dropped for good until at most `room` ids are left. A turn is a user's
        message and its answer. The system's text and the last turn stay, so the prompt may still be
        longer than `room`: the caller decides what to do about it.
        """
        # 1) The last message must be the user's
        if not self.count:
            raise ValueError(NO_MESSAGES)
        check_asks(self.last_role, self.count)

        # 2) Drop turns
        cue = self.chat.cue
        size = len(self.head) + sum(turn.size for turn in self.turns) + len(cue)
        dropped = 0
        while size > room and len(self.turns) > 1:
            size -= self.turns.pop(0).size
            dropped += 1
            if self.system and self.chat.merges_system:
                first = self.turns[0]
                question = self.encode_question(first.message, is_first=True)
                size += len(question) - len(first.question)
                self.turns[0] = first._replace(question=question)

        # 3) Concatenate the rest
        ids = list(self.head)
        for turn in self.turns:
            ids += turn.question
            ids += turn.answer
        return ids + cue, dropped

    def encode_question(self, message: dict, is_first: bool) -> list[int]:
        if is_first and self.system and self.chat.merges_system:
            message = with_system(self.system, message)
        return self.chat.encode_message(message)

    def copy(self) -> 'Session':
        """An independent session with the same turns. Nothing is encoded again."""
        other = copy.copy(self)
        other.turns = list(self.turns)
        return other


# -----------------------------------------------------------------------------
# checking messages

FOLLOWS = {
    None: ('system', 'user'),
    'system': ('user',),
    'user': ('assistant',),
    'assistant': ('user',),
}
NO_MESSAGES = 'no messages, expected a list of {"role": …, "content": …}'


def as_parts(content: str | list[dict]) -> list[dict]:
    return [{'type': 'text', 'text': content}] if isinstance(content, str) else content


def text_of(message: dict) -> str:
    return ''.join(part['text'] for part in as_parts(message['content']))


def with_system(system: dict, message: dict) -> dict:
    """The user's message with the system's text before it, and an empty line between them."""
    return {'role': 'user', 'content': f'{text_of(system)}\n\n{text_of(message)}'}


def merge_system(messages: list[dict]) -> list[dict]:
    """The same conversation with the system's text in the first user message."""
    if messages[0]['role'] != 'system':
        return messages
    return [with_system(messages[0], messages[1]), *messages[2:]]


def check(messages: list[dict], tools: bool = True) -> None:
    """
    ValueError that names the first wrong message, counted from 1, and its problem.

    Expected: at most one system message, then user and assistant in turn, the user first.
    tools: whether an answer may have python and output parts.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(NO_MESSAGES)
    previous = None
    for number, message in enumerate(messages, start=1):
        check_message(message, number, previous, tools)
        previous = message['role']
    if previous == 'system':
        raise ValueError('message 1: role is "system" and no message follows, expected user')


def check_message(message: dict, number: int, previous: str | None, tools: bool = True) -> None:
    """ValueError unless this is a valid message after one of the role `previous`."""
    if not isinstance(message, dict):
        kind = type(message).__name__
        raise ValueError(f'message {number}: {kind}, expected {{"role": …, "content": …}}')
    for key in ('role', 'content'):
        if key not in message:
            raise ValueError(f'missing {key} in message {number}')
    role = message['role']
    if role not in ROLES:
        raise ValueError(f'message {number}: role is {role!r}, expected {", ".join(ROLES)}')
    if role not in FOLLOWS[previous]:
        place = f'after {previous}' if previous else 'in the first place'
        expected = ' or '.join(FOLLOWS[previous])
        raise ValueError(f'message {number}: role is "{role}" {place}, expected {expected}')
    problem = content_problem(message['content'], role, tools)
    if problem:
        raise ValueError(f'message {number}: {problem}')


def content_problem(content: str | list[dict], role: str, tools: bool) -> str:
    """The first problem of a message's content, '' if it has none."""
    if not isinstance(content, (str, list)):
        return f'content is {type(content).__name__}, expected text or a list of parts'
    previous = None
    for number, part in enumerate(as_parts(content), start=1):
        # 1) A part by itself
        has_text = isinstance(part, dict) and isinstance(part.get('text'), str)
        if not has_text or 'type' not in part:
            given = f'part {number} of its content is {part!r:.60}'
            return f'{given}, expected {{"type": …, "text": …}}'
        kind = part['type']
        if kind not in ('text', 'python', 'output'):
            return f'part {number} has type {kind!r}, expected text, python or output'
        if kind != 'text' and role != 'assistant':
            return f'part {number} has type "{kind}" in a message of the {role}, expected text'
        if kind != 'text' and not tools:
            return f'part {number} has type "{kind}", but this format of conversations has no tools'
        # 2) Its place: an output follows each call. A call may come last, in an answer cut short
        if kind == 'output' and previous != 'python':
            return f'part {number} is an output without a python part before it'
        if kind != 'output' and previous == 'python':
            return f'part {number} follows a python part, expected its output between them'
        previous = kind
    return ''


def check_last(messages: list[dict]) -> None:
    """ValueError unless the last message is the user's, as a prompt needs."""
    check_asks(messages[-1]['role'], len(messages))


def check_asks(role: str, number: int) -> None:
    if role != 'user':
        raise ValueError(f'message {number}: role is "{role}", expected user in the last message')


# -----------------------------------------------------------------------------
# reading conversations from JSON

SHAREGPT = {'role': 'from', 'content': 'value'}  # ShareGPT's names for the keys of a message
SPEAKERS = {'human': 'user', 'gpt': 'assistant', 'developer': 'system'}  # other names for the roles
SYSTEM = ('system', 'system_prompt')  # keys of a row that hold the system's text
# Keys that our formats cannot render. Without them the messages would teach something else: silence
# instead of a call, a conclusion without its reasoning, the description of a missing picture
LOST = ('tools', 'functions', 'image', 'images')  # keys of a row or a message
LOST_OF_MESSAGE = (
    'tool_calls', 'function_call', 'reasoning_content', 'reasoning', 'thinking', 'refusal', *LOST,
)  # fmt: skip
UNUSED = (None, '', '[]', [], {})  # a key with one of these values is not in use
WEIGHTS = ('weight', 'loss', 'train', 'training')  # keys of a message; 0, false: not trained on


def read_messages(row: dict, where: str, prompt: bool = False) -> list[dict]:
    """
    The messages of a row of a user's file, from "messages" or "conversations", with keys role /
    content or ShareGPT's from / value. The row's text "system", if any, becomes the first message.

    prompt: the last message must be the user's; otherwise at least one must be the assistant's.
    SystemExit that begins with where, for example 'chats.jsonl:117', and names what is wrong.
    """
    # 1) Find them
    messages = first_given(row, 'messages', 'conversations') if isinstance(row, dict) else None
    if messages is None:
        expected = 'expected an object with "messages" or "conversations"'
        raise SystemExit(f'{where}: missing messages: {expected}')
    # 2) Rename their keys and check them
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
    # 3) Something to learn?
    if not prompt and not any(message['role'] == 'assistant' for message in messages):
        raise SystemExit(f'{where}: no message with role "assistant", so nothing to learn')
    return messages


def first_given(row: dict, *keys: str):
    """The value of the first of the keys that exists and is not null, else None."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def read_message(message, number: int, learned: bool):
    """plain_message(message). ValueError for a key in use that is not rendered and, if the message
    is to be learned, for a weight other than 1."""
    if not isinstance(message, dict):
        return message
    check_rendered(message, LOST_OF_MESSAGE, f'message {number}: ')
    plain = plain_message(message)
    if learned and plain.get('role') == 'assistant':
        for key in WEIGHTS:
            if message.get(key) not in (None, 1):
                raise ValueError(
                    f'message {number}: "{key}" is {message[key]!r:.60}, expected 1: everything '
                    'the assistant says has the same weight; leave the line out'
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
    """The message with role and content only, under our names. check() reports a non-dict."""
    if not isinstance(message, dict):
        return message
    plain = {}
    for key, other in SHAREGPT.items():
        if key in message or other in message:
            plain[key] = first_given(message, key, other)
    if isinstance(plain.get('role'), str):
        plain['role'] = SPEAKERS.get(plain['role'], plain['role'])
    return plain


def add_system(messages: list[dict], row: dict) -> list[dict]:
    """The messages, preceded by the row's own system text, if it has one."""
    for key in SYSTEM:
        text = row.get(key)
        if text in (None, ''):
            continue
        if not isinstance(text, str):
            raise ValueError(f'"{key}" is {type(text).__name__}, expected text')
        if messages[0]['role'] != 'system':
            messages = [{'role': 'system', 'content': text}, *messages]
        elif text_of(messages[0]) != text:
            raise ValueError(f'"{key}" differs from the system message, expected one of them')
    return messages


def read_rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """
    ('file:line', object without its null keys) for each line of a .jsonl file that is not blank.

    SystemExit for a file that cannot be read, or a line that is not a JSON object in UTF-8.
    """
    try:
        with open(path, 'rb') as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8)  # some Windows editors write it first
                if line.strip():
                    yield f'{path}:{number}', parse_row(line, f'{path}:{number}')
    except OSError as error:
        raise SystemExit(
            f'{path}: cannot read it ({error.strerror}), expected a .jsonl file or a data folder'
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
    """json accepts NaN and Infinity, which exported tables have in empty cells. JSON has none."""
    raise ValueError(f'{name} is not a value: leave the key out')


# -----------------------------------------------------------------------------
# printing conversations


def show(chat: Chat, ids: Sequence[int], colour: bool) -> str:
    """
    A conversation for the terminal, one line per turn: dots between tokens, spoken tokens in
    brackets, or green.

        <|bos|>·<|user_start|>·Hi·<|user_end|>
        <|assistant_start|>·[Hello]·[!]·[<|assistant_end|>]
    """
    names = {i: name for name, i in chat.tokenizer.special.items()}
    turn_ends = {end[0] for end in chat.closing.values()}
    shown = ''
    for i, spoken in zip(map(int, ids), [False, *chat.is_spoken(ids)]):
        piece = names.get(i)
        if piece is None:
            piece = chat.tokenizer.decode_bytes([i]).decode('utf-8', 'backslashreplace')
        text = console.visible(piece)
        if colour:
            text = f'\x1b[{32 if spoken else 2}m{text}\x1b[0m'
        elif spoken:
            text = f'[{text}]'
        shown += text + ('\n' if '\n' in piece or i in turn_ends else '·')
    return shown.rstrip('·\n')


if __name__ == '__main__':
    from itertools import islice

    import tokenizer as tokenizers
    from configurator import configure
    from shards import Data

    tokenizer = ''  # for a .jsonl file: tok.json, checkpoint or folder; '' is data/tinyworld's
    limit = 10  # conversations shown of each file or folder
    console.set_up(must_finish=False, missing='backslashreplace')
    configure(globals(), argv=[argument for argument in sys.argv[1:] if argument.startswith('-')])

    def from_folder(path: str) -> Iterator[tuple[str, Chat, Sequence[int]]]:
        data = Data(path)
        chat = Chat(data.tokenizer)
        ids = data.split('val').read(0, 2**20)
        documents = np.split(ids, np.flatnonzero(ids == chat.bos))
        for number, document in enumerate(documents):
            if len(document):  # usually nothing is before the first bos
                yield f'{path} (validation), conversation {number}', chat, document

    def open_tokenizer(path: str):
        if not path.endswith('.pt') and not Path(path).is_dir():
            return tokenizers.load(path)
        from checkpoint import load_tokenizer  # and torch, which takes seconds

        return load_tokenizer(path)

    def from_file(path: str) -> Iterator[tuple[str, Chat, Sequence[int]]]:
        own = Path(__file__).resolve().parent / 'data' / 'tinyworld' / 'sft' / 'tok.json'
        chat = Chat(open_tokenizer(tokenizer or str(own)))
        for where, row in read_rows(path):
            try:
                yield where, chat, chat.render(read_messages(row, where))
            except ValueError as error:  # calls, which ChatML cannot render
                raise SystemExit(f'{where}: {error}') from None

    PATHS = [argument for argument in sys.argv[1:] if not argument.startswith('-')]
    if not PATHS:
        usage = 'python conversation.py chats.jsonl, or a data folder such as data/tinyworld/sft'
        raise SystemExit(f'no files: {usage}')
    if limit < 0:
        raise SystemExit(f'limit is {limit}, expected at least 0')
    for PATH in PATHS:
        conversations = from_folder(PATH) if Path(PATH).is_dir() else from_file(PATH)
        for where, chat, ids in islice(conversations, limit):
            spoken = int(chat.is_spoken(ids).sum())
            print(f'{where}: {len(ids)} ids, {spoken} of them supervised')
            print(show(chat, ids, colour=console.wants_colour(sys.stdout)) + '\n')
