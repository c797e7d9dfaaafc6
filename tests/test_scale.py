"""Many processes as a user starts them: eight ranks, two nodes, workers that are killed; and
speedrun.sh from a blank machine to the report."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import LINUX, ROOT, environment_of, tail
from test_train import assert_same_bits, learned, trained

import report

pytestmark = pytest.mark.skipif(not LINUX, reason='torchrun and /proc')
SMOKE = [str(ROOT / 'config' / 'smoke.py'), '--device=cpu']
# a step is a line of the log, and every seventh is saved
SHORT = ['--auto_resume=True', '--max_iters=40', '--eval_interval=20', '--eval_iters=1']
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
def test_every_stage_runs_on_eight_ranks(run_program, tmp_path):
    for stage in report.ORDER:
        # torchrun itself once: each of its processes imports torch
        command = ['train.py', f'--stage={stage}', *SMOKE, '--max_iters=4', '--eval_interval=0']
        command += ['--eval_problems=1', '--max_new_tokens=8']
        run_program(*command, ranks=8, cwd=tmp_path, fresh=stage == 'pretrain')
        assert trained(tmp_path / f'out/smoke/{stage}')['step'] == 4


@pytest.fixture
def launch(tmp_path):
    """launch('static', out) starts the agents of its nodes, each with two workers; wait() waits for
    all to end."""
    agents = []

    def start(kind, out):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
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
        statuses = [agent.wait(300) for agent in agents]
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
@pytest.mark.parametrize(('kind', 'undisturbed'), [('one', ''), ('c10d', 'static')])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    launch, run_program, tmp_path, kind, undisturbed
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
    for victim in rng.sample(range(2 if kind == 'one' else 4), 2):
        written = len(learned(out)) if (out / 'ckpt.pt').exists() else 0
        steps = written + rng.randint(8, 14)
        deadline = time.monotonic() + 120
        while not (out / 'log.jsonl').exists() or len(learned(out)) < steps:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process_of(victim, 'killed'), signal.SIGKILL)
    # 3) Compare
    launch.wait('killed')
    assert_same_bits(trained(out), trained(straight))
    assert learned(out) == learned(straight)
