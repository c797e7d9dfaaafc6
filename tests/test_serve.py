"""
serve.py over the model in the box: in this process without a network, and slow ones over loopback
with the official client of OpenAI.
"""

import asyncio
import importlib.util
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LINUX, PATIENCE, ROOT, environment_of
from test_sample import BYTES, write_checkpoint

import dialogue
import protocol
from engine import Engine
from sampling import Sampling

ASKED = [{'role': 'user', 'content': 'What is 12 + 7?'}]
STORY = [{'role': 'user', 'content': 'Tell me a story about Mia and a ball.'}]
GREEDY = Sampling(temperature=0)


def load_program(*args):
    """serve.py as a module, with these arguments, in a process whose streams stay as they are."""
    before = sys.argv, sys.stdin, sys.stdout, sys.stderr
    sys.argv = ['serve.py', *args]
    try:
        spec = importlib.util.spec_from_file_location('serve', ROOT / 'serve.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before
    return module


@contextmanager
def running(path, *args):
    """The program with a model, its service, and its app behind a client without a network."""
    from starlette.testclient import TestClient

    program = load_program(*args)
    opened = dialogue.open_engine(str(path), 'cpu', 'float32')
    usual = Sampling(program.temperature, program.top_k, program.top_p)
    model = protocol.Served('box', opened.engine, opened.why_no_chat, 1, usual, program.max_tokens)
    worker = program.Worker(opened.engine)
    service = program.Service(model, worker, program.describe(opened, model))
    app = program.Gate(program.make_app(service), service)
    worker.start()
    with TestClient(app, base_url='http://127.0.0.1:8000') as client:
        yield SimpleNamespace(
            program=program, engine=opened.engine, service=service, app=app, client=client
        )
    worker.order(None)
    service.reader.shutdown()
    worker.join(60)
    assert not worker.is_alive()


@pytest.fixture(autouse=True)
def same_seeds(monkeypatch):
    """A request without a seed draws the same one in every run of a test."""
    monkeypatch.setattr(protocol.secrets, 'randbits', random.Random(1).getrandbits)


@pytest.fixture(scope='module')
def box(oracle):
    oracle('fastapi')
    oracle('uvicorn')
    with running(ROOT / 'assets' / 'tinyworld.pt', '--max_body=20000') as found:
        yield found


@pytest.fixture
def ask(box):
    """ask(messages, field=value, …) -> the parsed answer of /v1/chat/completions."""

    def ask(messages=ASKED, path='/v1/chat/completions', status=200, **fields):
        body = {'messages': messages} if 'chat' in path or 'api' in path else {}
        response = box.client.post(path, json=body | fields)
        assert response.status_code == status, response.text
        return response.json()

    return ask


@pytest.fixture
def stream(box):
    """stream(field=value, …) -> the chunks of a stream, which ends with [DONE]."""

    def stream(messages=ASKED, path='/v1/chat/completions', **fields):
        body = {'messages': messages} if 'chat' in path else {}
        response = box.client.post(path, json=body | {'stream': True} | fields)
        assert response.headers['content-type'].startswith('text/event-stream'), response.text
        return chunks_of(response.text)

    return stream


def chunks_of(text):
    *blocks, done, rest = text.split('\n\n')
    assert (done, rest) == ('data: [DONE]', '')
    return [json.loads(block.removeprefix('data: ')) for block in blocks]


def content_of(chunks):
    return ''.join(c['delta'].get('content', '') for chunk in chunks for c in chunk['choices'])


# -----------------------------------------------------------------------------
# answers


def test_models_health_about_and_the_page(box, tmp_path, monkeypatch):
    get = box.client.get
    card = {'id': 'box', 'object': 'model', 'created': 1, 'owned_by': 'flatgpt'}
    assert get('/v1/models').json() == {'object': 'list', 'data': [card]}
    assert get('/v1/models/box').json() == card
    idle = dict(status='ok', requests=0, running=0, blocks=0, connections=0)
    wait_until(lambda: get('/health').json() == idle)
    about = get('/api/about').json()
    assert (about['stage'], about['step'], about['context']) == ('rl', 32, 256)
    assert about['can_chat'] and about['prompts'] and about['temperature'] == 0.3
    page = tmp_path / 'chat.html'
    page.write_text('<p>你好', encoding='utf-8')
    monkeypatch.setattr(box.program, 'PAGE', page)
    assert get('/').text == '<p>你好'


def test_a_chat_is_the_engines_answer(box, ask, stream):
    """Whole and as a stream. The call of the calculator is not part of the content."""
    (expected,) = box.engine.generate([box.engine.chat.prompt(ASKED)], 60, GREEDY)
    whole = ask(temperature=0, max_completion_tokens=60)
    (choice,) = whole['choices']
    assert choice['message']['content'] == expected.text and '19' in expected.text
    assert choice['finish_reason'] == 'stop' and whole['dropped'] == 0
    prompt = len(box.engine.chat.prompt(ASKED))
    used = dict(prompt_tokens=prompt, completion_tokens=len(expected.ids))
    assert whole['usage'] == used | {'total_tokens': prompt + len(expected.ids)}

    chunks = stream(temperature=0, stream_options={'include_usage': True})
    assert content_of(chunks) == expected.text and chunks[-1]['usage'] == whole['usage']
    assert chunks[0]['choices'][0]['delta'] == {'role': 'assistant', 'content': ''}
    assert chunks[-1]['choices'] == [] and all(chunk['usage'] is None for chunk in chunks[:-1])
    last = chunks[-2]['choices'][0]
    assert last['delta'] == {} and last['finish_reason'] == 'stop'
    assert len({chunk['id'] for chunk in chunks}) == 1
    assert 'usage' not in stream()[-1]


def test_tokens_are_shown_if_asked_for(box, ask, stream):
    (expected,) = box.engine.generate([box.engine.chat.prompt(ASKED)], 60, GREEDY)
    fields = dict(temperature=0, return_token_ids=True, logprobs=True, top_logprobs=3)
    whole = ask(**fields)['choices'][0]
    assert whole['token_ids'] == expected.ids
    assert whole['parts'] == box.engine.chat.parts(expected.ids)
    entries = whole['logprobs']['content']
    assert [entry['token_id'] for entry in entries] == expected.ids
    assert [entry['logprob'] for entry in entries] == pytest.approx(expected.logprobs, abs=1e-4)
    for entry in entries:
        top = entry['top_logprobs']
        assert len(top) == 3 and top[0]['logprob'] >= top[1]['logprob'] >= top[2]['logprob']
    names = {i: name for name, i in box.engine.tokenizer.special.items()}
    assert [e['token'] for e in entries if e['bytes'] is None] == [
        names[i] for i in expected.ids if i in names
    ]

    choices = [choice for chunk in stream(**fields) for choice in chunk['choices']]
    assert [i for choice in choices for i in choice['token_ids']] == expected.ids
    text = ''.join(c['delta'].get('content', '') for c in choices)
    assert text == expected.text == whole['message']['content']
    for part in ('python', 'output'):
        found = ''.join(c['delta'].get('tool_text', '') for c in choices if c['part'] == part)
        assert found == {'python': '12+7', 'output': '19'}[part]
    plain = ask(temperature=0, logprobs=True)['choices'][0]
    assert ''.join(e['token'] for e in plain['logprobs']['content']) == expected.text
    assert 'token_ids' not in plain and 'token_id' not in plain['logprobs']['content'][0]


def test_several_answers_of_one_seed(ask, stream):
    fields = dict(n=3, seed=-5, temperature=1.5, max_tokens=12)
    first = [choice['message']['content'] for choice in ask(STORY, **fields)['choices']]
    assert len(set(first)) == 3
    again = stream(STORY, **fields)
    streamed = [''] * 3
    for choice in (choice for chunk in again for choice in chunk['choices']):
        streamed[choice['index']] += choice['delta'].get('content', '')
    assert streamed == first
    other = [
        choice['message']['content'] for choice in ask(STORY, **fields | {'seed': 6})['choices']
    ]
    unseeded = [ask(STORY, temperature=1.5, max_tokens=12)['choices'][0] for _ in range(2)]
    assert other != first and unseeded[0] != unseeded[1]


def test_an_answer_ends_at_a_stop_text_or_is_cut(ask, stream):
    whole = ask(STORY, temperature=0)['choices'][0]['message']['content']
    at = whole.index('.', 5)
    cut = ask(STORY, temperature=0, stop=['never', whole[at - 3 : at + 1]])['choices'][0]
    assert cut['message']['content'] == whole[: at - 3] and cut['finish_reason'] == 'stop'
    assert content_of(stream(STORY, temperature=0, stop='. ')) == whole.partition('. ')[0]
    short = ask(STORY, temperature=0, max_tokens=4)
    assert short['choices'][0]['finish_reason'] == 'length'
    assert short['usage']['completion_tokens'] == 4


def test_completions(box, ask, stream):
    """Texts and ids, several at once, with the log-probabilities of their own form."""
    path = '/v1/completions'
    ids = [box.engine.tokenizer.bos, *box.engine.tokenizer.encode('Ben has')]
    (expected,) = box.engine.generate([ids], 12, GREEDY)
    fields = dict(path=path, temperature=0, max_tokens=12)
    for prompt in ('Ben has', ids, [ids]):
        whole = ask(prompt=prompt, **fields)
        assert whole['object'] == 'text_completion' and 'dropped' not in whole
        assert whole['choices'][0]['text'] == expected.text
    several = ask(prompt=['Ben has', 'Mia'], n=2, **fields)['choices']
    texts = [choice['text'] for choice in several]
    assert texts[0] == texts[1] == expected.text != texts[2] == texts[3]
    assert [choice['index'] for choice in several] == [0, 1, 2, 3]
    logprobs = ask(prompt='Ben has', logprobs=2, **fields)['choices'][0]['logprobs']
    assert ''.join(logprobs['tokens']) == expected.text
    assert logprobs['token_logprobs'] == pytest.approx(expected.logprobs, abs=1e-4)
    assert [len(top) for top in logprobs['top_logprobs']] == [2] * len(expected.ids)
    for start, token in zip(logprobs['text_offset'], logprobs['tokens']):
        assert expected.text[start:].startswith(token)
    chunks = stream(prompt='Ben has', **fields)
    assert ''.join(chunk['choices'][0]['text'] for chunk in chunks) == expected.text
    usual = ask(prompt='Ben has', path=path)
    assert usual['usage']['completion_tokens'] <= 16


def test_an_answer_goes_on_from_any_of_its_ids(box, ask):
    """But not from inside the calculator's answer."""
    whole = ask(temperature=0, return_token_ids=True)['choices'][0]
    ids, text = whole['token_ids'], whole['message']['content']
    output = [box.engine.tokenizer.special[f'<|output_{end}|>'] for end in ('start', 'end')]
    places = {i for i, token in enumerate(ids) if token in box.engine.special}
    for count in sorted({0, 2, len(ids), *places, *(place + 1 for place in places)}):
        inside = output[0] in ids[:count] and output[1] not in ids[:count]
        fields = dict(temperature=0, return_token_ids=True, answer_ids=ids[:count])
        rest = ask(status=400 if inside else 200, **fields)
        if inside:
            assert rest['error']['param'] == 'answer_ids'
            continue
        assert rest['choices'][0]['token_ids'] == ids[count:]
        assert rest['choices'][0]['finish_reason'] == 'stop'
        said = box.engine.chat.text(ids[:count])
        assert said + rest['choices'][0]['message']['content'] == text


def test_the_prompt_is_shown_as_the_model_sees_it(box, ask):
    """With roles, and with the mask of training."""
    messages = [{'role': 'developer', 'content': 'Be kind.'}, *ASKED]
    answer = ask(temperature=0, return_token_ids=True)['choices'][0]['token_ids']
    shown = ask(messages, path='/api/prompt', answer_ids=answer)
    chat = box.engine.chat
    ids = chat.prompt([{'role': 'system', 'content': 'Be kind.'}, *ASKED]) + answer
    assert [token['id'] for token in shown['tokens']] == ids
    assert [token['said'] for token in shown['tokens']] == [False, *chat.is_spoken(ids)]
    assert (shown['dropped'], shown['context']) == (0, 256)
    roles = ['', *['user'] * (ids.index(chat.opening['assistant'][0]) - 1)]
    for i in ids[len(roles) :]:
        before, after = chat.parts_between['output']
        is_output = i == before or roles[-1] == 'tool' and ids[len(roles) - 1] != after
        roles.append('tool' if is_output else 'assistant')
    assert [token['role'] for token in shown['tokens']] == roles
    text = b''.join(bytes(token['bytes'] or ()) for token in shown['tokens'])
    assert text == box.engine.tokenizer.decode_bytes(ids)
    assert [t['text'] for t in shown['tokens'] if t['special']][:2] == ['<|bos|>', '<|user_start|>']


def test_a_long_chat_loses_its_oldest_turns_or_is_refused(ask, stream):
    turns = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'Hello!'}] * 60
    messages = [{'role': 'system', 'content': 'Be kind.'}, *turns, *ASKED]
    whole = ask(messages, max_tokens=40, temperature=0)
    assert 20 < whole['dropped'] < 60 and whole['usage']['prompt_tokens'] <= 256 - 40
    assert stream(messages, max_tokens=40)[0]['dropped'] == whole['dropped']
    shown = ask(messages, path='/api/prompt', max_tokens=40)
    assert shown['dropped'] == whole['dropped']
    assert len(shown['tokens']) == whole['usage']['prompt_tokens']
    error = ask(messages, status=400, truncation='disabled', max_tokens=40)['error']
    assert error['code'] == 'context_length_exceeded' and error['param'] == 'messages'
    assert re.search(r'prompt of \d{3} tokens, expected at most 216', error['message'])
    assert ask(ASKED, truncation='disabled')['choices']
    long = [{'role': 'user', 'content': 'apples ' * 300}]
    error = ask(long, status=400)['error']
    assert error['code'] == 'context_length_exceeded' and '256' in error['message']


def test_requests_as_open_webui_sends_them(ask, stream):
    parts = [{'type': 'text', 'text': 'What is '}, {'type': 'text', 'text': '12 + 7?'}]
    more = dict(
        model='box', temperature=0, chat_id='1', session_id='2', features={}, metadata={'a': [1]},
        stop=None, tools=None, user='me', num_ctx=2048, background_tasks={'title_generation': True},
        messages=[{'role': 'user', 'content': parts, 'id': 'x', 'name': 'me', 'tool_calls': []}],
    )  # fmt: skip
    expected = ask(temperature=0)['choices'][0]['message']['content']
    assert ask(**more)['choices'][0]['message']['content'] == expected
    more |= dict(stream=True, stream_options={'include_usage': True})
    assert content_of(stream(**more)) == expected


def test_a_character_of_several_tokens_is_streamed_whole(tmp_path, oracle):
    """A model that says the bytes of an emoji in turn; also where an answer goes on inside it."""
    oracle('fastapi')
    bytes_of = [*'🌍'.encode()]
    chain = ['<|assistant_start|>', *bytes_of, '<|assistant_end|>']

    def teach(model):
        ids = [BYTES.special.get(item, item) for item in chain]
        for dimension, (i, following) in enumerate(zip(ids, ids[1:])):
            model.transformer.wte.weight[i, dimension] = 1.0
            model.lm_head.weight[following, dimension] = 1.0

    write_checkpoint(tmp_path / 'out', BYTES, std=0, edit=teach, stage='sft')
    with running(tmp_path / 'out') as tiny:
        for count in range(5):
            body = {'messages': ASKED, 'temperature': 0, 'answer_ids': bytes_of[:count]}
            response = tiny.client.post('/v1/chat/completions', json=body | {'stream': True})
            assert content_of(chunks_of(response.text)) == ('🌍' if count < 4 else '')


# -----------------------------------------------------------------------------
# what is refused

CHAT = '/v1/chat/completions'
TEXT = '/v1/completions'
WRONG = [
    (CHAT, 'model', 7, 400), (CHAT, 'model', 'gpt-4', 404), (TEXT, 'model', 'gpt-4', 404),
    (CHAT, 'messages', None, 400), (CHAT, 'messages', [], 400), (CHAT, 'messages', 'hi', 400),
    (CHAT, 'messages', [1], 400), (CHAT, 'messages', [{'role': 'user'}], 400),
    (CHAT, 'messages', [{'role': 'robot', 'content': 'a'}], 400),
    (CHAT, 'messages', [{'role': [], 'content': 'a'}], 400),
    (CHAT, 'messages', [{'role': 'user', 'content': None}], 400),
    (CHAT, 'messages', [{'role': 'user', 'content': [{'type': 'image_url'}]}], 400),
    (CHAT, 'messages', [{'role': 'user', 'content': [{'type': [], 'text': 'a'}]}], 400),
    (CHAT, 'messages', [{'role': 'user', 'content': 'a', 'tool_calls': [1]}], 400),
    (CHAT, 'messages', [*ASKED, {'role': 'assistant', 'content': 'a'}], 400),
    (CHAT, 'messages', [*ASKED, *ASKED], 400),
    (TEXT, 'prompt', None, 400), (TEXT, 'prompt', 7, 400), (TEXT, 'prompt', [], 400),
    (TEXT, 'prompt', [[]], 400), (TEXT, 'prompt', {}, 400), (TEXT, 'prompt', ['a'] * 17, 400),
    (TEXT, 'prompt', [1, 'a'], 400), (TEXT, 'prompt', [1536], 400), (TEXT, 'prompt', [-1], 400),
    (TEXT, 'prompt', [True], 400), (TEXT, 'prompt', [None], 400), (TEXT, 'prompt', [[1], 1], 400),
    (TEXT, 'prompt', 'apples ' * 400, 400), (TEXT, 'logprobs', True, 400),
    (TEXT, 'logprobs', 21, 400), (CHAT, 'logprobs', 2, 400), (CHAT, 'top_logprobs', 2, 400),
    (CHAT, 'top_logprobs', -1, 400), (CHAT, 'top_logprobs', 21, 400),
    (CHAT, 'answer_ids', 'a', 400), (CHAT, 'answer_ids', [1.0], 400),
    (CHAT, 'answer_ids', [1527], 400), (CHAT, 'answer_ids', [1531, 5], 400),
    (CHAT, 'answer_ids', [5] * 256, 400), (CHAT, 'truncation', 'maybe', 400),
    (CHAT, 'max_completion_tokens', 0, 400), (TEXT, 'suffix', 'a', 400), (TEXT, 'echo', True, 400),
    (TEXT, 'best_of', 2, 400), (CHAT, 'tools', [{}], 400), (CHAT, 'tool_choice', 'required', 400),
    (CHAT, 'functions', [{}], 400), (CHAT, 'parallel_tool_calls', False, 400),
    (CHAT, 'modalities', ['audio'], 400), (CHAT, 'audio', {'voice': 'a'}, 400),
]  # fmt: skip
WRONG += [
    (path, name, value, 400)
    for path in (CHAT, TEXT)
    for name, values in {
        'n': [0, 17, 1.0, '1', True, 10**400], 'stream': ['yes', 1], 'seed': ['a', 0.5, 2**64],
        'temperature': ['hot', -1, True, 10**400, [], {}], 'top_p': [0, 1.1, -1, 'a'],
        'top_k': [-2, 1.5], 'min_p': [-1, 2, 'a'], 'repetition_penalty': [0, -1, 'a'],
        'max_tokens': [0, -5, 1.5, 'a', True, []], 'stream_options': [[], 'a', 1],
        'stop': [1, [1], [''], ['a'] * 17, 'a' * 257, {}], 'return_token_ids': ['a', 1],
        'response_format': [{'type': 'json_object'}], 'logit_bias': [{'5': 100}],
        'frequency_penalty': [0.5], 'presence_penalty': [-1],
    }.items()
    for value in values
]  # fmt: skip


def test_every_wrong_field_is_named(box):
    for path, name, value, status in WRONG:
        body = {'messages': ASKED} if path == CHAT else {'prompt': 'a'}
        response = box.client.post(path, json=body | {name: value})
        case = (path, name, f'{value!r:.60}', response.text)
        assert response.status_code == status, case
        error = response.json()['error']
        assert set(error) == {'message', 'type', 'param', 'code'} and error['param'] == name, case
        assert name in error['message'] and len(error['message']) < 500, case
    assert box.service.open == 0


def test_fields_at_their_default_are_accepted(ask):
    ask(
        tools=[], tool_choice='auto', response_format={'type': 'text'}, logit_bias={}, functions=[],
        frequency_penalty=0, presence_penalty=0.0, parallel_tool_calls=True, max_tokens=2, top_k=-1,
        top_p=1, min_p=0, repetition_penalty=1, logprobs=False, n=1, modalities=['text'],
    )  # fmt: skip
    ask(path=TEXT, prompt='a', echo=False, suffix='', best_of=1, max_tokens=2, top_k=0)


@pytest.mark.parametrize(
    'body, words',
    [
        (b'', 'not JSON'), (b'{"a": ', 'not JSON'), (b'\xff\xfe', 'not JSON'), (b'[]', 'an object'),
        (b'"a"', 'an object'), (b'null', 'an object'), (b'{"temperature": NaN}', 'NaN'),
        (b'[' * 9999, 'not JSON'), (b'{"n": ' + b'9' * 5000 + b'}', 'not JSON'),
    ],
)  # fmt: skip
def test_garbage_is_named(box, body, words):
    for path in (CHAT, TEXT, '/api/prompt'):
        response = box.client.post(path, content=body)
        error = response.json()['error']
        assert response.status_code == 400 and (words in error['message'] or path != CHAT)


def test_half_an_emoji_is_text(box):
    body = b'{"prompt": "half \\ud83d", "max_tokens": 1}'
    assert box.client.post(TEXT, content=body).status_code == 200


def test_limits(box, monkeypatch):
    """Too large a body, too many requests, other paths and methods."""
    post = box.client.post
    large = post(CHAT, content=b'a' * 20001)
    assert large.status_code == 413 and '20000' in large.json()['error']['message']
    assert post(CHAT, content=(b'a' * 9000 for _ in range(9))).status_code == 413
    monkeypatch.setattr(box.service, 'open', 128)
    busy = post(CHAT, json={'messages': ASKED})
    assert busy.status_code == 429 and busy.headers['retry-after'] == '1'
    assert busy.json()['error']['type'] == 'rate_limit_error'
    monkeypatch.setattr(box.service, 'open', 0)
    for path, status in [('/nope', 404), ('/v1/models/a/b', 404), (CHAT, 405), ('/docs', 404)]:
        response = box.client.get(path)
        assert response.status_code == status and response.json()['error']['message']


def test_a_request_without_time_is_cut_or_refused(box, monkeypatch):
    """The engine's steps wait until the time is over."""
    worker, step = box.service.worker, Engine.step
    order = worker.order
    over = threading.Event()

    def note(method, *arguments):
        order(method, *arguments)
        if method == worker.cancel:
            over.set()

    def late(engine):
        assert over.wait(PATIENCE)
        return step(engine)

    monkeypatch.setattr(worker, 'order', note)
    monkeypatch.setattr(Engine, 'step', late)
    monkeypatch.setattr(box.program, 'time_limit', 0)
    response = box.client.post(CHAT, json={'messages': STORY, 'n': 2})
    found = response.json()
    if response.status_code == 429:
        assert response.headers['retry-after'] and found['error']['code'] == 'timeout'
    else:
        assert {choice['finish_reason'] for choice in found['choices']} == {'length'}


def test_pages_of_other_sites_are_refused(box):
    """By Origin, and by Host if their name points here."""

    def status(**headers):
        return box.client.get('/v1/models', headers=headers).status_code

    for host in ('localhost', 'localhost:1', '127.0.0.1:8000', '[::1]:8000', '127.0.0.2'):
        assert status(host=host) == 200
    for host in (
        'evil.example',
        'evil.example:8000',
        '',
        '127.0.0.1.evil.example',
        '[',
        '10.0.0.1',
    ):
        assert status(host=host) == 403
    assert status(origin='http://127.0.0.1:8000') == 200
    for origin in ('http://evil.example', 'null', 'http://localhost:8000', 'http://[', ''):
        assert status(origin=origin) == 403
    error = box.client.get('/', headers={'host': 'evil.example'}).json()['error']
    assert "Host is 'evil.example'" in error['message'] and error['type'] == 'permission_error'


def test_a_key_is_compared(box, monkeypatch):
    monkeypatch.setattr(box.program, 'api_key', 'schlüssel')
    for key in (None, '', 'Bearer', 'Bearer schlussel', 'Bearer schlüsse', 'Bearer schlüssel2'):
        headers = {} if key is None else {'authorization': key.encode()}
        response = box.client.post(CHAT, json={'messages': ASKED}, headers=headers)
        assert response.status_code == 401
        assert response.json()['error']['code'] == 'invalid_api_key'
    right = {'authorization': 'Bearer schlüssel'.encode(), 'host': 'my.server'}
    assert box.client.get('/v1/models', headers=right).status_code == 200
    assert box.client.get('/health').status_code == 200


def test_a_step_that_fails_is_an_error_and_the_server_goes_on(box, ask, monkeypatch, capfd):
    step = Engine.step
    steps = []

    def fail(engine):
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError('out of everything\nand more')
        return step(engine)

    monkeypatch.setattr(Engine, 'step', fail)
    response = box.client.post(CHAT, json={'messages': STORY, 'stream': True})
    first, *_, last = chunks_of(response.text)
    assert first['choices'] and last['error']['type'] == 'server_error'
    assert last['error']['code'] == 'engine_failed' and 'of everything' in last['error']['message']
    monkeypatch.setattr(Engine, 'step', lambda engine: 1 / 0)
    response = box.client.post(CHAT, json={'messages': ASKED})
    assert response.status_code == 500 and 'ZeroDivisionError' in response.text
    monkeypatch.setattr(Engine, 'step', step)
    assert ask()['choices'] and box.service.open == 0
    assert 'out of everything' in capfd.readouterr().err


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_the_server_is_told_if_its_thread_ends(box):
    ended = []
    worker = box.program.Worker(box.engine, at_end=lambda: ended.append(True))
    worker.order(lambda: 1 / 0)
    worker.start()
    worker.join(60)
    assert ended == [True] and worker.failed and not worker.is_alive()


def test_a_base_model_completes_and_says_why_it_does_not_chat(tmp_path, oracle):
    oracle('fastapi')
    write_checkpoint(tmp_path / 'out', BYTES, block_size=32)
    with running(tmp_path / 'out') as base:
        done = base.client.post(TEXT, json={'prompt': 'ab', 'max_tokens': 100, 'temperature': 0})
        assert done.json()['choices'][0]['finish_reason'] == 'length'
        for path in (CHAT, '/api/prompt'):
            response = base.client.post(path, json={'messages': ASKED})
            error = response.json()['error']
            assert response.status_code == 400 and error['code'] == 'model_cannot_chat'
            assert 'stage pretrain' in error['message'] and TEXT in error['message']
        assert not base.client.get('/api/about').json()['can_chat']


@pytest.mark.parametrize(
    'args, words',
    [
        (['--host=0.0.0.0'], ['host', '--api_key']), (['--port=65536'], ['port is 65536']),
        (['--temperature=-1'], ['temperature is -1']), (['--max_rows=0'], ['max_rows is 0']),
        (['--host=nowhere.invalid', '--api_key=a'], ['nowhere.invalid', '--port']),
        (['--out_dir=nowhere', '--port=0'], ['nowhere']),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(args, words, oracle, monkeypatch):
    oracle('fastapi')
    oracle('uvicorn')
    with pytest.raises(SystemExit) as stop:
        load_program(*args).main()
    message = str(stop.value.code)
    assert '\n' not in message and all(word in message for word in words), message


@pytest.mark.parametrize('place, name', [
    ('small.pt', 'small'),
    ('out/ckpt.pt', 'flatgpt'),
    ('out/mine/best.pt', 'mine'),
    ('out/tinyworld/rl/ckpt.pt', 'tinyworld-rl'),
    ('out/speedrun/d20/rl/ckpt.pt', 'd20-rl'),
    ('elsewhere/mine/ckpt.pt', 'mine'),
    ('elsewhere/mine/rl/ckpt.pt', 'mine-rl'),
    ('elsewhere/x/config.json', 'x'),
    ('hub/owner/x/config.json', 'owner-x'),
])  # fmt: skip
def test_a_model_is_named_after_its_folder(tmp_path, monkeypatch, place, name):
    program = load_program()
    monkeypatch.setattr(program, 'HUB_FOLDER', tmp_path / 'hub')
    assert program.name_of(tmp_path / place, 'rl') == name


def test_a_missing_package_and_a_busy_port_are_one_line(monkeypatch, oracle):
    oracle('uvicorn')
    with socket.create_server(('127.0.0.1', 0)) as other:
        with pytest.raises(SystemExit, match='cannot listen on host 127.0.0.1.*--port'):
            load_program(f'--port={other.getsockname()[1]}').main()
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(SystemExit, match=r'uvicorn is missing.*pip install ".\[web\]"'):
        load_program('--port=0').main()


# -----------------------------------------------------------------------------
# over loopback


@contextmanager
def on_loopback(box):
    """The address of a server in a thread of this process."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        server = box.program.make_server(box.app, box.service)
        server.config.load()
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
        thread.start()
        yield server, f'http://127.0.0.1:{listener.getsockname()[1]}'
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_official_client(oracle):
    """openai lists, chats, streams, stops, asks for usage, n=4 and top_logprobs, and sees errors. A
    stream that it closes is cancelled."""
    openai = oracle('openai')
    oracle('uvicorn')
    path = ROOT / 'assets' / 'tinyworld.pt'
    with running(path, '--api_key=secret') as box, on_loopback(box) as (_, address):
        options = dict(base_url=f'{address}/v1', max_retries=0)
        client = openai.OpenAI(api_key='secret', **options)
        chat = client.chat.completions

        # 1) Models
        assert [model.id for model in client.models.list()] == ['box']
        assert client.models.retrieve('box').owned_by == 'flatgpt'

        # 2) Whole answers
        asked = dict(model='box', messages=ASKED, temperature=0)
        whole = chat.create(**asked, logprobs=True, top_logprobs=3)
        text = whole.choices[0].message.content
        assert '19' in text and whole.usage.total_tokens == whole.usage.prompt_tokens + 21
        listed = whole.choices[0].logprobs.content
        assert ''.join(entry.token for entry in listed) == text
        assert {len(entry.top_logprobs) for entry in listed} == {3}
        several = chat.create(model='box', messages=STORY, n=4, temperature=1.5, seed=1)
        assert len({choice.message.content for choice in several.choices}) == 4
        stopped = chat.create(**asked, stop='19')
        assert stopped.choices[0].message.content == text.partition('19')[0]
        done = client.completions.create(model='box', prompt='Ben has', max_tokens=5, logprobs=1)
        assert ''.join(done.choices[0].logprobs.tokens) == done.choices[0].text

        # 3) Streams
        with chat.create(**asked, stream=True, stream_options={'include_usage': True}) as stream:
            *chunks, last = stream
        pieces = [choice.delta.content or '' for chunk in chunks for choice in chunk.choices]
        assert ''.join(pieces) == text and last.usage == whole.usage
        assert chunks[-1].choices[0].finish_reason == 'stop'
        with chat.create(model='box', messages=STORY, n=16, stream=True) as stream:
            next(iter(stream))
        wait_until(lambda: not box.service.open and not box.service.worker.running)

        # 4) Errors
        with pytest.raises(openai.BadRequestError) as caught:
            chat.create(**asked, tools=[{'type': 'function', 'function': {'name': 'a'}}])
        assert caught.value.param == 'tools' and 'tools' in caught.value.message
        with pytest.raises(openai.NotFoundError, match='no model'):
            chat.create(model='gpt-4', messages=ASKED)
        with pytest.raises(openai.AuthenticationError, match='API key'):
            openai.OpenAI(api_key='wrong', **options).models.list()
        box.service.open = 128
        with pytest.raises(openai.RateLimitError):
            chat.create(**asked)
        box.service.open = 0


class Program:
    """serve.py as a process of its own, with the model in the box."""

    def __init__(self, *args):
        command = [sys.executable, str(ROOT / 'serve.py'), '--port=0', *args]
        command.append(f'--out_dir={ROOT}/assets/tinyworld.pt')
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment_of({}),
        )  # fmt: skip
        self.port = int(re.search(r':(\d+)$', self.process.stdout.readline()).group(1))

    async def ask(self, body, path=CHAT, read=None):
        """(status, body) of a request on a connection of its own. body: an object, or bytes. read:
        a coroutine that reads what it likes of the response; then the client leaves."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        head = f'POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
        head += f'Content-Length: {len(body)}\r\n\r\n'
        return await self.send(head.encode() + body, read)

    async def send(self, data, read=None):
        reader, writer = await asyncio.open_connection('127.0.0.1', self.port)
        try:
            writer.write(data)
            await writer.drain()
            if read:
                return await read(reader)
            head, _, body = (await reader.read()).partition(b'\r\n\r\n')
        except ConnectionError:  # refused while it still wrote
            return 0, ''
        finally:
            writer.close()
        if b'chunked' in head:  # {size in hex}, data, … 0
            pieces = []
            while body and not body.startswith(b'0\r\n'):
                size, _, body = body.partition(b'\r\n')
                pieces.append(body[: int(size, 16)])
                body = body[int(size, 16) + 2 :]
            body = b''.join(pieces)
        return int(head.split()[1]) if head else 0, body.decode('utf-8', 'replace')

    def use(self):
        """(threads, open files, resident KiB) of the process."""
        folder = Path('/proc', str(self.process.pid))
        status = (folder / 'status').read_text(encoding='utf-8')
        threads, memory = (
            int(re.search(rf'^{name}:\s+(\d+)', status, re.M).group(1))
            for name in ('Threads', 'VmRSS')
        )
        return threads, len(list((folder / 'fd').iterdir())), memory

    async def health(self):
        head = b'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
        return json.loads((await self.send(head))[1])

    def idle(self):
        """Whether nothing runs and no connection is open but the one that asks."""
        health = asyncio.run(self.health())
        return health == dict(status='ok', requests=0, running=0, blocks=0, connections=1)

    def end(self, number=signal.SIGTERM):
        """(exit status, the rest of stdout, stderr)."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture
def start(oracle):
    oracle('fastapi')
    oracle('uvicorn')
    programs = []

    def start(*args):
        programs.append(Program(*args))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()
        program.process.communicate()


@pytest.mark.slow
def test_a_signal_ends_streams_properly(start):
    """Eight of them at once, and one that waits."""
    program = start('--max_rows=8')
    body = {'prompt': 'Ben', 'max_tokens': 250, 'temperature': 3, 'stream': True}
    begun = []

    async def read(reader):
        found = await reader.readuntil(b'data: ')
        begun.append(found)
        return found + await reader.read()

    async def ask():
        """The signal is sent when eight have begun and the ninth has been let in."""
        # seeds whose texts do not end by themselves
        asked = [program.ask(body | {'seed': seed}, TEXT, read) for seed in range(8)]
        asked = [asyncio.ensure_future(each) for each in asked]
        while len(begun) < 8:
            await asyncio.sleep(0.01)
        waits = program.ask(body, TEXT, lambda reader: reader.read())
        asked.append(asyncio.ensure_future(waits))
        while (await program.health())['requests'] < 9 and not asked[0].done():
            await asyncio.sleep(0.01)
        ended = asyncio.get_running_loop().run_in_executor(None, program.end)
        return await asyncio.gather(*asked), await ended

    streams, (status, out, err) = asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert (status, out) == (0, 'stopped\n') and 'Traceback' not in err
    assert all(stream.endswith(b'data: [DONE]\n\n\r\n0\r\n\r\n') for stream in streams[:8])
    assert all(b'"finish_reason":"length"' in stream for stream in streams[:8])
    assert b'[DONE]' in streams[8] or b' 429 ' in streams[8] or b' 503 ' in streams[8]


# -----------------------------------------------------------------------------
# load

QUESTIONS = [
    'Who are you?', 'What is 12 + 7?', "What is Anna's job?", 'How do you spell river?',
    'Tell me a story about Mia and a ball.', 'What do cows say?', 'Count from 3 to 9.',
]  # fmt: skip


class Load:
    """Clients that behave as clients do: a third leaves at random, some read a byte a second, some
    send garbage, huge bodies or half of one. Counts what comes back by (behaviour, status)."""

    def __init__(self, program, seed):
        self.program = program
        self.random = random.Random(seed)
        self.counts = {}
        self.expected = {}

    async def run(self, seconds, clients=64):
        for question in QUESTIONS:  # alone
            self.expected[question] = await self.chat(question)
        self.end = time.monotonic() + seconds
        await asyncio.gather(*[self.client() for _ in range(clients)])

    async def client(self):
        behaviours = [self.whole] * 8 + [self.leave] * 6 + [self.crawl, self.garbage, self.huge]
        while time.monotonic() < self.end:
            behaviour = self.random.choice([*behaviours, self.half])
            status = await behaviour()
            key = behaviour.__name__, status
            self.counts[key] = self.counts.get(key, 0) + 1

    def body(self, question):
        message = {'role': 'user', 'content': question}
        return {'messages': [message], 'temperature': 0, 'stream': True, 'max_tokens': 100}

    async def chat(self, question):
        status, text = await self.program.ask(self.body(question))
        return content_of(chunks_of(text)) if status == 200 else status

    async def whole(self):
        question = self.random.choice(QUESTIONS)
        said = await self.chat(question)
        return 'right' if said == self.expected[question] else said

    async def leave(self):
        size = self.random.randrange(3000)

        async def read(reader):
            return (await reader.read(size) or b'x empty')[9:12].decode('latin-1')

        return await self.program.ask(self.body(self.random.choice(QUESTIONS)), read=read)

    async def crawl(self):
        async def read(reader):
            head = b''
            while time.monotonic() < self.end and len(head) < 20:
                head += await reader.read(1)
                await asyncio.sleep(1)
            return head[9:12].decode()

        return await self.program.ask(self.body(QUESTIONS[4]), read=read)

    async def garbage(self):
        noise = self.random.randbytes(self.random.randrange(1, 5000))
        if self.random.random() < 0.5:
            return (await self.program.send(noise + b'\r\n\r\n'))[0]
        wrong = [noise, {'messages': 7}, {'messages': [{'role': 'user'}]}, {'n': 'a'}, []]
        return (await self.program.ask(self.random.choice(wrong)))[0]

    async def huge(self):
        return (await self.program.ask(b' ' * self.random.randrange(2**20 + 1, 2**22)))[0]

    async def half(self):
        """Headers, half a body, and then the client leaves, or waits to be told."""
        head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"'
        patient = self.random.random() < 0.5

        async def read(reader):
            if patient:
                return (await reader.read(12))[9:].decode()
            return 'left'

        return await self.program.send(head[: self.random.randrange(1, 200)], read)


def under_load(program, seconds, rounds=2):
    """Two rounds of load. Returns the use of the process before them and after each, when all that
    was open is closed, and what came back."""
    loads = [Load(program, seed) for seed in range(rounds)]
    used = []
    asyncio.run(Load(program, 9).run(0))  # its threads and caches exist from here on
    for load in [None, *loads]:
        if load:
            asyncio.run(load.run(seconds))
        body = {'prompt': 'a', 'max_tokens': 1}
        assert asyncio.run(program.ask(body, TEXT))[0] == 200
        wait_until(program.idle)
        used.append(program.use())
    return used, [load.counts for load in loads]


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason='reads /proc')
def test_load(start):
    """docs/serving.md has the result of two rounds of two minutes; these have 8 seconds each."""
    program = start('--stall_limit=15')
    used, counts = under_load(program, seconds=8)
    for found in counts:
        assert not [key for key in found if re.fullmatch('5..', str(key[1]))], found
        assert found['whole', 'right'] > 0 and set(found) >= {('huge', 413), ('garbage', 400)}
        assert {status for kind, status in found if kind == 'whole'} <= {'right', 429}, found
    before, first, second = used
    assert before[:2] == first[:2] == second[:2]
    assert second[2] <= 1.15 * first[2]
    status, out, err = program.end()
    assert (status, out) == (0, 'stopped\n') and 'Traceback' not in err
