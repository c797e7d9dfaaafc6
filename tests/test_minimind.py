"""MiniMind's files and its configs, from JSONL to a chat."""

import json
import shutil

import pytest
from conftest import ROOT

from checkpoint import load
from runlog import read_log

ANIMALS = 'cat dog cow hen fox owl bee ant'.split()


def write_lines(path, rows):
    path.write_bytes(b''.join(json.dumps(row).encode() + b'\n' for row in rows))
    return path


def chat(*texts):
    """As in MiniMind's files of 2026: keys for tools, not in use."""
    roles = ('user', 'assistant')
    messages = [
        {'role': roles[i % 2], 'content': text, 'reasoning_content': '', 'tools': ''}
        for i, text in enumerate(texts)
    ]
    return {'conversations': messages}


TOOL = {
    'conversations': [
        {'role': 'system', 'content': '# Tools', 'tools': '[{"name": "look"}]'},
        {'role': 'user', 'content': 'What does a cat say?'},
        {'role': 'assistant', 'content': '', 'tool_calls': '[{"name": "look"}]'},
        {'role': 'tool', 'content': '{"said": "meow"}'},
        {'role': 'assistant', 'content': 'Meow.'},
    ]
}


def pair(animal):
    question = {'role': 'user', 'content': f'Name a {animal}.'}
    sides = dict(chosen=f'A {animal}, of course.', rejected='No.')
    return {
        side: [question, {'role': 'assistant', 'content': text}] for side, text in sides.items()
    }


@pytest.fixture
def tree(tmp_path):
    """A copy of the programs, so that data/ and out/ are not the repository's."""
    for pattern in ('*.py', 'config/*.py', 'data/*.py', 'data/*/*.py', 'data/tinyworld/*.txt'):
        for path in ROOT.glob(pattern):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return tmp_path


# The configs shrunk by settings alone
MODEL = ('--n_layer=2', '--n_embd=32', '--n_hidden=96', '--block_size=64')
SHORT = (
    '--batch_size=4', '--gradient_accumulation_steps=1', '--epochs=0', '--max_iters=6',
    '--eval_interval=6', '--eval_iters=1', '--log_interval=1', '--max_new_tokens=8', '--device=cpu',
)  # fmt: skip
RL = ('--rl_samples=2', '--rl_tokens=8')
LONGER = 'def longer(problems, answers):\n    return [len(answer) for answer in answers]\n'


@pytest.mark.slow
def test_from_jsonl_to_a_chat(tree, run_program):
    """Pretraining, sft, dpo and rl of the dense model and sft of the one with experts."""

    def run(program, *args, **more):
        return run_program(tree / program, *args, cwd=tree, **more)

    # 1) The files, and a tokenizer with MiniMind's layout
    texts = [f'The {a} and the {b} went out. ' * 6 for a in ANIMALS for b in ANIMALS]
    text = write_lines(tree / 'pretrain_hq.jsonl', [{'text': text} for text in texts])
    chats = [chat(f'Name a {a}.', f'A {a}.', 'And?', 'No more.') for a in ANIMALS]
    chats = write_lines(tree / 'sft_mini_512.jsonl', [*chats[:4], TOOL, *chats[4:]])
    pairs = write_lines(tree / 'dpo.jsonl', [pair(a) for a in ANIMALS])
    asked = [chat(f'Name a {a}.', '空') for a in ANIMALS]  # a placeholder for the answer
    asked = write_lines(tree / 'rlaif.jsonl', asked)
    tok = tree / 'data' / 'minimind_tok.json'
    run(
        'tokenizer.py', 'config/tokenizer_6400.py', f'--input={text}', f'--out={tok}',
        '--vocab_size=300',
    )  # fmt: skip

    # 2) Preparation. Calls of tools are an error until they are left out
    def prepare(file, name, *args, **more):
        return run(
            'data/custom/prepare.py', file, f'--name={name}', f'--tokenizer={tok}', *args, **more
        )

    prepare(text, 'minimind')
    prepare(pairs, 'minimind_dpo')
    assert 'prompts, 7 to train on' in prepare(asked, 'minimind_rl', '--prompts_only=True').stdout
    refused = prepare(chats, 'minimind_sft', check=False)
    assert refused.returncode == 1 and 'sft_mini_512.jsonl:5: ' in refused.stderr
    assert 'left out: 1; the first' in prepare(chats, 'minimind_sft', '--skip_tools=True').stdout

    # 3) Training
    for name in ('minimind', 'minimind_moe'):
        run('train.py', f'config/{name}.py', *MODEL, *SHORT)
    run('train.py', 'config/minimind_sft.py', *SHORT)
    run('train.py', 'config/minimind_dpo.py', *SHORT)
    moe = ('--init_from=out/minimind_moe/pretrain', '--out_dir=out/minimind_moe/sft')
    run('train.py', 'config/minimind_sft.py', *SHORT, *moe)
    expected = dict(learning_rate=5e-7, optimizer='adamw', beta2=0.999, expert_balance=0.1)
    config = load(tree / 'out/minimind_moe/sft/ckpt.pt')['config']
    assert {name: config[name] for name in expected} == expected
    rows = [row for row in read_log(tree / 'out/minimind_moe/sft/log.jsonl') if 'load' in row]
    assert len(rows) == 6 and all(len(layer) == 4 for row in rows for layer in row['load'])
    first = [row for row in read_log(tree / 'out/minimind/dpo/log.jsonl') if 'loss' in row][0]
    assert first['loss'] == pytest.approx(0.6931, abs=1e-4)

    # 4) Reinforcement learning, with a reward of the user's own
    refused = run('train.py', 'config/minimind_rl.py', *SHORT, check=False)
    assert 'grader is missing' in refused.stderr and '--reward=FILE.py:function' in refused.stderr
    (tree / 'my.py').write_text(LONGER, encoding='utf-8')
    run('train.py', 'config/minimind_rl.py', *SHORT, *RL, '--reward=my.py:longer')
    rows = read_log(tree / 'out/minimind/rl/log.jsonl')
    assert [row['step'] for row in rows if 'reward' in row and 'loss' in row] == list(range(6))
    assert [row['step'] for row in rows if 'evaluation_seconds' in row] == [0, 6]

    # 5) A chat with each
    question = tree / 'question.txt'
    question.write_text('Name a cat.\n', encoding='utf-8')
    for folder in ('minimind/dpo', 'minimind_moe/sft'):
        args = (f'--out_dir=out/{folder}', '--max_new_tokens=8', '--device=cpu')
        assert run('sample.py', '--chat', *args, stdin=question).stdout


@pytest.mark.slow
def test_the_recipe_for_two_t4s_begins(tree, run_program):
    """t4x2.py in fp16 on two ranks: the loss is scaled, and it falls."""
    text = write_lines(tree / 'a.jsonl', [{'text': 'One two three. ' * 20} for _ in range(40)])
    run_program(tree / 'data/custom/prepare.py', text, '--vocab_size=300', cwd=tree)
    args = (*MODEL, *SHORT, '--batch_size=2', '--gradient_accumulation_steps=2')
    data = ('--dataset=custom', '--warmup_iters=2')
    run_program(tree / 'train.py', 'config/t4x2.py', *args, *data, cwd=tree, ranks=2)
    state = load(tree / 'out/t4x2/pretrain/ckpt.pt')
    assert (state['step'], state['config']['dtype']) == (6, 'float16')
    assert float(state['optimizer']['loss_scale']) >= 1
    assert float(state['optimizer']['counters']['count']) > 0
    losses = [
        row['loss'] for row in read_log(tree / 'out/t4x2/pretrain/log.jsonl') if 'loss' in row
    ]
    assert losses[-1] < losses[0]
