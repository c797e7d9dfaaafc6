"""dev/dial.py: which runs it makes, what it reads off them, and one small dial turned for real."""

import json
import random

import dial
import numpy as np
import pytest
from dial import Depth, Run

from shards import Writer
from tokenizer import train_bpe


def test_every_rate_once_and_more_seeds_of_the_derived_one():
    runs = dial.wanted([2, 1, 3], [0.5, 1.0], [7, 8, 9])
    assert len(runs) == len(set(runs)) == 3 * 2 + 3 * 2
    assert {run for run in runs if run.seed == 7} == {
        Run(d, f, 7) for d in (1, 2, 3) for f in (0.5, 1.0)
    }
    assert {run for run in runs if run.seed != 7} == {
        Run(d, 1.0, s) for d in (1, 2, 3) for s in (8, 9)
    }


def test_the_rate_of_a_run_is_the_dials():
    assert Run(3, 0.5, 1).rate == pytest.approx(Run(3, 1.0, 1).rate / 2)


def test_a_power_law_is_found_exactly_and_its_residual_is_the_largest_miss():
    sizes = [80_000, 500_000, 1_400_000, 9_000_000]
    a, b, residual = dial.power_law(sizes, [9.5 * n**-0.13 for n in sizes])
    assert (a, b) == pytest.approx((9.5, 0.13)) and residual < 1e-12
    rng = random.Random(1)
    losses = [9.5 * n**-0.13 * rng.uniform(0.9, 1.1) for n in sizes]
    a, b, residual = dial.power_law(sizes, losses)
    misses = [abs(loss / (a * n**-b) - 1) for n, loss in zip(sizes, losses)]
    assert residual == pytest.approx(max(misses)) and residual > 0.01
    total = lambda a, b: sum(np.log(loss / (a * n**-b)) ** 2 for n, loss in zip(sizes, losses))
    for da, db in (
        (1.01, 0),
        (0.99, 0),
        (1, 0.001),
        (1, -0.001),
    ):  # least squares: every step from there is uphill
        assert total(a * da, b + db) > total(a, b)


def test_the_table_says_which_rate_is_best_and_how_many_depths_are_near_it():
    factors = [0.5, 0.71, 1.0, 1.41, 2.0]
    near = Depth(1, 80_000, 1.7e6, dict(zip(factors, (2.3, 2.2, 2.1, 2.0, 2.2))), [2.1, 2.3])
    far = Depth(2, 500_000, 9e6, {1.0: 1.9, 2.0: 1.8}, [1.9])
    lines = dial.show([near, far], factors)
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in lines
        if line.startswith('|')
    ]
    assert len({len(row) for row in cells}) == 1 and set(cells[1]) == {'--:'}
    assert cells[2][:3] == ['1', '80,000', '1.7 M']
    assert cells[2][3:8] == ['2.3000', '2.2000', '2.1000', '2.0000', '2.2000']
    assert cells[2][8:] == ['x 1.41', '2.2000 +- 0.1414 (2)']
    assert cells[3][3:] == ['-', '-', '1.9000', '-', '1.8000', 'x 2', '-']
    assert any('1 of 2.' in line for line in lines) and not any(
        'parameters^' in line for line in lines
    )
    assert any(
        'parameters^-0.' in line
        for line in dial.show([near, far, Depth(3, 10**6, 3e7, {1.0: 1.7}, [1.7])], factors)
    )


def test_what_cannot_be_is_said_before_hours_of_training(monkeypatch, tmp_path, oracle):
    oracle('matplotlib')
    (tmp_path / 'file').write_bytes(b'')
    for setting, value, said in (
        ('seeds', '1,-1', 'seeds is -1, expected at least 0'),
        ('out_dir', str(tmp_path / 'file'), f'out_dir {tmp_path / "file"} cannot be written'),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(dial, 'carry_out', lambda run, pool: pytest.fail('it began'))
            patch.setattr(dial, setting, value)
            dial.main()
        assert said in str(stop.value.code)


@pytest.mark.slow
def test_a_small_dial_is_trained_once_and_drawn(tmp_path, run_program, oracle):
    oracle('matplotlib')
    text, data, out = 'the cat sat on the mat. ' * 200, tmp_path / 'tiny', tmp_path / 'out'
    tokenizer = train_bpe([text], 257, ('<|bos|>',))
    with Writer(data, tokenizer) as writer:
        for split in ('train', 'val'):
            writer.write(split, tokenizer.encode(text), len(text))
    args = (
        f'--dataset={data}',
        f'--out_dir={out}',
        '--depths=1',
        '--factors=1,2',
        '--seeds=1',
        '--jobs=2',
    )
    args += ('--target_param_data_ratio=0.7', '--block_size=32')
    done = run_program('dev/dial.py', *args, cwd=tmp_path)
    logs = {path: path.read_bytes() for path in out.glob('*/log.jsonl')}
    assert sorted(path.parent.name for path in logs) == ['d1_rate1_seed1', 'd1_rate2_seed1']
    for log in logs.values():
        (loss,) = [row['val'] for row in map(json.loads, log.splitlines()) if 'val' in row]
        assert done.stdout.count(f'{loss:.4f}') == 2  # when it is there, and in the table
    assert (out / 'dial.png').read_bytes().startswith(b'\x89PNG') and '![' in (
        out / 'dial.md'
    ).read_text()
    # the rate is the one that train.py derives
    few = ('--depth=1', '--batch_size=16', '--block_size=32', '--target_param_data_ratio=0.7')
    few += (f'--dataset={data}', f'--out_dir={tmp_path / "plain"}', '--sample_prompts=')
    run_program('train.py', *few, cwd=tmp_path)
    first = [json.loads(open(log).readline()) for log in (*logs, tmp_path / 'plain/log.jsonl')]
    rates = [row['config']['learning_rate'] for row in first]
    assert rates[-1] == min(rates) and max(rates) == pytest.approx(2 * min(rates))
    again = run_program('dev/dial.py', *args, cwd=tmp_path)
    assert {
        path: path.read_bytes() for path in out.glob('*/log.jsonl')
    } == logs  # what is there is not trained again
    other = run_program('dev/dial.py', *args, '--block_size=64', cwd=tmp_path, check=False)
    assert other.returncode == 1 and 'block_size=32, expected 64' in other.stderr
    assert [line for line in again.stdout.splitlines() if line.startswith('|')] == [
        line for line in done.stdout.splitlines() if line.startswith('|')
    ]


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(tmp_path, run_program, oracle):
    oracle('matplotlib')
    done = run_program(
        'dev/dial.py', '--train=False', f'--out_dir={tmp_path}', cwd=tmp_path, check=False
    )
    assert (
        done.returncode == 1
        and done.stderr.strip().endswith('python dev/dial.py')
        and done.stderr.count('\n') == 1
    )
    done = run_program('dev/dial.py', '--jobs=0', cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'jobs is 0' in done.stderr and done.stderr.count('\n') == 1
    done = run_program('dev/dial.py', '--depths=1;2', cwd=tmp_path, check=False)
    assert done.returncode == 1 and "'1;2'" in done.stderr
    done = run_program('dev/dial.py', '--factors=0.5,2', cwd=tmp_path, check=False)
    assert done.returncode == 1 and "'0.5,2'" in done.stderr
    args = (
        '--depths=1',
        '--factors=1,2',
        f'--dataset={tmp_path / "nothing"}',
        f'--out_dir={tmp_path / "out"}',
    )
    done = run_program('dev/dial.py', *args, cwd=tmp_path, check=False)
    assert done.returncode == 1 and 'output.txt' in done.stderr and done.stderr.count('\n') == 1
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [
        'd1_rate1_seed1'
    ]  # the next one has not begun
