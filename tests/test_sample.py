"""sample.py as a user runs it, over checkpoints of tiny models with random weights."""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import checkpoint
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig
from tokenizer import CharTokenizer, train_bpe

CHARACTERS = '\n abcdefghijklmnopqrstuvwxyzé'
ROOT = Path(__file__).resolve().parent.parent
GREEDY = Sampling(temperature=0)


@pytest.fixture
def sample(tmp_path, monkeypatch, capsys):
    """sample('--a=b') runs the program in this process, in tmp_path: a start of Python takes seconds."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def run(*args):
        monkeypatch.setattr('sys.argv', ['sample.py', *map(str, args)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        status, last_words = 0, ''
        try:
            runpy.run_path(str(ROOT / 'sample.py'), run_name='__main__')
        except SystemExit as stop:
            status, last_words = 1, f'{stop.code}\n'
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=out, stderr=err + last_words)

    yield run
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.use_deterministic_algorithms(False)


def write_checkpoint(folder, tokenizer=None, seed=0, block_size=64, preset='nano', std=0.2, edit=None):
    """A checkpoint in the layout of train.py; returns (engine, tokenizer)."""
    tokenizer = tokenizer or CharTokenizer(CHARACTERS)
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=block_size, vocab_size=tokenizer.vocab_size)
    model = GPT(GPTConfig(**{**PRESETS[preset], **shape}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
        if edit:
            edit(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model=model.state_dict(), model_config=vars(model.config), tokenizer=tokenizer.to_dict())
    checkpoint.save(folder / 'ckpt.pt', dict(state, stage='pretrain', step=7, config={}))
    return Engine(model, tokenizer), tokenizer


def texts(done):
    """What was printed, sample by sample."""
    assert done.returncode == 0, done.stderr
    *samples, rest = done.stdout.split('\n---------------\n')
    assert rest == ''
    return samples


def assert_one_line(done, *words):
    """The error is one line, behind the line that names the checkpoint if it came that far."""
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
    done = run_program('sample.py', '--start=to be', '--temperature=0', '--max_new_tokens=20', cwd=tmp_path)
    assert 'my run ñ' in done.stderr and 'step 7' in done.stderr
    (expected,) = newest.generate([tokenizer.encode('to be')], 20, GREEDY)
    assert texts(done) == ['to be' + expected.text] * 3


def test_out_dir_is_taken_if_asked_for(tmp_path, sample):
    """The same seed says the same again, another does not."""
    folder = tmp_path / 'ein Ordner ö'
    write_checkpoint(folder)
    write_checkpoint(tmp_path / 'out', seed=1)
    args = (f'--out_dir={folder}', '--num_samples=2', '--max_new_tokens=30')
    first = sample(*args)
    assert str(folder) in first.stderr
    assert [len(text) for text in texts(first)] == [31, 31] and len(set(texts(first))) == 2
    assert texts(sample(*args)) == texts(first) != texts(sample(*args, '--seed=1'))
    assert texts(sample(*args[1:])) != texts(first)


def test_without_a_checkpoint_it_says_what_makes_one(tmp_path, run_program):
    done = run_program('sample.py', cwd=tmp_path, check=False)
    assert_one_line(done, 'python train.py')
    assert done.stdout == ''


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
    """500 tokens from a context of 64, as nanoGPT's command asks; the likeliest text is that of going on by hand."""
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
    """A context of one token, all logits alike: with one stream again and again a text would be one letter."""
    write_checkpoint(tmp_path / 'out', block_size=1, std=0.0)
    done = sample('--max_new_tokens=100', '--num_samples=2')
    assert all(len(text) == 101 and len(set(text)) > 15 for text in texts(done))


def test_a_character_may_span_two_contexts(tmp_path, sample):
    """A model that says the bytes of an emoji in turn, with contexts that end anywhere inside it."""
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
    tokenizer = train_bpe(['naïve 你好🌍 ' * 4], vocab_size=262, special=['<|bos|>', '<|user_start|>'])
    engine, _ = write_checkpoint(tmp_path / 'out', tokenizer, preset='gpt2')
    ids = [tokenizer.bos, *start.encode()] if start.startswith('<') else [tokenizer.bos, *tokenizer.encode(start)]
    (expected,) = engine.generate([ids], 20, GREEDY)
    done = sample(f'--start={start}', '--max_new_tokens=20', '--temperature=0', '--num_samples=1')
    assert texts(done) == [start + expected.text]


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
        (['--init_from=gpt2-xl'], ['gpt2-xl', 'resume']),
        (['--device=tpu'], ['tpu']),
        (['--dtype=int8'], ['int8']),
        (['--out_dir=nowhere'], ['nowhere', 'python train.py']),
        (['--tempreature=1'], ['temperature']),
    ],
)
def test_bad_settings_are_one_line(tmp_path, sample, args, words):
    write_checkpoint(tmp_path / 'out')
    assert_one_line(sample(*args), *words)
