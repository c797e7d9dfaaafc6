"""sample.py as a user runs it, over checkpoints of tiny models with random weights."""

import io
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE

import checkpoint
import console
import dialogue
from conversation import SPECIAL, Chat, read_messages, read_rows
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig
from tokenizer import CharTokenizer, train_bpe
from tools import calculate

CHARACTERS = '\n abcdefghijklmnopqrstuvwxyzé'
ROOT = Path(__file__).resolve().parent.parent
GREEDY = Sampling(temperature=0)


@pytest.fixture
def sample(tmp_path, monkeypatch, capsys):
    """sample('--a=b', stdin='') runs the program in this process, in tmp_path: a
    start of Python takes seconds."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def run(*args, stdin=''):
        monkeypatch.setattr('sys.argv', ['sample.py', *map(str, args)])
        typed = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding='utf-8')
        monkeypatch.setattr('sys.stdin', typed)
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        status = 0
        final_message = ''
        try:
            runpy.run_path(str(ROOT / 'sample.py'), run_name='__main__')
        except SystemExit as stop:
            status = 1
            final_message = f'{stop.code}\n'
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=out, stderr=err + final_message)

    yield run
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.use_deterministic_algorithms(False)


def write_checkpoint(
    folder, tokenizer=None, seed=0, block_size=64, preset='nano', std=0.2, edit=None, **more
):
    """A checkpoint in the layout of train.py; returns (engine, tokenizer)."""
    tokenizer = tokenizer or CharTokenizer(CHARACTERS)
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=block_size)
    shape = {**PRESETS[preset], **shape, 'vocab_size': tokenizer.vocab_size}
    model = GPT(GPTConfig(**shape))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
        if edit:
            edit(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model=model.state_dict(), model_config=vars(model.config))
    state |= dict(tokenizer=tokenizer.to_dict(), stage='pretrain', step=7, config={})
    checkpoint.save(folder / 'ckpt.pt', {**state, **more})
    return Engine(model, tokenizer), tokenizer


def texts(done):
    """What was printed, sample by sample."""
    assert done.returncode == 0, done.stderr
    *samples, rest = done.stdout.split('\n---------------\n')
    assert rest == ''
    return samples


def assert_one_line(done, *words):
    """The error is one line, after the line that names the checkpoint if it came that far."""
    lines = [line for line in done.stderr.splitlines() if 'stage pretrain' not in line]
    assert done.returncode == 1 and len(lines) == 1
    for word in words:
        assert word in lines[0]


# -----------------------------------------------------------------------------
# which model


def test_the_newest_checkpoint_is_taken_and_named(tmp_path, run_program):
    """A space and a letter beyond ASCII in its path."""
    for age, folder in ((10, 'out/a'), (0, 'out/my run ñ'), (20, 'out-b')):
        engine, tokenizer = write_checkpoint(tmp_path / folder, seed=age)
        written = (tmp_path / folder / 'ckpt.pt').stat().st_mtime - age
        os.utime(tmp_path / folder / 'ckpt.pt', (written, written))
        if age == 0:
            newest = engine
    done = run_program(
        'sample.py', '--start=to be', '--temperature=0', '--max_new_tokens=20', cwd=tmp_path
    )
    assert 'my run ñ' in done.stderr and 'step 7' in done.stderr
    (expected,) = newest.generate([tokenizer.encode('to be')], 20, GREEDY)
    assert texts(done) == ['to be' + expected.text] * 3


def test_out_dir_is_taken_if_asked_for(tmp_path, sample):
    """The same seed gives the same samples again, another seed does not."""
    folder = tmp_path / 'ein Ordner ö'
    write_checkpoint(folder)
    write_checkpoint(tmp_path / 'out', seed=1)
    args = (f'--out_dir={folder}', '--num_samples=2', '--max_new_tokens=30')
    first = sample(*args)
    assert str(folder) in first.stderr
    assert [len(text) for text in texts(first)] == [31, 31] and len(set(texts(first))) == 2
    assert texts(sample(*args)) == texts(first) != texts(sample(*args, '--seed=1'))
    assert texts(sample(*args[1:])) != texts(first)


def test_without_a_checkpoint_it_says_what_makes_one(tmp_path, sample, monkeypatch):
    """Where the repository ships a model, that one is taken."""
    box = tmp_path / 'assets' / 'tinyworld.pt'
    monkeypatch.setattr(dialogue, 'IN_THE_BOX', box)
    done = sample()
    assert_one_line(done, 'python train.py')
    assert done.stdout == ''
    engine, tokenizer = write_checkpoint(tmp_path / 'elsewhere')
    box.parent.mkdir()
    shutil.copyfile(tmp_path / 'elsewhere' / 'ckpt.pt', box)
    args = ('--start=to be', '--temperature=0', '--max_new_tokens=9', '--num_samples=1')
    done = sample(*args)
    (expected,) = engine.generate([tokenizer.encode('to be')], 9, GREEDY)
    assert texts(done) == ['to be' + expected.text]
    assert 'the model in the box' in done.stderr and str(box) in done.stderr
    named = sample(*args, f'--out_dir={box}')
    assert texts(named) == texts(done) and 'in the box' not in named.stderr
    write_checkpoint(tmp_path / 'out' / 'mine' / 'sft', seed=5)
    assert 'in the box' not in sample('--max_new_tokens=1').stderr


def test_the_model_in_the_box_chats():
    """assets/tinyworld.pt ships with the repository: small, no optimizer, and it knows its name."""
    box = ROOT / 'assets' / 'tinyworld.pt'
    assert box.stat().st_size <= 4 * 2**20
    model, tokenizer, state = checkpoint.open_model(box, 'cpu')
    assert 'optimizer' not in state and state['about']['prompts']
    chat = Chat(tokenizer)
    asked = [[{'role': 'user', 'content': text}] for text in ('Who are you?', 'What is 12 + 7?')]
    engine = Engine(model, tokenizer, chat, calculate)
    who, total = engine.generate([chat.prompt(messages) for messages in asked], 60, GREEDY)
    assert 'Pip' in who.text and '19' in total.text
    assert who.finish_reason == total.finish_reason == 'stop'


def test_a_truncated_checkpoint_is_named(tmp_path, sample):
    write_checkpoint(tmp_path / 'out')
    path = tmp_path / 'out' / 'ckpt.pt'
    path.write_bytes(path.read_bytes()[:-500])
    assert_one_line(sample(), 'ckpt.pt')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_other_number_types_say_the_same_at_first(tmp_path, sample, dtype):
    write_checkpoint(tmp_path / 'out', std=0.5)
    args = ('--max_new_tokens=2', '--temperature=0', '--num_samples=1', '--start=hello')
    done = sample(*args, f'--dtype={dtype}')
    assert texts(done) == texts(sample(*args)) and dtype in done.stderr


# -----------------------------------------------------------------------------
# longer than the context


def test_a_text_goes_on_when_the_context_is_full(tmp_path, sample):
    """500 tokens from a context of 64, as nanoGPT's command asks; the likeliest text is what
    continuing by hand gives."""
    engine, tokenizer = write_checkpoint(tmp_path / 'out')
    done = sample('--max_new_tokens=500')
    assert [len(text) for text in texts(done)] == [501] * 3 and len(set(texts(done))) == 3
    assert done.stderr.count('context of 64') == 1
    ids = tokenizer.encode('\n')
    while len(ids) < 151:
        (part,) = engine.generate([ids[-32:]], 151 - len(ids), GREEDY)
        ids += part.ids
    done = sample('--max_new_tokens=150', '--temperature=0', '--num_samples=1')
    assert texts(done) == [tokenizer.decode(ids)]


def test_each_context_draws_from_a_stream_of_its_own(tmp_path, sample):
    """A context of one token, all logits equal: one stream for all would give one letter only."""
    write_checkpoint(tmp_path / 'out', block_size=1, std=0.0)
    done = sample('--max_new_tokens=100', '--num_samples=2')
    assert all(len(text) == 101 and len(set(text)) > 15 for text in texts(done))


def test_a_character_may_span_two_contexts(tmp_path, sample):
    """A model that says the bytes of an emoji in turn, with contexts that end anywhere in it."""
    emoji = '🌍'
    tokenizer = train_bpe([''], vocab_size=257, special=['<|bos|>'])

    def teach(model):
        around = emoji.encode()
        for dimension, (byte, following) in enumerate(zip(around, around[1:] + around[:1])):
            model.transformer.wte.weight[byte, dimension] = 1.0
            model.lm_head.weight[following, dimension] = 1.0

    write_checkpoint(tmp_path / 'out', tokenizer, block_size=16, std=0.0, edit=teach)
    done = sample(f'--start={emoji}', '--max_new_tokens=40', '--temperature=0', '--num_samples=2')
    assert texts(done) == [emoji * 11] * 2


# -----------------------------------------------------------------------------
# prompts


def test_the_prompt_may_come_from_a_file(tmp_path, sample):
    write_checkpoint(tmp_path / 'out')
    (tmp_path / 'ein prompt é.txt').write_text('café\nau lait', encoding='utf-8')
    done = sample('--start=FILE:ein prompt é.txt', '--max_new_tokens=5')
    assert all(text.startswith('café\nau lait') and len(text) == 17 for text in texts(done))
    assert_one_line(sample('--start=FILE:none.txt'), 'FILE:none.txt')
    (tmp_path / 'latin.txt').write_bytes('café'.encode('latin-1'))
    assert_one_line(sample('--start=FILE:latin.txt'), 'FILE:latin.txt', 'utf-8')


def test_a_prompt_longer_than_the_context_is_cut_and_said(tmp_path, sample):
    engine, tokenizer = write_checkpoint(tmp_path / 'out')
    text = 'the quick brown fox jumps over the lazy dog ' * 3
    done = sample(f'--start={text}', '--max_new_tokens=9', '--temperature=0', '--num_samples=1')
    (expected,) = engine.generate([tokenizer.encode(text)[-32:]], 9, GREEDY)
    assert texts(done) == [text + expected.text]
    assert 'the prompt has 132 tokens' in done.stderr


@pytest.mark.parametrize('start', ['naïve', '', '<|user_start|>'])
def test_a_prompt_begins_with_bos_and_is_plain_text(tmp_path, sample, start):
    special = ['<|bos|>', '<|user_start|>']
    tokenizer = train_bpe(['naïve 你好🌍 ' * 4], vocab_size=262, special=special)
    engine, _ = write_checkpoint(tmp_path / 'out', tokenizer, preset='gpt2')
    inner = start.encode() if start.startswith('<') else tokenizer.encode(start)
    (expected,) = engine.generate([[tokenizer.bos, *inner]], 20, GREEDY)
    done = sample(f'--start={start}', '--max_new_tokens=20', '--temperature=0', '--num_samples=1')
    assert texts(done) == [start + console.printable(expected.text)]


def test_a_prompt_of_a_file(tmp_path, sample, monkeypatch):
    """With the byte order mark of a Windows editor, and a path that no shell has expanded."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    write_checkpoint(tmp_path / 'out')
    (tmp_path / 'prompt.txt').write_bytes(b'\xef\xbb\xbfto be\r\nor not')
    args = ('--max_new_tokens=9', '--temperature=0')
    expected = texts(sample('--start=to be\nor not', *args))
    assert texts(sample('--start=FILE:~/prompt.txt', '--out_dir=~/out', *args)) == expected


def test_what_a_model_makes_moves_no_cursor(tmp_path, sample):
    """ESC and BEL stay out of completions and of what a checkpoint says of itself."""
    following = teach('a', '\x1b', '[', '2', 'J', '\x07', '\n', 'b', 'a')
    write_checkpoint(tmp_path / 'out', BYTES, std=0, edit=following, stage='pre\x1btrain')
    done = sample('--start=\x1ba', '--max_new_tokens=12', '--temperature=0', '--num_samples=2')
    assert texts(done) == ['a[2J\nba[2J'] * 2
    assert 'stage pretrain' in done.stderr and '\x1b' not in done.stderr


@pytest.mark.parametrize(
    'args, words',
    [
        (['--start=Zebra'], ['unknown character', 'Z']),
        (['--start='], ['start is empty']),
        (['--temperature=-1'], ['temperature is -1']),
        (['--top_k=-5'], ['top_k is -5']),
        (['--top_p=0'], ['top_p is 0']),
        (['--seed=-1'], ['seed is -1']),
        (['--num_samples=0'], ['num_samples is 0']),
        (['--max_new_tokens=0'], ['max_new_tokens is 0']),
        (['--init_from=gpt2-xl', '--out_dir=out'], ['gpt2-xl', "out_dir is 'out'"]),
        (['--init_from=hf:nowhere'], ['nowhere', 'owner/name']),
        (['--device=tpu'], ['tpu']),
        (['--dtype=int8'], ['int8']),
        (['--out_dir=nowhere'], ['nowhere', 'python train.py']),
        (['--tempreature=1'], ['temperature']),
    ],
)
def test_bad_settings_are_one_line(tmp_path, sample, args, words):
    write_checkpoint(tmp_path / 'out')
    assert_one_line(sample(*args), *words)


# -----------------------------------------------------------------------------
# a chat

BYTES = train_bpe([''], vocab_size=256 + len(SPECIAL), special=SPECIAL)  # every byte is a token
TALKS = dict(stage='sft', about={'about': 'I know six.', 'prompts': ['hi', 'what is 2*3?']})


def teach(*chain):
    """An edit for write_checkpoint with std=0: after each token of the chain the next one is the
    likeliest."""

    def edit(model):
        for dimension, (token, following) in enumerate(zip(chain, chain[1:])):
            ids = [BYTES.special[x] if x in BYTES.special else ord(x) for x in (token, following)]
            model.transformer.wte.weight[ids[0], dimension] = 1.0
            model.lm_head.weight[ids[1], dimension] = 1.0

    return edit


CALLS = [*'<|assistant_start|> I <|python_start|> 2 * 3 <|python_end|>'.split()]
SIX = teach(*CALLS, *'<|output_end|> ! <|assistant_end|>'.split())  # the output is forced


def chatter(tmp_path, block_size=64):
    """An engine that says what the program should: random weights, which can chat and never call
    a tool. The checkpoint lies in out/."""

    def edit(model):
        model.lm_head.weight[BYTES.special['<|python_start|>']] = 0.0  # never the likeliest

    shape = dict(block_size=block_size, std=0.1, edit=edit)
    engine, tokenizer = write_checkpoint(tmp_path / 'out', BYTES, **shape, **TALKS)
    return Engine(engine.model, tokenizer, Chat(tokenizer))


def shown(engine, prompt, max_tokens):
    """What is printed of a greedy answer, without control characters; and the answer's ids."""
    (answer,) = engine.generate([prompt], max_tokens, GREEDY)
    assert all(part['type'] == 'text' for part in engine.chat.parts(answer.ids))
    text = ''.join(c for c in answer.text if c in '\t\n' or c >= ' ' and not '\x7f' <= c <= '\x9f')
    return text, answer.ids


def naive_prompt(turns, system=''):
    """turns: [(question, ids of the answer)], the last answer []. Every byte of text is an id."""
    one = BYTES.special
    ids = [one['<|bos|>']]
    for number, (question, answer) in enumerate(turns):
        text = f'{system}\n\n{question}' if system and number == 0 else question
        ids += [one['<|user_start|>'], *text.encode(), one['<|user_end|>']]
        ids += [one['<|assistant_start|>'], *answer]
        if number < len(turns) - 1 and answer[-1:] != [one['<|assistant_end|>']]:
            ids.append(one['<|assistant_end|>'])  # an answer that was cut
    return ids


def test_a_chat_is_piped_through_the_program(tmp_path, run_program):
    """As the shell would: messages in, answers out, all else on stderr."""
    write_checkpoint(tmp_path / 'out/x/sft', BYTES, block_size=256, std=0, edit=SIX, **TALKS)
    messages = tmp_path / 'messages'
    messages.write_text('hi\n\nwho are you? 你好', encoding='utf-8')
    done = run_program('sample.py', '--chat', '--temperature=0', stdin=messages, cwd=tmp_path)
    assert done.stdout == 'I[2*3=6]!\n' * 2
    notes = done.stderr.splitlines()
    assert notes[1:4] == ['I know six.', '  hi', '  what is 2*3?'] and len(notes) == 5


def test_a_chat_in_a_terminal(tmp_path, in_terminal):
    """A pasted text of several lines is one message, even if it looks like a command. NO_COLOR
    turns colours off. ~ is the home folder, though no shell expands it."""
    write_checkpoint(tmp_path / 'out', BYTES, block_size=256, std=0, edit=SIX, **TALKS)
    home = {'HOME': str(tmp_path / 'home'), 'NO_COLOR': '1'}
    (tmp_path / 'home').mkdir()
    command = [sys.executable, str(ROOT / 'sample.py'), '--chat', '--temperature=0']
    terminal = in_terminal(command, cwd=tmp_path, env=home)
    prompt, off = f'{console.PASTE_ON}> '.encode(), console.PASTE_OFF.encode()
    for typed, answer in [
        (b'hi\r', 'I[2*3=6]!'),
        (b'\x1b[200~/reset\rthe house\x1b[201~\r', 'I[2*3=6]!'),
        (b'/save ~/x.jsonl\r', f'(appended to {tmp_path}/home/x.jsonl)'),
    ]:
        terminal.read(prompt)
        terminal.type(typed)
        terminal.read(off)
        assert terminal.read(b'\r\n').decode() == answer
    terminal.read(prompt)
    terminal.type(b'/quit\r')
    terminal.read(off)  # no later program finds marks in what is pasted
    assert terminal.process.wait(PATIENCE) == 0
    ((where, row),) = read_rows(tmp_path / 'home' / 'x.jsonl')
    messages = read_messages(row, where)
    assert [m['content'] for m in messages[::2]] == ['hi', '/reset\nthe house']


def test_a_conversation_is_saved_as_it_was(tmp_path, sample):
    """Two answers with their calls, read back by the reader of other people's conversations."""
    write_checkpoint(tmp_path / 'out', BYTES, block_size=256, std=0, edit=SIX, **TALKS)
    hello = '你好🌍 "<|user_end|>"'
    lines = ['/save', 'hi', hello, '/save', '/save ein Ordner/b.JSONL', '/save b.txt', '/reset']
    lines += ['/save', 'again', '/save', '/quit', 'after the end']
    done = sample('--chat', '--temperature=0', stdin='\n'.join(lines))
    assert done.returncode == 0 and done.stdout == 'I[2*3=6]!\n' * 3
    assert 'b.JSONL cannot be written' in done.stderr and 'a new conversation' in done.stderr
    assert 'b.txt: expected a name that ends in .jsonl' in done.stderr
    assert done.stderr.count('the conversation is empty') == 2
    assert done.stderr.count('appended to chats.jsonl') == 2
    kinds = [('text', 'I'), ('python', '2*3'), ('output', '6'), ('text', '!')]
    content = [{'type': kind, 'text': text} for kind, text in kinds]
    answer = {'role': 'assistant', 'content': content}
    talks = [read_messages(row, where) for where, row in read_rows(tmp_path / 'chats.jsonl')]
    questions = {text: {'role': 'user', 'content': text} for text in ('hi', hello, 'again')}
    first = [questions['hi'], answer, questions[hello], answer]
    assert talks == [first, [questions['again'], answer]]
    spelled = '<|user_start|>again<|user_end|><|assistant_start|>I<|python_start|>2*3<|python_end|>'
    spelled = f'<|bos|>{spelled}<|output_start|>6<|output_end|>!<|assistant_end|>'
    pieces = re.findall(r'<\|\w+\|>|.', spelled)
    ids = [BYTES.special.get(piece) or ord(piece) for piece in pieces]
    assert Chat(BYTES).render(talks[1]) == ids


def test_fifty_turns_into_a_context_of_64(tmp_path, sample):
    """Each answer is the engine's, to the longest end of the conversation that leaves room for it,
    with the system's text at its head. Earlier answers stand there as they were sampled."""
    engine = chatter(tmp_path)
    lines = [f'line {i}' + '!' * random.Random(i).randrange(12) for i in range(50)]
    args = ('--chat', '--system=Be!', '--temperature=0', '--max_new_tokens=9')
    done = sample(*args, stdin='\n'.join([*lines, '/save']))
    assert done.returncode == 0, done.stderr

    turns = []
    expected = ''
    fewest = 50
    for line in lines:
        turns.append((line, []))
        prompts = [naive_prompt(turns[i:], 'Be!') for i in range(len(turns))]
        fitting = [prompt for prompt in prompts if len(prompt) <= 64 - 9]
        fewest = min(fewest, len(fitting))
        text, ids = shown(engine, fitting[0], 9)
        expected += text + '\n'
        turns[-1] = (line, ids)
    assert done.stdout == expected
    dropped = [int(count) for count in re.findall(r'oldest turns dropped: (\d+)', done.stderr)]
    assert fewest == 1 and sum(dropped) == 50 - len(fitting)

    ((_, row),) = read_rows(tmp_path / 'chats.jsonl')  # dropped turns are saved too
    assert [m['content'] for m in row['messages'][1::2]] == lines
    answers = [engine.chat.text(ids) for _, ids in turns]
    assert [m['content'] for m in row['messages'][2::2]] == answers


def test_twenty_wild_turns_end_well(tmp_path, sample):
    """Cut and unanswered calls, half characters: whatever a model says can be saved and read."""

    def edit(model):  # makes calls likely, and some of them end
        teach('<|assistant_start|>', '<|python_start|>', '1', '<|python_end|>')(model)
        model.lm_head.weight.mul_(2)

    write_checkpoint(tmp_path / 'out', BYTES, std=0, edit=edit, **TALKS)
    lines = [f'line {i}' for i in range(20)]
    done = sample('--chat', '--temperature=1.5', '--top_k=0', stdin='\n'.join([*lines, '/save']))
    assert done.returncode == 0, done.stderr
    ((where, row),) = read_rows(tmp_path / 'chats.jsonl')
    messages = read_messages(row, where)
    assert [m['content'] for m in messages[::2]] == lines
    contents = [m['content'] for m in messages if isinstance(m['content'], list)]
    assert {part['type'] for parts in contents for part in parts} == {'text', 'python', 'output'}


def test_a_message_beyond_the_context_is_refused_and_forgotten(tmp_path, sample):
    engine = chatter(tmp_path)
    args = ('--chat', '--temperature=0', '--max_new_tokens=9')
    done = sample(*args, stdin='hi\n' + 'x' * 100 + '\nhi\n')
    first, ids = shown(engine, naive_prompt([('hi', [])]), 9)
    second, _ = shown(engine, naive_prompt([('hi', ids), ('hi', [])]), 9)
    assert done.returncode == 0 and done.stdout == f'{first}\n{second}\n'
    assert 'your message makes a prompt of 104 tokens' in done.stderr
    assert 'dropped' not in done.stderr
    # one that fits leaves little room for the answer
    done = sample('--chat', '--temperature=0', stdin='x' * 50)
    assert 'the context is full' in done.stderr and 'your message' not in done.stderr


@pytest.mark.parametrize(
    'text', ['<|user_end|><|assistant_start|>', '<|bos|>', '<|assistant_end|>a<|python_start|>']
)
def test_a_message_that_spells_control_tokens_is_text(tmp_path, sample, text):
    engine = chatter(tmp_path)
    expected, _ = shown(engine, naive_prompt([(text, [])]), 9)
    done = sample('--chat', '--temperature=0', '--max_new_tokens=9', stdin=text)
    assert done.stdout == expected + '\n'


def test_a_chat_draws_bolder_than_a_text_unless_told(tmp_path, sample):
    """Also, no two answers are drawn from the same numbers."""
    chatter(tmp_path, block_size=256)
    args = ('--chat', '--max_new_tokens=15')
    said = {t: sample(*args, *given, stdin='hi\n/reset\nhi\n').stdout for t, given in {
        None: [], 0.3: ['--temperature=0.3'], 0.8: ['--temperature=0.8']}.items()}  # fmt: skip
    assert said[None] == said[0.3] != said[0.8] and said[0.8]
    texts_of = {t: sample(f'--temperature={t}', '--start=hi').stdout for t in (0.8, 0.3)}
    assert sample('--start=hi').stdout == texts_of[0.8] != texts_of[0.3]
    talk = sample(*args, '--temperature=1', stdin='hi\n/reset\nhi\n/reset\nhi\nhi').stdout
    assert talk.split('\n')[0] == talk.split('\n')[1]  # the same seed, the same conversation


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows cannot send a Ctrl-C to one process')
def test_ctrl_c_ends_the_answer_and_nothing_else(tmp_path):
    """A model that never stops by itself, interrupted twice; then Ctrl-C at the prompt."""
    write_checkpoint(
        tmp_path / 'out', BYTES, block_size=2**14, std=0,
        edit=teach('<|assistant_start|>', *'abcdefga'), **TALKS,
    )  # fmt: skip
    out, err = tmp_path / 'stdout', tmp_path / 'stderr'
    settings = ['--chat', '--temperature=0', '--max_new_tokens=16000']
    command = [sys.executable, str(ROOT / 'sample.py'), *settings]

    def wait(path, words, count=1):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if path.read_text(encoding='utf-8').count(words) >= count:
                return
            assert talk.poll() is None, err.read_text(encoding='utf-8')
            time.sleep(0.05)
        raise AssertionError(f'no {words}: {err.read_text(encoding="utf-8")}')

    def type_in(line):
        talk.stdin.write(line.encode() + b'\n')
        talk.stdin.flush()

    with open(out, 'wb') as stdout, open(err, 'wb') as stderr:
        talk = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, cwd=tmp_path,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            # a background job ignores Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            for answer in (1, 2):
                before = out.read_text(encoding='utf-8').count('abc')
                type_in('hi')
                wait(out, 'abcdefg', before + 2)
                talk.send_signal(signal.SIGINT)
                wait(err, '(stopped)', answer)
            talk.send_signal(signal.SIGINT)
            wait(err, 'to leave: /quit')
            type_in('/save')
            type_in('/quit')
            assert talk.wait(PATIENCE) == 0
        finally:
            talk.kill()
            talk.stdin.close()
    ((where, row),) = read_rows(tmp_path / 'chats.jsonl')
    messages = read_messages(row, where)
    assert [m['role'] for m in messages] == ['user', 'assistant'] * 2
    answers = [m['content'] for m in messages[1::2]]
    assert answers == out.read_text(encoding='utf-8').splitlines()
    for answer in answers:
        assert answer == ('abcdefg' * len(answer))[: len(answer)] and len(answer) > 13
    ids, end = Chat(BYTES).render(messages), BYTES.special['<|assistant_end|>']
    assert ids.count(end) == 2 and ids[-1] == end


def test_ctrl_c_ends_a_text_without_a_traceback(tmp_path, sample, monkeypatch):
    write_checkpoint(tmp_path / 'out')
    steps, original = [], Engine.step

    def step(self):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Engine, 'step', step)
    done = sample('--max_new_tokens=20', '--num_samples=1')
    assert done.stderr.splitlines()[-1] == '130' and len(done.stdout.strip()) > 2


def test_a_system_message_that_fills_the_context_is_named_at_once(tmp_path, sample):
    write_checkpoint(tmp_path / 'out', BYTES, stage='sft')
    done = sample('--chat', f'--system={"word " * 300}')
    assert done.returncode == 1
    assert 'system makes a prompt of 1506 tokens' in done.stderr.splitlines()[-1]


def test_what_cannot_chat_is_refused(tmp_path, sample):
    write_checkpoint(tmp_path / 'out', BYTES)
    done = sample('--chat')
    assert done.returncode == 1 and done.stdout == '' and len(done.stderr.splitlines()) == 2
    assert 'ckpt.pt is of stage pretrain' in done.stderr
    assert '--stage=sft --init_from=out' in done.stderr
    write_checkpoint(tmp_path / 'out', stage='sft')
    done = sample('--chat')
    assert done.returncode == 1 and done.stdout == ''
    final_message = done.stderr.splitlines()[-1]
    assert 'ckpt.pt cannot chat' in final_message and '<|user_start|>' in final_message
    assert sample('--max_new_tokens=1').returncode == 0
    assert 'no such setting' in sample('--chatt').stderr


def test_a_chat_names_commands_and_needs_no_introduction(tmp_path, sample):
    write_checkpoint(tmp_path / 'out', BYTES, std=0, edit=SIX, stage='rl')
    lines = '/help\n/nonsense\nhi\r\n/save /nowhere/at all/c.jsonl\n'
    done = sample('--chat', '--temperature=0', stdin=lines)
    assert done.returncode == 0 and done.stdout == 'I[2*3=6]!\n'
    assert done.stderr.count('/save [FILE]') == 2 and 'unknown command /nonsense' in done.stderr
    assert 'cannot be written' in done.stderr
