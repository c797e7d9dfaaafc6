"""
What each change in this folder should do, checked in a copy of the repository that has the change.

    $ git apply tests/changes/geglu.diff    # without git: patch -p1 < tests/changes/geglu.diff
    $ python tests/changes/checks.py geglu

Trains a tiny model for a few steps on data made up here, then asserts what the diff's first line
says.
"""

import contextlib
import dataclasses
import io
import math
import random
import runpy
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import disk
import shards
import tasks
from cache import BLOCK, KVCache
from conversation import SPECIAL, Chat
from model import GPT, GPTConfig
from sampling import Sampling
from tokenizer import BPETokenizer, CharTokenizer

TINY = dict(
    n_layer=1, n_head=2, n_embd=16, block_size=32, batch_size=8, gradient_accumulation_steps=1,
    max_iters=10, warmup_iters=0, learning_rate=1e-2, log_interval=1, eval_interval=0,
    eval_problems=2, max_new_tokens=8, rl_tokens=8, rl_samples=4, sample_prompts='', device='cpu',
)  # fmt: skip

# -----------------------------------------------------------------------------
# runs and data


def train(out, **settings):
    """Run train.py. Returns its Run and the rows of its log, whose losses are finite."""
    settings = {**TINY, 'out_dir': out, **settings}
    sys.argv = ['train.py', *(f'--{name}={value}' for name, value in settings.items())]
    run = runpy.run_path(str(ROOT / 'train.py'), run_name='__main__')['run']
    rows = disk.read_lines(Path(out, 'log.jsonl'))
    losses = [row['loss'] for row in rows if 'loss' in row]
    assert len(losses) == settings['max_iters'] and all(map(math.isfinite, losses))
    return run, rows


def text(folder):
    """A data folder of words in random order."""
    words = random.Random(0).choices(['a ', 'cat ', 'sat ', 'on ', 'the ', 'mat.\n'], k=2000)
    tokenizer = CharTokenizer(''.join(words))
    with shards.Writer(folder, tokenizer) as out:
        for split, part in (('train', words[200:]), ('val', words[:200])):
            ids = tokenizer.encode(''.join(part))
            out.write(split, ids, len(ids))
    return folder


def chats(folder, answers, kind='conversations'):
    """A data folder in which a question is followed by each of the answers in turn. Returns its
    Chat."""
    special = {name: 256 + i for i, name in enumerate(SPECIAL)}
    chat = Chat(BPETokenizer(r'.|\n', [], special))
    with shards.Writer(folder, chat.tokenizer, notes={'kind': kind}) as out:
        for i in range(160):
            question = {'role': 'user', 'content': f'{i // 2 % 8}?'}
            answer = {'role': 'assistant', 'content': answers[i % len(answers)]}
            out.write('train' if i < 128 else 'val', chat.render([question, answer]), 8)
    return chat


@torch.inference_mode()
def with_cache(model, ids):
    """The logits of a row of ids, (1, T): half of it in one pass, then token by token."""
    T = ids.shape[1]
    table = list(range(1, 1 + T // BLOCK))
    cache = KVCache(model.config)
    cache.reserve(1 + len(table))
    logits = []
    start = 0
    for count in (T // 2, *[1] * (T - T // 2)):
        cache.select([table], [start], [count], ids[0, start - 1 : start].tolist() or [0])
        logits.append(model(ids[:, start : start + count], cache=cache))
        start += count
    return torch.cat(logits, dim=1)


# -----------------------------------------------------------------------------
# the checks


def sliding_window(folder):
    data = text(folder / 'text')
    run, _ = train(folder / 'run', dataset=data, block_size=128, smear=False)  # it reads one more
    model = run.raw_model
    places = torch.arange(128)[None]
    ids = places % model.config.vocab_size
    other = torch.where(places < 64, (ids + 1) % model.config.vocab_size, ids)
    with torch.no_grad():
        full = model(ids)
        difference = (full - model(other)).abs().amax(-1)[0]  # (T,)
    assert difference[127] < 1e-6  # the last token sees 64 to 127
    assert difference[126] > 1e-6  # the one before it also 63
    torch.testing.assert_close(with_cache(model, ids), full, atol=1e-5, rtol=0)


def geglu(folder):
    run, _ = train(folder / 'run', dataset=text(folder / 'text'), mlp='geglu')
    mlp = run.raw_model.transformer.h[0].mlp
    x = torch.randn(3, TINY['n_embd'], generator=torch.Generator().manual_seed(0))
    gate, up = mlp.c_fc(x).chunk(2, dim=-1)
    torch.testing.assert_close(mlp(x), mlp.c_proj(F.gelu(gate) * up))
    sizes = dataclasses.asdict(run.raw_model.config)
    swiglu = GPT(GPTConfig(**{**sizes, 'mlp': 'swiglu', 'n_hidden': 0}))
    assert run.raw_model.num_params() == swiglu.num_params()


def lion(folder):
    data = text(folder / 'text')
    settings = dict(dataset=data, optimizer='lion', weight_decay=0.0)
    train(folder / 'ten', **settings)
    before, _ = train(folder / 'none', **settings, max_iters=1, learning_rate=0.0)
    after, _ = train(folder / 'one', **settings, max_iters=1, learning_rate=0.01)
    pairs = zip(before.raw_model.parameters(), after.raw_model.parameters())
    steps = torch.cat([((b - a).detach().abs() / 0.01).flatten() for a, b in pairs])
    moved = steps > 0.5  # the others had no gradient: characters that did not occur
    assert moved.any()
    torch.testing.assert_close(steps, moved.float(), atol=1e-4, rtol=0)


def sqrt_schedule(folder):
    data = text(folder / 'text')
    _, rows = train(folder / 'run', dataset=data, schedule='sqrt', warmdown=0.5, min_lr=0.0)
    rates = [row['lr'] for row in rows if 'loss' in row]
    assert rates[:6] == [TINY['learning_rate']] * 6
    for step in range(6, 10):
        expected = TINY['learning_rate'] * (1 - math.sqrt((step - 5) / 5))
        assert math.isclose(rates[step], expected)


def epsilon_sampler(folder):
    train(folder / 'run', dataset=text(folder / 'text'))
    # 1) Which ids may be drawn
    uniform = torch.linspace(0, 1, 100, dtype=torch.float64)[:-1]
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(len(uniform), -1)
    for epsilon, kept in ((0.1, {0, 1, 3}), (0.2, {1, 3}), (0.9, {1})):
        assert {*Sampling(epsilon=epsilon).draw(logits, uniform).tolist()} == kept
    # 2) In sample.py, where an epsilon of 1 leaves only the likeliest
    texts = []
    for setting in ('--epsilon=1.0', '--temperature=0.0'):
        sys.argv = ['sample.py', f'--out_dir={folder / "run"}', '--max_new_tokens=100', setting]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(ROOT / 'sample.py'), run_name='__main__')
        texts.append(printed.getvalue())
    assert len(texts[0]) > 100 and texts[0] == texts[1]


def brief_reward(folder):
    chats(folder / 'chats', ['yes', 'yes yes', 'no'])
    problem = dict(split='train', skill='short', grader='brief', answer='yes')
    problem['messages'] = [{'role': 'user', 'content': '1?'}]
    for split in ('train', 'val'):
        disk.append_line(folder / 'chats' / 'problems.jsonl', problem | {'split': split})
    train(folder / 'first', dataset=folder / 'chats', max_iters=60)
    _, rows = train(folder / 'rl', dataset=folder / 'chats', stage='rl', init_from=folder / 'first')
    answers = [row for row in rows if 'reward' in row and 'text' in row]
    assert answers and all(tasks.brief(problem, row['text']) == row['reward'] for row in answers)
    assert tasks.grade(problem, 'no') == 0.0 < tasks.grade(problem, 'oh yes') < 0.99
    assert tasks.grade(problem, 'yes') == 0.99


def sums_data(folder):
    runpy.run_path(str(ROOT / 'data' / 'sums' / 'prepare.py'), run_name='__main__')
    data = shards.open_data(ROOT / 'data', 'sums')
    lines = {}
    for split in ('train', 'val'):
        ids = data.split(split)
        lines[split] = data.tokenizer.decode(ids.read(0, len(ids))).splitlines()
    assert len(lines['train']) == 9000 and len(lines['val']) == 1000
    every = {*lines['train'], *lines['val']}
    assert every == {f'{a}+{b}={a + b}' for a in range(100) for b in range(100)}
    train(folder / 'run', dataset='sums')


def thinking(folder):
    thought = [{'type': 'think', 'text': 'hm'}, {'type': 'text', 'text': 'yes'}]
    chat = chats(folder / 'chats', [thought])
    train(folder / 'first', dataset=folder / 'chats', max_iters=60)
    run, _ = train(
        folder / 'sft', dataset=folder / 'chats', stage='sft', init_from=folder / 'first'
    )
    # 1) Thoughts are learned
    question = [{'role': 'user', 'content': '1?'}]
    prompt = chat.prompt(question)
    ids = chat.render([*question, {'role': 'assistant', 'content': thought}])
    assert chat.is_spoken(ids)[len(prompt) - 1 :].all()
    # 2) and not shown
    assert chat.text(ids[len(prompt) :]) == 'yes'
    answers = run.engine.generate([prompt], 12, Sampling(seed=1), 16)
    assert any(chat.tokenizer.special['<|think_start|>'] in answer.ids for answer in answers)
    assert all(answer.text == chat.text(answer.ids) for answer in answers)


def simpo_stage(folder):
    chats(folder / 'chats', ['yes', 'no'])
    chats(folder / 'pairs', ['yes', 'no'], kind='preferences')
    train(folder / 'first', dataset=folder / 'chats')
    settings = dict(dataset=folder / 'pairs', stage='simpo', init_from=folder / 'first')
    run, rows = train(folder / 'simpo', **settings, max_iters=30)
    steps = [row for row in rows if 'loss' in row]
    assert steps[-1]['loss'] < 0.5 * steps[0]['loss'] and steps[-1]['accuracy'] == 1.0
    assert not run.kept  # no log-probabilities of a reference


def bigger_head(folder):
    run, _ = train(folder / 'run', dataset=text(folder / 'text'), softcap=0.0)
    model = run.raw_model
    ids = torch.arange(32)[None] % model.config.vocab_size
    with torch.no_grad():
        full = model(ids)
        x = model.hidden(ids)
        x = x + F.relu(x @ model.head_fc.weight.T) ** 2
        logits = (x @ model.lm_head.weight.T)[..., : model.config.vocab_size]
    torch.testing.assert_close(full, logits)
    torch.testing.assert_close(with_cache(model, ids), full, atol=1e-5, rtol=0)


CHECKS = {
    f.__name__: f
    for f in (
        sliding_window, geglu, lion, sqrt_schedule, epsilon_sampler, brief_reward, sums_data,
        thinking, simpo_stage, bigger_head,
    )
}  # fmt: skip


if __name__ == '__main__':
    name = ' '.join(sys.argv[1:])
    if name not in CHECKS:
        raise SystemExit(f"'{name}': expected one of {', '.join(CHECKS)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        CHECKS[name](Path(folder))
    print(f'{name}: the change does what it says')
