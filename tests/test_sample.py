"""sample.py as a user runs it, over checkpoints of tiny models with random weights."""

import os

import pytest
import torch

import checkpoint
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig
from tokenizer import CharTokenizer, train_bpe

CHARACTERS = '\n abcdefghijklmnopqrstuvwxyzé'


def write_checkpoint(folder, tokenizer=None, seed=0, block_size=64, preset='nano', std=0.2):
    """A checkpoint in the layout of train.py; returns (model, tokenizer)."""
    tokenizer = tokenizer or CharTokenizer(CHARACTERS)
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=block_size, vocab_size=tokenizer.vocab_size)
    model = GPT(GPTConfig(**{**PRESETS[preset], **shape}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model=model.state_dict(), model_config=vars(model.config), tokenizer=tokenizer.to_dict())
    checkpoint.save(folder / 'ckpt.pt', dict(state, stage='pretrain', step=7, config={}))
    return model.eval(), tokenizer


def texts(done):
    """What was printed, sample by sample."""
    *samples, rest = done.stdout.split('\n---------------\n')
    assert rest == ''
    return samples


def one_line(done, *words):
    assert done.returncode == 1 and done.stderr.count('\n') == 1 + done.stderr.count('stage pretrain')
    assert 'Traceback' not in done.stderr
    for word in words:
        assert word in done.stderr
    return True


def test_the_newest_checkpoint_is_taken_and_named(tmp_path, run_program):
    for age, folder in ((10, 'out/a'), (0, 'out/my run ñ'), (20, 'out-b')):
        model, tokenizer = write_checkpoint(tmp_path / folder, seed=age)
        written = (tmp_path / folder / 'ckpt.pt').stat().st_mtime - age
        os.utime(tmp_path / folder / 'ckpt.pt', (written, written))
        if age == 0:
            newest = model
    done = run_program('sample.py', '--start=to be', '--temperature=0', '--max_new_tokens=20', cwd=tmp_path)
    assert 'my run ñ' in done.stderr and 'step 7' in done.stderr
    (expected,) = Engine(newest, tokenizer).generate([tokenizer.encode('to be')], 20, Sampling(temperature=0))
    assert texts(done) == ['to be' + expected.text] * 3


def test_out_dir_is_taken_if_asked_for(tmp_path, run_program):
    """A space and a letter beyond ASCII in the path; the same seed says the same, another does not."""
    folder = tmp_path / 'ein Ordner ö'
    write_checkpoint(folder)
    write_checkpoint(tmp_path / 'out', seed=1)

    def run(*args):
        args = (f'--out_dir={folder}', '--num_samples=2', '--max_new_tokens=30', *args)
        return texts(run_program('sample.py', *args, cwd=tmp_path))

    first = run()
    assert [len(text) for text in first] == [31, 31] and first[0] != first[1]
    assert run() == first and run('--seed=1') != first


def test_a_text_goes_on_when_the_context_is_full(tmp_path, run_program):
    """500 tokens from a context of 64, as nanoGPT's command asks; the likeliest text is that of going on by hand."""
    model, tokenizer = write_checkpoint(tmp_path / 'out')
    done = run_program('sample.py', '--max_new_tokens=500', cwd=tmp_path)
    assert [len(text) for text in texts(done)] == [501] * 3 and len(set(texts(done))) == 3
    assert done.stderr.count('context of 64') == 1
    done = run_program('sample.py', '--max_new_tokens=150', '--temperature=0', '--num_samples=1', cwd=tmp_path)
    engine, ids = Engine(model, tokenizer), tokenizer.encode('\n')
    while len(ids) < 151:
        (sample,) = engine.generate([ids[-32:]], 151 - len(ids), Sampling(temperature=0))
        ids += sample.ids
    assert texts(done) == [tokenizer.decode(ids)]


def test_each_context_has_a_stream_of_its_own(tmp_path, run_program):
    """A context of one token and logits that are all alike: with one stream again and again a text would be one letter."""
    write_checkpoint(tmp_path / 'out', block_size=1, std=0.0)
    done = run_program('sample.py', '--max_new_tokens=100', '--num_samples=2', cwd=tmp_path)
    assert all(len(text) == 101 and len(set(text)) > 15 for text in texts(done))


def test_the_prompt_may_come_from_a_file(tmp_path, run_program):
    write_checkpoint(tmp_path / 'out')
    (tmp_path / 'ein prompt é.txt').write_text('café\nau lait', encoding='utf-8')
    run = lambda *args: run_program('sample.py', '--max_new_tokens=5', *args, cwd=tmp_path, check=False)
    assert all(text.startswith('café\nau lait') for text in texts(run('--start=FILE:ein prompt é.txt')))
    assert one_line(run('--start=FILE:none.txt'), 'FILE:none.txt')
    (tmp_path / 'latin.txt').write_bytes('café'.encode('latin-1'))
    assert one_line(run('--start=FILE:latin.txt'), 'FILE:latin.txt', 'utf-8')


def test_a_prompt_longer_than_the_context_is_cut_and_said(tmp_path, run_program):
    model, tokenizer = write_checkpoint(tmp_path / 'out')
    text = 'the quick brown fox jumps over the lazy dog ' * 3
    args = (f'--start={text}', '--max_new_tokens=9', '--temperature=0', '--num_samples=1')
    done = run_program('sample.py', *args, cwd=tmp_path)
    (expected,) = Engine(model, tokenizer).generate([tokenizer.encode(text)[-32:]], 9, Sampling(temperature=0))
    assert texts(done) == [text + expected.text]
    assert 'the prompt has 132 tokens' in done.stderr


def test_byte_pairs_begin_with_bos_and_stream_whole_characters(tmp_path, run_program):
    """The prompt is plain text even where it spells a special token; a character may span two contexts."""
    tokenizer = train_bpe(['naïve 你好🌍 ' * 4], vocab_size=262, special=['<|bos|>', '<|user_start|>'])
    model, _ = write_checkpoint(tmp_path / 'out', tokenizer, preset='gpt2', block_size=16)
    with torch.no_grad():  # the context is full after an odd number of bytes of an emoji, which alone it can say
        model.lm_head.weight.normal_(0.0, 0.01)
    start = '<|user_start|>'
    ids = [tokenizer.bos, *tokenizer.encode(start)]
    assert len(ids) == 15
    run = lambda *args: run_program('sample.py', f'--start={start}', '--num_samples=1', *args, cwd=tmp_path)
    (text,) = texts(run('--max_new_tokens=40', '--temperature=0'))
    engine, model = (
        Engine(write_checkpoint(tmp_path / 'out', tokenizer, preset='gpt2', block_size=16)[0], tokenizer),
        None,
    )
    while len(ids) < 55:
        window = ids if len(ids) <= 15 else ids[-8:]
        (sample,) = engine.generate([window], 55 - len(ids), Sampling(temperature=0))
        ids += sample.ids
        if sample.finish_reason == 'stop':
            break
    assert text == tokenizer.decode(ids)


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
def test_bad_settings_are_one_line(tmp_path, run_program, args, words):
    write_checkpoint(tmp_path / 'out')
    assert one_line(run_program('sample.py', *args, cwd=tmp_path, check=False), *words)


def test_without_a_checkpoint_it_says_what_makes_one(tmp_path, run_program):
    assert one_line(run_program('sample.py', cwd=tmp_path, check=False), 'python train.py')


def test_a_truncated_checkpoint_is_named(tmp_path, run_program):
    write_checkpoint(tmp_path / 'out')
    path = tmp_path / 'out' / 'ckpt.pt'
    path.write_bytes(path.read_bytes()[:-500])
    assert one_line(run_program('sample.py', cwd=tmp_path, check=False), 'ckpt.pt')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_other_number_types_say_the_same_at_first(tmp_path, run_program, dtype):
    write_checkpoint(tmp_path / 'out')
    args = ('--max_new_tokens=2', '--temperature=0', '--num_samples=1', '--start=hello')
    assert texts(run_program('sample.py', *args, f'--dtype={dtype}', cwd=tmp_path)) == texts(
        run_program('sample.py', *args, cwd=tmp_path)
    )
