"""dialogue.py: a model opened and asked in three lines, and a conversation that outgrows it."""

import pytest
from conftest import ROOT
from test_sample import BYTES, SIX, TALKS, write_checkpoint

import dialogue
from conversation import Chat
from dialogue import Dialogue, fit, open_engine
from engine import Engine
from sampling import Sampling

GREEDY = Sampling(temperature=0)


def test_three_lines_talk_to_the_model_in_the_box(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # nothing was trained here
    pip = Dialogue.open(device='cpu')
    assert 'Pip' in pip.ask('Who are you?')
    assert '19' in pip.ask('What is 12 + 7?') and pip.finish_reason == 'stop'
    assert 'the model in the box' in capsys.readouterr().err
    roles = [message['role'] for message in pip.messages]
    assert roles == ['user', 'assistant'] * 2
    call = [part['type'] for part in pip.messages[-1]['content']]
    assert call[:2] == ['python', 'output']
    named = Dialogue.open(str(ROOT / 'assets' / 'tinyworld.pt'), 'cpu', sampling=GREEDY)
    assert 'Pip' in named.ask('Who are you?')


def test_what_was_said_stays_if_the_reader_stops(tmp_path):
    """If the engine fails, or the message is too long, nothing stays."""
    write_checkpoint(tmp_path, BYTES, block_size=64, std=0, edit=SIX, **TALKS)
    opened = open_engine(str(tmp_path), 'cpu')
    talk = Dialogue(opened.engine, GREEDY, max_tokens=20, system='S')
    events = talk.stream('hi')
    said = [next(events) for _ in range(3)]
    assert [event.part for event in said] == ['text', 'text', 'python']
    assert len(talk.messages) == 1
    events.close()
    assert [message['role'] for message in talk.messages] == ['system', 'user', 'assistant']
    assert talk.messages[-1]['content'] == [
        {'type': 'text', 'text': 'I'}, {'type': 'python', 'text': '2'}
    ]  # fmt: skip
    assert talk.finish_reason is None

    with pytest.raises(ValueError, match='a prompt of 9[0-9] tokens.*context of 64'):
        talk.stream('long ' * 18)
    step, opened.engine.step = opened.engine.step, lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        talk.ask('hi')
    opened.engine.step = step
    assert len(talk.messages) == 3
    assert talk.ask('hi') == 'I!' and talk.dropped == 0
    for _ in range(3):
        assert talk.ask('hi') == 'I!'
    assert talk.dropped == 1 and len(talk.messages) == 11
    talk.reset()
    assert talk.messages == [{'role': 'system', 'content': 'S'}]
    with pytest.raises(SystemExit, match='system makes a prompt of .* shorten'):
        Dialogue(opened.engine, GREEDY, system='S' * 64)


def test_a_prompt_leaves_room_for_the_answer():
    """For max_tokens, or half the context where that is more."""
    chat = Chat(BYTES)
    messages = [{'role': 'user', 'content': 'abc'}, {'role': 'assistant', 'content': 'de'}] * 9
    session = dialogue.Session(chat, [*messages, {'role': 'user', 'content': 'f'}])
    for max_tokens, room in [(10, 90), (1000, 50)]:
        prompt, dropped = fit(session.copy(), max_tokens, 100)
        shorter, more = session.copy().prompt(len(prompt) - 1)
        assert len(prompt) <= room and more == dropped + 1
        assert len(session.copy().prompt(room)[0]) == len(prompt)


def test_a_model_that_cannot_chat_says_why(tmp_path):
    write_checkpoint(tmp_path / 'a', BYTES)
    write_checkpoint(tmp_path / 'b', stage='sft')
    for folder, words in [('a', 'is of stage pretrain'), ('b', 'cannot chat, this tokenizer')]:
        opened = open_engine(str(tmp_path / folder), 'cpu')
        assert opened.engine.chat is None and words in opened.why_no_chat
        with pytest.raises(SystemExit, match=words):
            Dialogue.open(str(tmp_path / folder), 'cpu')
    assert isinstance(opened.engine, Engine)
