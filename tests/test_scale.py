"""Many processes as a user starts them: eight ranks, two nodes, workers that are killed; and
speedrun.sh from a blank machine to the report."""

import contextlib
import fnmatch
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import LINUX, ROOT, environment_of, read_defaults, tail
from test_download import hub, server  # noqa: F401  fixtures
from test_stages import FOLDERS, world  # noqa: F401  fixture
from test_train import assert_same_bits, learned, trained

import report
import tokenizer as tokenizers
from configurator import configure
from conversation import SPECIAL

pytestmark = pytest.mark.skipif(not LINUX, reason='torchrun and /proc')
SMOKE = [str(ROOT / 'config' / 'smoke.py'), '--device=cpu']
# a step is a line of the log, and every seventh is saved
SHORT = ['--auto_resume=True', '--max_iters=100', '--eval_interval=20', '--eval_iters=1']
SHORT += ['--save_interval=7', '--log_interval=1', '--dropout=0.1', '--max_new_tokens=8']
NODES = {
    'one': ['--standalone'],
    'static': [
        '--nnodes=2', '--node_rank={node}', '--master_addr=127.0.0.1', '--master_port={port}',
    ],
    'c10d': [
        '--nnodes=2', '--rdzv_backend=c10d', '--rdzv_endpoint=127.0.0.1:{port}', '--rdzv_id=test',
    ],
}  # fmt: skip


@pytest.mark.slow
def test_every_stage_runs_on_eight_ranks(run_program, world, tmp_path):  # noqa: F811
    """On a small data set: each rank reads all of it."""
    for stage in report.ORDER:
        command = ['train.py', f'--stage={stage}', *SMOKE, '--max_iters=2', '--eval_interval=0']
        command += [f'--dataset={world.folder / FOLDERS[stage]}', '--eval_problems=1']
        command += ['--max_new_tokens=8', '--rl_tokens=8', '--block_size=64']
        # torchrun itself once: each of its processes imports torch
        run_program(*command, ranks=8, cwd=tmp_path, fresh=stage == 'pretrain')
        assert trained(tmp_path / f'out/smoke/{stage}')['step'] == 2


def free_port():
    """A free port below those that the system hands out by itself, so nobody takes it before it is
    used."""
    limits = Path('/proc/sys/net/ipv4/ip_local_port_range').read_text(encoding='utf-8')
    while True:
        port = random.randrange(1024, int(limits.split()[0]))
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(('127.0.0.1', port))
            return port


@pytest.fixture
def launch(tmp_path):
    """launch('static', out) starts the agents of its nodes, each with two workers; wait() waits for
    all to end."""
    agents = []

    def start(kind, out):
        port = free_port()
        for node in range(1 if kind == 'one' else 2):
            place = [option.format(node=node, port=port) for option in NODES[kind]]
            command = [sys.executable, '-m', 'torch.distributed.run', *place, '--nproc_per_node=2']
            command += ['--max-restarts=3', str(ROOT / 'train.py'), *SMOKE, *SHORT]
            agent = subprocess.Popen(
                [*command, f'--out_dir={out}'], cwd=tmp_path, env=environment_of({}),
                stdout=(tmp_path / f'{out}{node}.txt').open('wb'), stderr=subprocess.STDOUT,
            )  # fmt: skip
            agents.append(agent)

    def wait(out):
        statuses = [agent.wait(1200) for agent in agents]
        texts = [path.read_text(encoding='utf-8') for path in tmp_path.glob(f'{out}?.txt')]
        assert not any(statuses), '\n'.join(map(tail, texts))
        agents.clear()

    start.wait = wait
    yield start
    for agent in agents:  # after a failure; SIGTERM ends the workers too
        agent.terminate()
        agent.wait()


def process_of(rank, out):
    """The process that trains into `out` as this rank."""
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            command, variables = (
                open(f'/proc/{name}/{file}', 'rb').read().split(b'\0')
                for file in ('cmdline', 'environ')
            )
        except OSError:  # it has ended
            continue
        if f'--out_dir={out}'.encode() in command and f'RANK={rank}'.encode() in variables:
            return int(name)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'undisturbed', 'kills'), [('one', '', 2), ('c10d', 'static', 1)])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    launch, run_program, tmp_path, kind, undisturbed, kills
):
    """kill -9 at a random step. The others end, although a dead rank does not answer them; a new
    rank 0 gets the lock of out_dir; the result is that of an undisturbed run."""
    # 1) Undisturbed
    straight, out = tmp_path / 'straight', tmp_path / 'killed'
    if undisturbed:
        launch(undisturbed, 'straight')
        launch.wait('straight')
    else:
        run_program('train.py', *SMOKE, *SHORT, '--out_dir=straight', ranks=2, cwd=tmp_path)
    # 2) Killed
    rng = random.Random(kind)
    launch(kind, 'killed')
    for victim in rng.sample(range(2 if kind == 'one' else 4), kills):
        written = len(learned(out)) if (out / 'ckpt.pt').exists() else 0
        steps = written + rng.randint(8, 14)
        deadline = time.monotonic() + 600
        while not (out / 'log.jsonl').exists() or len(learned(out)) < steps:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process_of(victim, 'killed'), signal.SIGKILL)
    # 3) Compare
    launch.wait('killed')
    assert_same_bits(trained(out), trained(straight))
    assert learned(out) == learned(straight)


# -----------------------------------------------------------------------------
# speedrun.sh in miniature: the real scripts in a copy of the tree, a hub of a few rows, and the
# configs of a model that trains in seconds

COMMON = """
auto_resume = True
init_from = '{before}'
out_dir = 'out/d2/{stage}'
dataset = '{dataset}'
eval_iters = 1
eval_problems = 1
eval_interval = 6
save_interval = 3
log_interval = 1
max_new_tokens = 4
dropout = 0.1
"""
CONFIGS = {
    '': "n_layer = 2\nn_head = 2\nn_embd = 32\nblock_size = 512\nbatch_size = 2\nmax_iters = 12\n",
    '_mid': "stage = 'mid'\nbatch_size = 4\nmax_iters = 9\n",
    '_sft': "stage = 'sft'\nbatch_size = 4\nmax_iters = 9\n",
    '_rl': "stage = 'rl'\nbatch_size = 4\nmax_iters = 6\nrl_samples = 2\nrl_tokens = 4\n",
    '_data': 'num_shards = 4\nfirst_shards = 2\nnum_workers = 1\n',
    '_tokenizer': (
        "vocab_size = 600\nmax_chars = 1_000_000\nnum_workers = 1\n"
        "input = 'data/fineweb_edu/raw/shard_0000[01].parquet'\n"
        f"special = '{','.join(SPECIAL)}'\n"
    ),
}  # fmt: skip
DATASETS = {
    'pretrain': 'fineweb_edu',
    'mid': 'smoltalk,mmlu,gsm8k,identity:2,spelling',
    'sft': 'arc,gsm8k,smoltalk/10k,identity,spelling/small',
    'rl': 'gsm8k',
}
DATA_MARKS = (
    'first-shards tokenizer shards core humaneval mmlu arc gsm8k identity spelling smoltalk '
    'smoltalk-10k spelling-small'
).split()
MARKS = [
    *DATA_MARKS,
    *(mark for stage in DATASETS for mark in (stage, f'{stage}-exam', f'{stage}-report')),
]
WORDS = (
    'lighthouse keeper ships harbour water stone bread winter summer apple river mountain garden '
    'letter window morning evening teacher doctor market silver copper orange yellow'
).split()


def shard_texts(i):
    rng = random.Random(i)
    return [' '.join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(40)]


def parquet(rows):
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def fill(hub):  # noqa: F811
    """Rows of the true form for every set that speedrun.sh asks for."""
    choices = ['ships', 'bread', 'stone', 'water']
    chat = [
        dict(role='user', content='Name a colour.'),
        dict(role='assistant', content='Orange.'),
    ]
    arc = dict(choices=dict(text=choices, label=list('ABCD')), answerKey='D')
    mmlu = dict(subject='cooking', choices=choices, answer=1)
    program = dict(
        prompt='def one():\n    """1"""\n', canonical_solution='    return 1\n',
        test='def check(f):\n    assert f() == 1\n', entry_point='one',
    )  # fmt: skip

    def put(repo, subset, splits, row, count=6):
        for split in splits:
            rows = [row(f'{split} {i}', i) for i in range(count)]
            hub.split(repo, subset, split, [parquet(rows)])

    hub.tree(
        'karpathy/fineweb-edu-100b-shuffle',
        [parquet([dict(text=text) for text in shard_texts(i)]) for i in range(6)],
    )
    splits = ('train', 'test')
    put('HuggingFaceTB/smol-smoltalk', 'default', splits, lambda q, i: dict(messages=chat))
    splits = ('auxiliary_train', 'validation', 'test')
    put('cais/mmlu', 'all', splits, lambda q, i: dict(mmlu, question=q))
    for subset in ('ARC-Easy', 'ARC-Challenge'):
        splits = ('train', 'validation', 'test')
        put('allenai/ai2_arc', subset, splits, lambda q, i: dict(arc, question=q))
    worked = 'That is <<{0}+1={1}>>{1}.\n#### {1}'
    splits = ('train', 'test')
    put(
        'openai/gsm8k', 'main', splits,
        lambda q, i: dict(question=f'{q} apples and one more?', answer=worked.format(i, i + 1)),
    )  # fmt: skip
    put(
        'openai/openai_humaneval', 'openai_humaneval', ['test'],
        lambda q, i: dict(program, task_id=f'Test/{i}'), count=1,
    )  # fmt: skip


CORE = {
    'core.yaml': (
        'icl_tasks:\n-\n  label: colours\n  dataset_uri: world/colours.jsonl\n'
        '  num_fewshot: [1]\n  icl_task_type: multiple_choice\n'
    ),
    'eval_meta_data.csv': 'Eval Task,Random baseline\ncolours,50\n',
    'eval_data/world/colours.jsonl': 4
    * '{"query": "An orange is", "choices": ["orange", "silver"], "gold": 0}\n',
}


@pytest.fixture
def clone(hub, server, oracle, tmp_path):  # noqa: F811
    """A copy of the tree with the configs of d2, and the environment of a call."""
    oracle('pyarrow')
    folder = tmp_path / 'clone'
    patterns = ('*.py', '*.sh', 'config/*.py', 'data/*.py', 'data/*/*.py', 'data/*/*.txt')
    for path in itertools.chain(*map(ROOT.glob, patterns)):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    before = 'scratch'
    for stage, dataset in DATASETS.items():
        part = '' if stage == 'pretrain' else f'_{stage}'
        common = COMMON.format(before=before, stage=stage, dataset=dataset)
        (folder / f'config/d2{part}.py').write_text(common + CONFIGS[part], encoding='utf-8')
        before = f'out/d2/{stage}'
    for part in ('_data', '_tokenizer'):
        (folder / f'config/d2{part}.py').write_text(CONFIGS[part], encoding='utf-8')
    fill(hub)
    bundle = folder / 'data/core/raw/eval_bundle.zip'  # put there by hand: it has one address only
    bundle.parent.mkdir()
    with zipfile.ZipFile(bundle, 'w') as archive:
        for path, text in CORE.items():
            archive.writestr(f'eval_bundle/{path}', text)
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    variables = dict(PATH=path, HF_ENDPOINT=server.address, NPROC_PER_NODE=1, SPEEDRUN=folder)
    return folder, environment_of(variables)


def kill_all(marked):
    """kill -9 of every process with this in its environment, until there is none."""
    found = True
    while found:
        found = False
        for name in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open(f'/proc/{name}/environ', 'rb') as file:
                    variables = file.read().split(b'\0')
                if marked.encode() in variables:
                    found = True
                    os.kill(int(name), signal.SIGKILL)
            except OSError:  # it has ended
                continue


def test_speedrun_names_a_config_that_is_missing(tmp_path):
    done = subprocess.run(
        ['bash', ROOT / 'speedrun.sh', 'none'], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and not (ROOT / 'out/none').exists()
    assert done.stderr.startswith('config/none.py does not exist, expected one file for each part')


@pytest.mark.parametrize('name', ['speedrun_d20', 'd32'])
def test_the_tokenizer_of_a_speedrun_reads_its_first_shards(name):
    """Other shards arrive while it reads."""
    config = f'{ROOT}/config/{name}'
    shards = configure(
        read_defaults(ROOT / 'data/fineweb_edu/prepare.py'), argv=[f'{config}_data.py']
    )
    tokenizer = configure(read_defaults(ROOT / 'tokenizer.py'), argv=[f'{config}_tokenizer.py'])
    files = [f'data/fineweb_edu/raw/shard_{i:05d}.parquet' for i in range(shards['num_shards'])]
    assert fnmatch.filter(files, tokenizer['input']) == files[: shards['first_shards']]
    assert tokenizer['max_chars'] <= 250_000_000 * shards['first_shards']


@pytest.mark.slow
def test_speedrun_killed_three_times_and_called_again(clone, run_program, tmp_path):
    """From nothing to the report; the weights are those of stages that were not disturbed."""
    folder, environment = clone
    done = folder / 'out/d2/done'
    said = tmp_path / 'said.txt'

    def call():
        return subprocess.Popen(
            ['bash', folder / 'speedrun.sh', 'd2'], cwd=tmp_path, env=environment,
            stdout=said.open('ab'), stderr=subprocess.STDOUT,
        )  # fmt: skip

    # 1) Kill it after some parts: once among the data, twice among the stages
    rng = random.Random(5)
    stages = range(len(DATA_MARKS), len(MARKS) - 1)
    for parts in (rng.randrange(len(DATA_MARKS)), *sorted(rng.sample(stages, 2))):
        process = call()
        deadline = time.monotonic() + 1200
        while not done.exists() or len(list(done.iterdir())) < parts:
            assert process.poll() is None, tail(said.read_text(encoding='utf-8'))
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))  # into the middle of the next part, or of a later one
        kill_all(f'SPEEDRUN={folder}')
        process.wait()

    # 2) Call it again: it continues, and a further call does nothing
    assert call().wait(1200) == 0, tail(said.read_text(encoding='utf-8'))
    assert sorted(path.name for path in done.iterdir()) == sorted(MARKS)
    trains = [line for line in said.read_text(encoding='utf-8').splitlines() if '---- ' in line]
    assert call().wait(1200) == 0
    again = [line for line in said.read_text(encoding='utf-8').splitlines() if '---- ' in line]
    assert again == trains and (folder / 'out/d2/report.md').exists()

    # 3) The same stages, undisturbed
    texts = [text for i in (0, 1) for text in shard_texts(i)]
    expected = tokenizers.train_bpe(texts, 600, SPECIAL)
    assert tokenizers.load(folder / 'out/d2/tok.json').hash == expected.hash
    for stage in DATASETS:
        part = '' if stage == 'pretrain' else f'_{stage}'
        run_program(
            folder / 'train.py', f'config/d2{part}.py', f'--out_dir=straight/{stage}', cwd=folder
        )
        straight = folder / 'straight' / stage
        assert_same_bits(trained(folder / 'out/d2' / stage), trained(straight))
        assert learned(folder / 'out/d2' / stage) == learned(straight)
