"""
OpenAI's HTTP API as data: what a request may ask, and the objects that answer it.

    call = read_chat(body, model)            # dict from JSON -> Call; Refused for a wrong field
    answer = Answer(call, model)
    for choice, event in events:             # what the engine made of the call, see engine.py
        for chunk in answer.add(choice, event):    # dicts for a stream
            ...
    answer.whole()                           # the dict for a request without a stream

Fields of OpenAI's that would change the answer and that we lack are refused unless they have their
default. Unknown fields are ignored, because clients send fields of their own. serve.py lists the
fields that we have beside OpenAI's.

Left out on purpose: HTTP, threads (serve.py).
"""

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from conversation import SPEAKERS, UNUSED, Session
from dialogue import fit
from engine import Engine, Event
from sampling import Sampling

MAX_CHOICES = 16  # answers to one request: n, times the prompts of a completion
MAX_STOPS = 16  # stop texts, of at most MAX_STOP characters
MAX_STOP = 256
COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for /v1/completions

# Fields that we lack: the values that ask for nothing
LACKED = {
    'logit_bias': [{}], 'frequency_penalty': [0], 'presence_penalty': [0],
    'response_format': [{'type': 'text'}],
}  # fmt: skip
LACKED_IN_CHAT = LACKED | {
    'tools': [[]], 'tool_choice': ['none', 'auto'], 'parallel_tool_calls': [True],
    'functions': [[]], 'function_call': ['none', 'auto'], 'modalities': [['text']],
    'audio': [], 'prediction': [], 'web_search_options': [],
}  # fmt: skip
LACKED_IN_MESSAGES = ('tool_calls', 'tool_call_id', 'function_call', 'audio', 'image', 'images')
LACKED_IN_COMPLETIONS = LACKED | {'echo': [False], 'suffix': [''], 'best_of': [1]}

EXPECTED = {
    bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text', list: 'a list',
    dict: 'an object',
}  # fmt: skip


class Refused(Exception):
    """A request that is answered with an error. param: the field that is wrong."""

    TYPES = {401: 'authentication_error', 403: 'permission_error', 404: 'not_found_error',
             429: 'rate_limit_error'}  # fmt: skip

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ):
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code

    def body(self) -> dict:
        """OpenAI's error object."""
        kind = 'server_error' if self.status >= 500 else 'invalid_request_error'
        kind = self.TYPES.get(self.status, kind)
        error = dict(message=str(self), type=kind, param=self.param, code=self.code)
        return {'error': error}


class Served(NamedTuple):
    """The model that is served."""

    name: str
    engine: Engine
    why_no_chat: str  # '' if it can chat
    created: int  # seconds since 1970
    sampling: Sampling  # used where a request names no setting
    max_tokens: int  # of a chat's answer, where a request names none


@dataclass
class Call:
    """A request, checked."""

    prompts: list[list[int]]  # [] if there is nothing left to generate
    max_tokens: int
    sampling: Sampling
    n: int  # answers to each prompt
    is_chat: bool
    stream: bool
    include_usage: bool
    logprobs: bool
    token_ids: bool
    dropped: int = 0  # turns that did not fit the context

    @property
    def choices(self) -> int:
        return max(1, len(self.prompts)) * self.n


# -----------------------------------------------------------------------------
# requests


class Fields:
    """The fields of a request's body. A null counts as absent. Refused names a wrong field."""

    def __init__(self, body):
        if not isinstance(body, dict):
            raise Refused(f'the body is a JSON {type(body).__name__}, expected an object')
        self.values = {name: value for name, value in body.items() if value is not None}

    def get(self, name: str, kind: type, default=None):
        """The value, whose type is `kind`; an int is a float too."""
        value = self.values.get(name, default)
        if value is None:
            return None
        allowed = (int, float) if kind is float else (kind,)
        if type(value) not in allowed:
            raise Refused(f'{name} is {brief(value)}, expected {EXPECTED[kind]}', name)
        if kind is float and not abs(value) < 1e300:  # an int may be too large for a float
            raise Refused(f'{name} is {brief(value)}, expected a finite number', name)
        return value

    def whole(self, name: str, default, least: int, most: float = math.inf):
        """A whole number from least to most."""
        value = self.get(name, int, default)
        if value is not None and not least <= value <= most:
            limits = f'at least {least}' if most == math.inf else f'{least} to {most}'
            raise Refused(f'{name} is {brief(value)}, expected {limits}', name)
        return value

    def require(self, name: str):
        if name not in self.values:
            raise Refused(f'{name} is missing', name)
        return self.values[name]

    def refuse_lacked(self, lacked: dict) -> None:
        """Refused for a field that we lack, if it asks for something."""
        for name, defaults in lacked.items():
            if name in self.values and self.values[name] not in defaults:
                expected = f'leave it out: this server has no {name}'
                raise Refused(f'{name} is {brief(self.values[name])}, {expected}', name)


def brief(value) -> str:
    """A value as it is quoted in an error."""
    if type(value) is int and abs(value) >= 10**30:  # Python refuses to print very long ones
        return 'a very large number'
    return f'{value!r:.60}' if not isinstance(value, (list, dict)) else f'a {type(value).__name__}'


def check_model(fields: Fields, model: Served) -> None:
    check_name(fields.get('model', str, model.name), model)


def check_name(name: str, model: Served) -> None:
    if name != model.name:
        message = f'there is no model {name!r:.100}, expected {model.name!r}'
        raise Refused(message, 'model', status=404, code='model_not_found')


def card(model: Served) -> dict:
    """The model as /v1/models lists it."""
    return dict(id=model.name, object='model', created=model.created, owned_by='flatgpt')


def check_can_chat(model: Served) -> None:
    if model.why_no_chat:
        hint = 'This model completes texts: /v1/completions'
        raise Refused(f'{model.why_no_chat}. {hint}', 'model', code='model_cannot_chat')


def read_sampling(fields: Fields, model: Served, top_logprobs: int) -> Sampling:
    """How to sample: the request's settings, and the server's for the others."""
    # 1) Where a text ends
    stops = fields.values.get('stop', [])
    stops = [stops] if isinstance(stops, str) else stops
    fits = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not fits or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP for s in stops):
        expected = f'a text or a list of at most {MAX_STOPS}, of 1 to {MAX_STOP} characters each'
        raise Refused(f'stop is {brief(stops)}, expected {expected}', 'stop')

    # 2) Numbers. A seed may be negative, ours may not
    usual = model.sampling
    seed = fields.whole('seed', None, least=-(2**63), most=2**64 - 1)
    top_k = fields.whole('top_k', usual.top_k, least=-1)
    numbers = {
        name: fields.get(name, float, getattr(usual, name))
        for name in ('temperature', 'top_p', 'min_p', 'repetition_penalty')
    }

    # 3) Their ranges are Sampling's to check. Its messages begin with the field's name
    try:
        return Sampling(
            **numbers, top_k=None if top_k == -1 else top_k, stop_texts=tuple(stops),
            seed=secrets.randbits(63) if seed is None else seed % 2**64, top_logprobs=top_logprobs,
        )  # fmt: skip
    except ValueError as error:
        raise Refused(str(error), str(error).split()[0]) from None


def read_call(
    fields: Fields, model: Served, prompts: list[list[int]], max_tokens: int, top_logprobs: int,
    **more,
) -> Call:  # fmt: skip
    """What chats and completions have in common."""
    n = fields.whole('n', 1, least=1, most=MAX_CHOICES)
    if n * len(prompts) > MAX_CHOICES:
        asked = f'n is {n} and prompt has {len(prompts)} texts'
        raise Refused(f'{asked}, expected at most {MAX_CHOICES} answers', 'n')
    options = fields.get('stream_options', dict, {})
    return Call(
        prompts, max_tokens, read_sampling(fields, model, top_logprobs), n,
        stream=fields.get('stream', bool, False),
        include_usage=Fields(options).get('include_usage', bool, False),
        token_ids=fields.get('return_token_ids', bool, False), **more,
    )  # fmt: skip


def read_chat(body: dict, model: Served) -> Call:
    """A request to /v1/chat/completions."""
    # 1) The model, and fields that we lack
    fields = Fields(body)
    check_model(fields, model)
    check_can_chat(model)
    fields.refuse_lacked(LACKED_IN_CHAT)

    # 2) Log-probabilities
    logprobs = fields.get('logprobs', bool, False)
    top_logprobs = fields.whole('top_logprobs', 0, least=0, most=20)
    if top_logprobs and not logprobs:
        expected = 'expected logprobs: true with it'
        raise Refused(f'top_logprobs is {top_logprobs}, {expected}', 'top_logprobs')

    # 3) The prompt. A complete answer has nothing to add
    prompt, answer, dropped = read_prompt(fields, model)
    is_complete = bool(answer) and answer[-1] in model.engine.chat.stop
    prompts = [] if is_complete else [prompt + answer]
    return read_call(
        fields, model, prompts, max_tokens_of(fields, model), top_logprobs,
        is_chat=True, logprobs=logprobs, dropped=dropped,
    )  # fmt: skip


def max_tokens_of(fields: Fields, model: Served) -> int:
    """Most tokens of an answer. OpenAI has renamed the field; the new name wins."""
    old = fields.whole('max_tokens', model.max_tokens, least=1)
    return fields.whole('max_completion_tokens', old, least=1)


def read_prompt(fields: Fields, model: Served) -> tuple[list[int], list[int], int]:
    """(ids of the messages, ids with which the answer begins, turns dropped for lack of room)."""
    # 1) The messages. The beginning of the answer takes room from them
    engine = model.engine
    fields.require('messages')
    answer = read_answer(fields, engine)
    max_tokens = max_tokens_of(fields, model)
    context = engine.context - len(answer)

    # 2) Their ids
    try:
        session = Session(engine.chat, plain(fields.get('messages', list)))
        whole = session.copy()
        prompt, dropped = fit(session, max_tokens, context)
    except ValueError as error:
        too_long = 'prompt of' in str(error)
        code = 'context_length_exceeded' if too_long else None
        message = f'messages make {error}' if too_long else f'messages: {error}'
        if answer:
            message += f' ({engine.context} less the {len(answer)} of answer_ids)'
        raise Refused(message, 'messages', code=code) from None

    # 3) Are turns allowed to be dropped?
    truncation = fields.get('truncation', str, 'auto')
    if truncation not in ('auto', 'disabled'):
        raise Refused(f'truncation is {truncation!r:.60}, expected auto or disabled', 'truncation')
    if dropped and truncation == 'disabled':
        size = len(whole.prompt(room=math.inf)[0])
        room = context - min(max_tokens, context // 2)
        raise Refused(
            f'messages make a prompt of {size} tokens, expected at most {room}: the context is '
            f'{engine.context}, and the rest is for the answer; with truncation: "auto" the oldest '
            'turns are dropped',
            'messages', code='context_length_exceeded',
        )  # fmt: skip
    return prompt, answer, dropped


def plain(messages: list) -> list:
    """Messages with our names for roles and without the keys of clients. ValueError for a key in
    use that changes what a message means. What else is wrong, Session says."""
    plain = []
    for number, message in enumerate(messages, start=1):
        if isinstance(message, dict):
            for key in LACKED_IN_MESSAGES:
                if message.get(key) not in UNUSED:
                    raise ValueError(f'message {number} has {key}, which this server lacks')
            message = {key: message[key] for key in ('role', 'content') if key in message}
            if isinstance(message.get('role'), str):
                message['role'] = SPEAKERS.get(message['role'], message['role'])
        plain.append(message)
    return plain


def read_answer(fields: Fields, engine: Engine) -> list[int]:
    """The field answer_ids: the ids with which the answer begins."""
    # 1) Ids of this tokenizer, with room for more
    ids = read_ids(fields.get('answer_ids', list, []), 'answer_ids', engine)
    if len(ids) >= engine.context:
        expected = f'expected fewer than the context of {engine.context}'
        raise Refused(f'answer_ids has {len(ids)} ids, {expected}', 'answer_ids')

    # 2) Special ones only where an answer can have them
    chat = engine.chat
    marks = {mark for pair in chat.parts_between.values() for mark in pair}
    for place, i in enumerate(ids):
        ends = i in chat.stop and place == len(ids) - 1
        if i in engine.special and i not in marks and not ends:
            raise Refused(f'answer_ids has {i}, which no answer holds there', 'answer_ids')
    after = [i for i in ids if i in marks]
    if after and after[-1] == chat.parts_between['output'][0]:
        raise Refused(
            'answer_ids breaks off inside the answer of a tool, expected its end or none of it',
            'answer_ids',
        )
    return ids


def read_ids(ids: list, name: str, engine: Engine) -> list[int]:
    known = engine.tokenizer.vocab_size
    for i in ids:
        if type(i) is not int or not 0 <= i < known:
            raise Refused(f'{name} has {brief(i)}, expected ids from 0 to {known - 1}', name)
    return ids


def read_completion(body: dict, model: Served) -> Call:
    """A request to /v1/completions."""
    # 1) The model, and fields that we lack
    fields = Fields(body)
    check_model(fields, model)
    fields.refuse_lacked(LACKED_IN_COMPLETIONS)

    # 2) Prompts: a text, ids, or a list of either
    given = fields.require('prompt')
    is_one = isinstance(given, str) or isinstance(given, list) and given and type(given[0]) is int
    several = [given] if is_one else given
    if not isinstance(several, list) or not 0 < len(several) <= MAX_CHOICES:
        expected = f'a text, a list of ids, or a list of 1 to {MAX_CHOICES} of these'
        raise Refused(f'prompt is {brief(given)}, expected {expected}', 'prompt')
    prompts = [encode_prompt(one, model.engine) for one in several]

    # 3) Tokens and their log-probabilities
    max_tokens = fields.whole('max_tokens', COMPLETION_TOKENS, least=1)
    top_logprobs = fields.whole('logprobs', None, least=0, most=20)
    return read_call(
        fields, model, prompts, max_tokens, top_logprobs or 0,
        is_chat=False, logprobs=top_logprobs is not None,
    )  # fmt: skip


def encode_prompt(prompt: str | list, engine: Engine) -> list[int]:
    """The ids of a completion's prompt: a text after <|bos|>, or ids as they are."""
    # 1) Ids
    tokenizer = engine.tokenizer
    if isinstance(prompt, list):
        ids = read_ids(prompt, 'prompt', engine)
    elif isinstance(prompt, str):
        try:
            ids = tokenizer.encode(prompt)
        except ValueError as error:  # a tokenizer of characters knows only some
            raise Refused(f'prompt: {error}', 'prompt') from None
        ids = ids if tokenizer.bos is None else [tokenizer.bos, *ids]
    else:
        raise Refused(f'prompt has {brief(prompt)}, expected texts or lists of ids', 'prompt')

    # 2) Do they fit?
    if not 0 < len(ids) <= engine.context:
        code = 'context_length_exceeded' if ids else None
        expected = f'1 to {engine.context}, the context'
        raise Refused(f'prompt has {len(ids)} tokens, expected {expected}', 'prompt', code=code)
    return ids


# -----------------------------------------------------------------------------
# answers


@dataclass
class Choice:
    """One answer to a request, so far."""

    index: int
    text: str = ''  # text parts only
    ids: list[int] = field(default_factory=list)
    part: str = 'text'  # of the last token
    logprobs: list[dict] = field(default_factory=list)  # in the form of a chat
    finish_reason: str | None = None


class Answer:
    """The objects that answer a call, made from the events of its requests."""

    def __init__(self, call: Call, model: Served):
        self.call = call
        self.tokenizer = model.engine.tokenizer
        self.chat = model.engine.chat
        self.names = {i: name for name, i in self.tokenizer.special.items()}
        self.choices = [Choice(index) for index in range(call.choices)]
        kind = 'chatcmpl' if call.is_chat else 'cmpl'
        self.head = dict(id=f'{kind}-{secrets.token_hex(12)}', created=int(time.time()))
        self.head['model'] = model.name
        if call.is_chat:
            self.head['dropped'] = call.dropped

    def add(self, index: int, event: Event) -> Iterator[dict]:
        """Add an event to the choice of this number. Yields the chunks of a stream for it."""
        # 1) What it adds. Without return_token_ids the answer is its text alone, as elsewhere
        choice = self.choices[index]
        is_first = not choice.ids and not choice.text
        shown = event.text if event.part == 'text' else ''
        listed = event.ids
        if not self.call.token_ids:
            listed = [i for i in event.ids if event.part == 'text' and i not in self.names]
        logprobs = [self.scored(i, event) for i in listed] if self.call.logprobs else []
        choice.ids += event.ids
        choice.part = event.part
        choice.logprobs += logprobs
        start = len(choice.text)
        choice.text += shown

        # 2) A chunk for it, then one for the end
        if is_first and self.call.is_chat:
            yield self.chunk(choice, {'role': 'assistant', 'content': ''})
        if shown or logprobs or self.call.token_ids and event.ids:
            delta = {'content': shown}
            if event.part != 'text':
                delta['tool_text'] = event.text
            yield self.chunk(choice, delta, self.listed(logprobs, start), event)
        if event.finish_reason:
            # a full context, a time limit and a shutdown all cut the answer
            choice.finish_reason = 'stop' if event.finish_reason == 'stop' else 'length'
            yield self.chunk(choice, {})

    def chunk(
        self, choice: Choice, delta: dict, logprobs: dict | None = None, event: Event | None = None
    ) -> dict:
        """A chunk of the stream, which begins, goes on or ends a choice."""
        found = dict(index=choice.index, logprobs=logprobs, finish_reason=choice.finish_reason)
        if self.call.is_chat:
            found['delta'] = delta
        else:
            found['text'] = delta.get('content', '')
        if self.call.token_ids:
            found |= dict(token_ids=event.ids if event else [], part=choice.part)
            if 'tool_text' in delta and not self.call.is_chat:
                found['tool_text'] = delta['tool_text']
        kind = 'chat.completion.chunk' if self.call.is_chat else 'text_completion'
        chunk = dict(self.head, object=kind, choices=[found])
        return dict(chunk, usage=None) if self.call.include_usage else chunk

    def last_chunk(self) -> dict:
        """The chunk with the use, for stream_options.include_usage."""
        kind = 'chat.completion.chunk' if self.call.is_chat else 'text_completion'
        return dict(self.head, object=kind, choices=[], usage=self.usage())

    def whole(self) -> dict:
        """The answer to a request without a stream."""
        kind = 'chat.completion' if self.call.is_chat else 'text_completion'
        choices = []
        for choice in self.choices:
            found = dict(index=choice.index, logprobs=None, finish_reason=choice.finish_reason)
            if self.call.logprobs:
                found['logprobs'] = self.listed(choice.logprobs, 0)
            if self.call.is_chat:
                found['message'] = dict(role='assistant', content=choice.text, refusal=None)
            else:
                found['text'] = choice.text
            if self.call.token_ids:
                found |= dict(token_ids=choice.ids, part=choice.part)
                if self.chat:
                    found['parts'] = self.chat.parts(choice.ids)
            choices.append(found)
        return dict(self.head, object=kind, choices=choices, usage=self.usage())

    def usage(self) -> dict:
        """Each prompt counts once, whatever n is."""
        read = sum(map(len, self.call.prompts))
        written = sum(len(choice.ids) for choice in self.choices)
        return dict(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    # ---- tokens

    def scored(self, i: int, event: Event) -> dict:
        """A token with its log-probability and its alternatives."""
        found = self.entry(i, event.logprob)
        found['top_logprobs'] = [self.entry(*other) for other in event.alternatives]
        return found

    def entry(self, i: int, logprob: float) -> dict:
        found = token(i, self.tokenizer, self.names)
        found['logprob'] = max(logprob, -9999.0)  # JSON has no infinity
        if self.call.token_ids:
            found['token_id'] = i
        return found

    def listed(self, logprobs: list[dict], start: int) -> dict | None:
        """Scored tokens in the form of the endpoint. start: characters of the text before them."""
        if not self.call.logprobs:
            return None
        if self.call.is_chat:
            return dict(content=logprobs, refusal=None)
        offsets = []
        for one in logprobs:
            offsets.append(start)
            start += len(one['token'])
        top = [{o['token']: o['logprob'] for o in one['top_logprobs']} for one in logprobs]
        return dict(
            tokens=[one['token'] for one in logprobs],
            token_logprobs=[one['logprob'] for one in logprobs],
            top_logprobs=top if self.call.sampling.top_logprobs else None,
            text_offset=offsets,
        )


def token(i: int, tokenizer, names: dict[int, str]) -> dict:
    """{'token', 'bytes'} of an id. A special token has its name and no bytes."""
    if i in names:
        return dict(token=names[i], bytes=None)
    found = tokenizer.decode_bytes([i])
    return dict(token=found.decode('utf-8', 'replace'), bytes=list(found))


# -----------------------------------------------------------------------------
# what the page asks for


def describe_prompt(body: dict, model: Served) -> dict:
    """/api/prompt: the ids that the model sees of these messages, one by one."""
    fields = Fields(body)
    check_can_chat(model)
    prompt, answer, dropped = read_prompt(fields, model)
    ids = prompt + answer
    chat = model.engine.chat
    names = {i: name for name, i in chat.tokenizer.special.items()}
    spoken = [False, *chat.is_spoken(ids).tolist()]
    tokens = []
    for i, said, role in zip(ids, spoken, roles(chat, ids)):
        found = token(i, chat.tokenizer, names)
        found = dict(id=i, text=found['token'], bytes=found['bytes'], special=i in names)
        tokens.append(dict(found, said=said, role=role))
    return dict(tokens=tokens, dropped=dropped, context=model.engine.context)


def roles(chat, ids: Sequence[int]) -> list[str]:
    """For each id, the role whose turn it belongs to: '' before the first turn. What a tool answers
    has the role tool."""
    found = []
    role = ''
    before, after = chat.parts_between.get('output', (None, None))
    is_output = False
    for place, i in enumerate(ids):
        for name, opening in chat.opening.items():
            if list(ids[place : place + len(opening)]) == opening:
                role = name
        is_output = is_output or i == before
        found.append('tool' if is_output else role)
        is_output = is_output and i != after
    return found
