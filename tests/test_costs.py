"""costs.py: the plan of a run, and the smaller command that a refusal prints."""

import re
import shlex
import sys

import pytest
import torch
from conftest import LINUX, ROOT, train_defaults

import costs
import plan
import runtime
from configurator import configure
from model import GPT, PRESETS, GPTConfig

H100S = costs.Target('H100', 8, 'cuda', 'bfloat16', True, 989e12)
D20 = (
    '--preset=nano', '--depth=20', '--block_size=2048', '--batch_size=32',
    '--gradient_accumulation_steps=8', '--target_param_data_ratio=20', '--dataset=nowhere',
)  # fmt: skip
D32 = (*D20, '--depth=32', '--batch_size=8', '--gradient_accumulation_steps=32')


def configured(*argv):
    return configure(train_defaults(), derive=plan.derive, argv=list(argv))


def rows_of(text):
    """{name: number} of the table; memory by its term."""
    found = {}
    for line in text.splitlines():
        name, number, note = line[:10].strip(), line[11:26].strip(), line[28:]
        found[name or note.split(':')[0]] = number
    return found


@pytest.mark.parametrize('argv, parameters, tokens, steps, shards', [
    (D20, 560_988_160, '11.22B', '21,400', '215'),
    (D32, 1_879_048_192, '37.58B', '71,680', '722'),
])  # fmt: skip
def test_d20_and_d32_have_nanochats_size_and_length(
    tmp_path, argv, parameters, tokens, steps, shards
):
    rows = rows_of(costs.table(configured(*argv), tmp_path, H100S))
    assert rows['parameters'] == f'{parameters:,}'
    kinds = ('embedding', 'head', 'attention', 'MLP')
    assert sum(int(rows[kind].replace(',', '')) for kind in kinds) == parameters
    assert (rows['tokens'], rows['steps'], rows['shards']) == (tokens, steps, shards)


@pytest.mark.parametrize('argv, simulated, update', [(D20, 73.027, 3.923), (D32, 52.384, 12.886)])
def test_memory_agrees_with_the_simulated_gpu(argv, simulated, update):
    """docs/gpu.md: tensors at the peak of a first micro-batch, before there are moments."""
    settings = configured(*argv)
    model, optimizer = costs.build(settings, costs.VOCAB_SIZE, H100S)
    terms = {
        name: size / 1e9
        for name, (size, _) in costs.memory(model, optimizer, settings, H100S).items()
    }
    first = terms['backward'] - terms['moments'] - terms['gradients']
    assert first == pytest.approx(simulated, rel=0.05)
    in_step = costs.update_bytes(optimizer)[1] / 1e9 + terms['weights'] + terms['moments']
    assert in_step == pytest.approx(update, rel=0.01)
    assert terms['peak'] < 80


@pytest.mark.parametrize('preset', PRESETS)
def test_activations_are_those_that_autograd_keeps(preset):
    shape = dict(n_head=4, n_kv_head=2, n_embd=64, block_size=64, vocab_size=256)
    config = GPTConfig(**{**PRESETS[preset], **shape}, n_layer=3)
    model = GPT(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(4, 64, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        x = model.hidden(ids)
    counted = costs.activations(config, 4 * 64, 4, compiled=False)
    assert counted == pytest.approx(sum(kept.values()), rel=0.1)
    assert x.requires_grad


def test_who_is_planned_for(monkeypatch):
    target = costs.planned_target(configured('--plan_gpus=2xT4'), runtime.Ranks())
    assert (target.name, target.count, target.dtype, target.peak) == ('T4', 2, 'float16', 65e12)
    assert costs.planned_target(configured(), runtime.Ranks(0, 0, 4, 4)).count == 4
    target = costs.planned_target(configured('--device=cpu'), runtime.Ranks())
    assert (target.device, target.dtype, target.peak) == ('cpu', 'float32', None)
    with pytest.raises(SystemExit, match="plan_gpus is '8 cards', expected .* such as 8xH100"):
        costs.planned_target(configured('--plan_gpus=8 cards'), runtime.Ranks())


def test_time_and_cost_follow_from_the_mfu(tmp_path):
    rows = rows_of(costs.table(configured(*D20, '--plan_mfu=0.5'), tmp_path, H100S))
    hours = 6 * 560_988_160 * 21_400 * 2**19 / (8 * 989e12 * 0.5) / 3600  # without attention
    assert 1 < float(rows['time']) / hours < 1.1
    assert rows['cost'] == f'${float(rows["time"]) * 24:.0f}'


@pytest.mark.slow
def test_a_plan_needs_no_data_and_writes_nothing(run_program, tmp_path):
    done = run_program('train.py', *D20, '--plan=True', f'--out_dir={tmp_path / "out"}', ranks=2)
    assert done.stdout.count('FLOPs  ') == 1 and '2 x H100' in done.stdout
    assert 'assumed: nowhere is not here' in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_lack_of_memory_shows_the_table_and_a_smaller_run(monkeypatch, capsys, tmp_path):
    settings = configured(*D20)
    monkeypatch.setattr(runtime, 'memory', lambda device: 4 * 2**30)
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config/mine.py', '--sample_prompts=a b'])
    machine = runtime.Machine('cpu', 'float32', False, '', '')
    with pytest.raises(SystemExit) as stop:
        with costs.shown_if_refused(
            costs.of_this_machine(settings, tmp_path, machine, runtime.Ranks())
        ):
            config = costs.build(settings, costs.VOCAB_SIZE, H100S)[0].config
            plan.check_memory(config, settings, 'cpu', 'float32', runtime.Ranks())
    first, *_, command = stop.value.code.splitlines()
    assert 'cpu has 4.0 GiB' in first and '560,988,160' in stop.value.code
    assert command == f"python train.py config/mine.py '--sample_prompts=a b' {costs.SMALLER}"


@pytest.mark.slow
def test_the_smaller_run_that_is_printed_works(run_program, tmp_path):
    """The speedrun's config, with data that are not prepared."""
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/prepare.py').write_text('', encoding='utf-8')
    given = ['config/speedrun_d20.py', f'--dataset={tmp_path / "mine"}', '--eval_iters=2']
    given += ['--sample_prompts=']
    config = ROOT / given[0]
    (tmp_path / 'config').mkdir()
    (tmp_path / given[0]).write_bytes(config.read_bytes())
    refused = run_program('train.py', *given, cwd=tmp_path, check=False)
    assert refused.returncode == 1 and 'run: python' in refused.stderr
    assert '560,988,160' in refused.stderr
    _, program, *arguments = shlex.split(refused.stderr.splitlines()[-1])
    assert arguments == [*given, *costs.SMALLER.split()]
    done = run_program(program, *arguments, cwd=tmp_path)
    assert 'step 20/20 | val' in done.stdout


SIZES = {
    'small': ('--depth=4', '--block_size=512', '--batch_size=4'),
    'deep': ('--depth=6', '--block_size=256', '--batch_size=2'),
    'long': ('--depth=4', '--block_size=1024', '--batch_size=8', '--cpu_micro_batch_size=8'),
}
MEASURE = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
runpy.run_path({root!r} + '/train.py', run_name='__main__')
print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
"""  # not ru_maxrss, which a process inherits from the one that started it


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason='reads /proc')
@pytest.mark.parametrize('size', SIZES)
def test_the_peak_on_a_cpu_is_planned_within_20_percent(run_program, tmp_path, size):
    """Two steps: the moments exist in the second."""
    args = [
        *SIZES[size], '--gradient_accumulation_steps=1', '--target_param_data_ratio=0',
        '--max_iters=2', '--eval_interval=0', '--eval_iters=1', '--sample_prompts=',
        '--device=cpu', f'--out_dir={tmp_path / "out"}',
    ]  # fmt: skip
    (tmp_path / 'measure.py').write_text(MEASURE.format(root=str(ROOT)), encoding='utf-8')
    # fresh, since a fork shares the memory of what it has not written to
    done = run_program(tmp_path / 'measure.py', 'train.py', *args, fresh=True)
    measured = 1024 * int(done.stdout.split()[-1]) / 1e9
    planned = run_program('train.py', *args, '--plan=True').stdout
    assert float(re.search(r'([\d.]+)  peak:', planned)[1]) == pytest.approx(measured, rel=0.2)
