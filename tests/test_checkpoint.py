"""checkpoint.py: what survives a crash, what is refused, which settings a run inherits."""

import errno
import hashlib
import os
import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import LINUX, ROOT, is_mapped, one_line, train_defaults

import checkpoint
import disk
import runlog
import tokenizer as tokenizers
from checkpoint import inherit
from model import GPT, PRESETS, GPTConfig


def state_of(step=1, **changes):
    model = {'a': torch.arange(5000.0), 'b': torch.tensor([float('nan'), -0.0])}
    state = dict(
        model=model, model_config={'n_layer': 2}, tokenizer={'kind': 'char', 'characters': 'äb'}
    )
    return {
        **state,
        'stage': 'pretrain',
        'step': step,
        'config': {'out_dir': 'ö ä', 'compile': None},
        **changes,
    }


@pytest.fixture
def path(tmp_path):
    """The path of a checkpoint, in a folder whose name has a space and a letter outside ASCII."""
    folder = tmp_path / 'my rün'
    folder.mkdir()
    return folder / 'ckpt.pt'


# ---- save and load


def test_a_checkpoint_comes_back_as_it_was(path):
    state = state_of(
        optimizer={'groups': [{'exp_avg': torch.randn(3, dtype=torch.float64)}]}, kept={}, best=1.5
    )
    checkpoint.save(path, state)
    back = checkpoint.load(str(path))
    bits = [(tensor.dtype, tensor.numpy().tobytes()) for tensor in back['model'].values()]
    assert bits == [(tensor.dtype, tensor.numpy().tobytes()) for tensor in state['model'].values()]
    moments = [made['optimizer']['groups'][0]['exp_avg'] for made in (back, state)]
    assert torch.equal(*moments)
    same = set(state) - {'model', 'optimizer'}
    assert set(back) == set(state)
    assert {name: back[name] for name in same} == {name: state[name] for name in same}
    assert [p.name for p in path.parent.iterdir()] == ['ckpt.pt']


def test_a_small_copy_has_the_weights_in_half_precision_and_no_optimizer(path):
    state = state_of(
        optimizer={'moments': torch.ones(9)},
        kept={'reference': torch.ones(9)},
        about={'about': 'a'},
    )
    checkpoint.save(path, state)
    small = path.with_name('small.pt')
    checkpoint.shrink(path, small)
    back = checkpoint.load(small)
    assert 'optimizer' not in back and 'kept' not in back and back['about'] == {'about': 'a'}
    for name, t in state['model'].items():
        half = t.half() if t.is_floating_point() else t
        # bytes, because NaN is not equal to itself
        assert back['model'][name].numpy().tobytes() == half.numpy().tobytes()


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def cut_at(share):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


DAMAGES = {
    'empty': cut_at(0),
    'cut at the start': cut_at(0.001),
    'cut in the middle': cut_at(0.5),
    'cut at the end': cut_at(0.999),
    'text': lambda path: path.write_bytes('kein Punkt für später\n'.encode()),
    'zeros': lambda path: path.write_bytes(b'\0' * 1000),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_file_is_named(path, damage, mmap):
    checkpoint.save(path, state_of())
    DAMAGES[damage](path)
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(path, mmap)
    one_line(stop, path, 'not a whole checkpoint', '--out_dir')


@pytest.mark.skipif(not LINUX, reason='other systems have Unicode file names')
def test_a_name_that_is_not_utf8_is_loaded_too(tmp_path):
    folder = tmp_path / 'caf\udce9'  # a byte of Latin-1
    folder.mkdir()
    for step, name in enumerate(('ckpt.pt', 'best.pt')):
        checkpoint.save(folder / name, state_of(step, best=0.5))
    assert checkpoint.load(folder / 'best.pt', mmap=True)['step'] == 1
    assert checkpoint.choose(folder).name == 'best.pt' and checkpoint.best_of(folder) == 0.5


@pytest.mark.parametrize('content', [{'model': {}}, [1, 2], torch.zeros(3), {}])
def test_a_file_of_another_program_is_named(path, content):
    torch.save(content, path)
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(path)
    one_line(stop, path, 'not a checkpoint of this project', 'model_config', 'tokenizer')


def test_a_missing_file_is_named_with_what_makes_one(path):
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(path)
    one_line(stop, path, f'python train.py --out_dir={path.parent}')


@pytest.mark.parametrize(
    'how', [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))]
)
def test_code_in_a_checkpoint_is_refused_and_never_run(path, how):
    mark = path.parent / 'was here'
    how(state_of(config={'a': Evil(mark)}), path)
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(path)
    one_line(stop, path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if how is torch.save else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file was able to do it


# ---- a full disk


class FullDisk:
    """A file on a disk with this much room left, in bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize('room', [0, 100, 5000, 20000])
def test_a_full_disk_keeps_the_old_checkpoint(path, monkeypatch, room):
    checkpoint.save(path, state_of(step=1))
    assert path.stat().st_size > 20000
    with monkeypatch.context() as patch:
        patch.setattr(
            disk, 'open', lambda *arguments: FullDisk(open(*arguments), room), raising=False
        )
        with pytest.raises(SystemExit) as stop:
            checkpoint.save(path, state_of(step=2))
    one_line(stop, path, 'cannot be written (No space left on device)', 'free some space')
    assert [p.name for p in path.parent.iterdir()] == ['ckpt.pt']
    assert checkpoint.load(path)['step'] == 1
    checkpoint.save(path, state_of(step=3))
    assert checkpoint.load(path)['step'] == 3


@pytest.mark.skipif(
    not Path('/dev/full').exists(), reason='needs /dev/full, a device that is always full'
)
@pytest.mark.parametrize('size', [10, 3_000_000])
def test_a_really_full_disk_keeps_the_old_checkpoint(path, size):
    checkpoint.save(path, state_of(step=1))
    path.with_name(f'ckpt.pt.{os.getpid()}.part').symlink_to('/dev/full')
    with pytest.raises(SystemExit) as stop:
        checkpoint.save(path, state_of(step=2, model={'a': torch.zeros(size)}))
    one_line(stop, path, 'cannot be written (No space left on device)', 'free some space')
    assert [p.name for p in path.parent.iterdir()] == ['ckpt.pt']
    assert checkpoint.load(path)['step'] == 1


LIMITED = """
import resource
import sys

import torch

import checkpoint

resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # no file may grow beyond 1 MB
checkpoint.save(sys.argv[1], dict(model={'a': torch.zeros(2**20)}))
"""


@pytest.mark.skipif(
    not sys.platform.startswith('linux'), reason='sets a limit on file sizes as on Linux'
)
def test_a_real_failure_half_way_keeps_the_old_checkpoint(path, run_program):
    """The kernel refuses to write more than one of four megabytes."""
    checkpoint.save(path, state_of(step=1))
    script = path.with_name('save.py')
    script.write_text(LIMITED, encoding='utf-8')
    done = run_program(
        script, path, check=False, env={'PYTHONPATH': Path(checkpoint.__file__).parent}
    )
    assert done.returncode == 1
    assert done.stderr.strip().count('\n') == 0, done.stderr
    assert f'{path} cannot be written' in done.stderr, done.stderr
    assert sorted(p.name for p in path.parent.iterdir()) == ['ckpt.pt', 'save.py']
    assert checkpoint.load(path)['step'] == 1


# ---- folders


def test_newest_is_the_one_written_last(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    times = {
        'out/ckpt.pt': 50,
        'out/x y/ckpt.pt': 40,
        'out/ä/ckpt.pt': 60,
        'out-shakespeare/ckpt.pt': 55,
    }
    times |= {'out/x y/deeper/ckpt.pt': 58}
    elsewhere = {
        'outer/ckpt.pt': 99,
        'out/a/b/deepest/ckpt.pt': 98,
        'ckpt.pt': 97,
        'out/ä/best.pt': 96,
    }
    for name, time in {**times, **elsewhere}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
        os.utime(tmp_path / name, (time, time))
    for name in sorted(times, key=times.get, reverse=True):
        assert checkpoint.newest(tmp_path) == tmp_path / name
        (tmp_path / name).unlink()
    assert checkpoint.newest(tmp_path) is None


def test_an_out_dir_that_cannot_be_made_is_named(tmp_path):
    for _ in range(2):
        checkpoint.claim(tmp_path / 'ä' / 'b c').release()
    assert (tmp_path / 'ä' / 'b c').is_dir() and not list((tmp_path / 'ä' / 'b c').iterdir())
    (tmp_path / 'file').write_bytes(b'')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(SystemExit) as stop:
            checkpoint.claim(place)
        one_line(stop, f'out_dir {place} cannot be written')


def test_only_what_a_killed_run_left_half_written_is_removed(tmp_path, monkeypatch):
    ours = {'ckpt.pt.12.part', 'best.pt.34567.part', 'log.jsonl.1.part'}
    users = {'film.mkv.part', 'ckpt.pt.part', 'my ckpt.pt.12.part', 'ckpt.pt.12.part.part'}
    users |= {'tok.json.1.part', 'a.pt'}
    for name in ours | users:
        (tmp_path / name).write_bytes(b'')
    with monkeypatch.context() as patch:  # without a lock they may belong to a run that is alive
        patch.setattr(disk.Lock, 'lock', lambda self, file: not setattr(self, 'works', False))
        checkpoint.claim(tmp_path).release()
    assert {path.name for path in tmp_path.iterdir()} == ours | users
    checkpoint.claim(tmp_path).release()
    assert {path.name for path in tmp_path.iterdir()} == users


def chosen(folder, best=None, latest=None, **config):
    """The name of the file chosen from a folder with checkpoints of these steps."""
    folder.mkdir(exist_ok=True)
    for name, step in (('best.pt', best), ('ckpt.pt', latest)):
        (folder / name).unlink(missing_ok=True)
        if step is not None:
            checkpoint.save(folder / name, state_of(step=step, config=config))
    return checkpoint.choose(folder).name


def test_best_is_chosen_while_its_run_keeps_one(tmp_path):
    """A best.pt of step 100 says nothing about a run that reached step 5000 without comparing."""
    keeps, keeps_none = dict(always_save_checkpoint=False), dict(always_save_checkpoint=True)
    assert chosen(tmp_path, best=100, latest=5000, **keeps) == 'best.pt'
    assert chosen(tmp_path, best=100, latest=5000, **keeps_none) == 'ckpt.pt'
    assert chosen(tmp_path, best=100, latest=100, **keeps_none) == 'best.pt'
    assert chosen(tmp_path, best=100, latest=5000) == 'ckpt.pt'  # True is the default
    assert chosen(tmp_path, best=100) == 'best.pt'
    assert chosen(tmp_path, latest=100) == chosen(tmp_path) == 'ckpt.pt'


# ---- a model to use


@pytest.fixture(scope='module')
def run():
    """A tiny model and the state of its checkpoint."""
    torch.manual_seed(0)
    small = dict(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=3)
    model = GPT(GPTConfig(**{**PRESETS['nano'], **small}))
    table = tokenizers.CharTokenizer('abc').to_dict()
    config = vars(model.config)
    return model, state_of(7, model=model.state_dict(), model_config=config, tokenizer=table)


def test_find_reads_an_out_dir_as_users_write_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        checkpoint.find('')
    one_line(stop, 'no checkpoint under out/', 'python train.py')
    assert checkpoint.find('no/such.pt') == Path('no/such.pt')  # load() says that it is missing
    folder = Path('out', 'a')
    folder.mkdir(parents=True)
    checkpoint.save(folder / 'ckpt.pt', run[1])
    assert checkpoint.find('') == checkpoint.find('out/a') == folder / 'ckpt.pt'
    checkpoint.save(folder / 'best.pt', run[1])
    assert checkpoint.find('') == checkpoint.find('out/a') == folder / 'best.pt'
    assert checkpoint.find('out/a/ckpt.pt') == folder / 'ckpt.pt'


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'bfloat16'])
def test_an_opened_model_has_the_weights_that_were_saved(run, path, dtype):
    model, state = run
    checkpoint.save(path, state)
    opened, tokenizer, found = checkpoint.open_model(path, 'cpu', dtype)
    assert tokenizer.characters == 'abc' and found['step'] == 7 and not opened.training
    kind = torch.float64 if dtype == 'float64' else torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], weight.to(kind))
        assert opened.state_dict()[name].dtype == kind


def test_an_opened_model_leaves_the_moments_on_the_disk_and_the_file_free(run, path):
    checkpoint.save(path, {**run[1], 'optimizer': {'m': torch.ones(9)}, 'kept': {}, 'about': 'x'})
    opened = checkpoint.open_model(path, 'cpu')
    assert opened[2].keys() == {*run[1], 'about'} - {'model'}
    assert not is_mapped(path)
    mapped = checkpoint.load(path, mmap=True)
    assert is_mapped(path) == LINUX and mapped['model']


def test_a_resumed_run_reports_changed_data(path, capsys):
    compare = lambda state, now: checkpoint.compare_data(dict(kept={}, **state), path, 'mine', now)
    for state, now in (({}, 'b'), (dict(data=None), 'b'), (dict(data='a'), 'a')):
        compare(state, now)
    assert capsys.readouterr().out == ''
    compare(dict(data='a'), 'b')
    compare(dict(data='a'), None)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(f'mine has changed since {path} was saved' in line for line in said)
    with pytest.raises(SystemExit) as stop:  # dpo's reference belongs to the old rows
        state = dict(kept={'train': torch.zeros(2)}, data='a', parent={'path': 'out/sft/ckpt.pt'})
        checkpoint.compare_data(state, path, 'mine', 'b')
    one_line(stop, 'mine has changed', '--init_from=out/sft/ckpt.pt')


def test_an_earlier_run_is_set_aside(path, capsys):
    runlog.set_aside(path.parent)
    assert capsys.readouterr().out == ''
    for name in ('log.jsonl', 'ckpt.pt', 'scores.jsonl', 'input.txt'):
        path.with_name(name).write_text(name, encoding='utf-8')
    runlog.set_aside(path.parent)
    assert {p.name: p.read_text(encoding='utf-8') for p in path.parent.iterdir()} == {
        'log.jsonl.old': 'log.jsonl',
        'ckpt.pt.old': 'ckpt.pt',
        'scores.jsonl.old': 'scores.jsonl',
        'input.txt': 'input.txt',
    }
    said = capsys.readouterr().out
    kept = 'scores.jsonl.old, log.jsonl.old, ckpt.pt.old'
    assert f'{path.parent} holds an earlier run, kept as {kept}\n' == said
    for time in ('.old2', '.old3'):  # no earlier run is lost
        path.with_name('ckpt.pt').write_text(time, encoding='utf-8')
        runlog.set_aside(path.parent)
        assert f'ckpt.pt{time}' in capsys.readouterr().out
    assert {p.name: p.read_text(encoding='utf-8') for p in path.parent.glob('ckpt*')} == {
        'ckpt.pt.old': 'ckpt.pt',
        'ckpt.pt.old2': '.old2',
        'ckpt.pt.old3': '.old3',
    }
    path.with_name('best.pt').write_bytes(b'')  # its ckpt.pt was deleted: still another run's
    runlog.set_aside(path.parent)
    assert path.with_name('best.pt.old4').exists() and not path.with_name('best.pt').exists()


def test_a_missing_checkpoint_is_reported_with_its_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {
        'out/tinyworld/mid': 'train.py config/tinyworld_mid.py',
        'out/mine': '--out_dir=out/mine',
    }
    for folder, command in commands.items():
        with pytest.raises(SystemExit) as stop:
            checkpoint.load(f'{folder}/ckpt.pt')
        one_line(stop, f'{folder}/ckpt.pt', command)


def test_weights_of_another_model_are_named(path):
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3, bias=False)
    checkpoint.restore(model, {'model': model.state_dict()}, path)
    for state in (other.state_dict(), torch.nn.Linear(2, 4).state_dict()):
        with pytest.raises(SystemExit) as stop:
            checkpoint.restore(model, {'model': state}, path)
        one_line(stop, str(path), 'another model.py')


def test_a_switch_of_another_model_may_be_off(path):
    state = dict.fromkeys(checkpoint.KEYS, {}) | {'model_config': {'n_layer': 3, 'turbo': False}}
    checkpoint.save(path, state)
    assert checkpoint.load(path)['model_config'] == {'n_layer': 3}
    state['model_config']['turbo'] = True
    checkpoint.save(path, state)
    with pytest.raises(SystemExit) as stop:
        checkpoint.load(path)
    one_line(stop, str(path), 'another model.py, with turbo = True')


def test_the_identity_of_a_checkpoint_is_its_path_and_hash(path):
    content = os.urandom(2**24 + 17)  # more than one read
    path.write_bytes(content)
    assert checkpoint.identity(path) == {
        'path': str(path),
        'sha256': hashlib.sha256(content).hexdigest(),
    }


# ---- settings that a run inherits

SETTINGS = dict(
    init_from='scratch', out_dir='out/a', eval_only=False, auto_resume=False, preset='nano',
    depth=0, n_layer=4, n_kv_head=0, block_size=64, qk_norm='rms', learning_rate=1e-3,
    max_iters=100, epochs=0.0, seed=1, device='auto', compile=None, batch_size=16,
    gradient_accumulation_steps=1, eval_interval=250, new_setting=7,
)  # fmt: skip
RUN = {
    **SETTINGS, 'out_dir': 'out/b', 'preset': 'qwen3', 'n_layer': 6, 'learning_rate': 5e-4,
    'epochs': 3.0, 'seed': 2, 'batch_size': 8, 'gradient_accumulation_steps': 3, 'block_size': 32,
    'retired_setting': 1,
}  # fmt: skip
RUN.pop('new_setting')
# n_kv_head = 0 became n_head = 4 in the model
MODEL = dict(vocab_size=65, n_layer=6, n_kv_head=4, block_size=32, qk_norm='rms_gain')
STATE = dict(config=RUN, model_config=MODEL)
TRAIN = runpy.run_path(str(ROOT / 'train.py'), run_name='train')  # its globals; nothing is trained
RULES = checkpoint.Rules(TRAIN['MAY_CHANGE'], TRAIN['RECIPE'])
WHERE = Path('out b', 'ckpt.pt')


def taken(resume, **given):
    answer = inherit(STATE, WHERE, {**SETTINGS, **given}, frozenset(given), resume, RULES)
    assert {source for _, source in answer.values()} == {str(WHERE)}
    return {name: value for name, (value, _) in answer.items()}


def test_a_new_stage_takes_the_architecture_and_the_recipe():
    architecture = dict(
        n_layer=6, n_kv_head=4, block_size=32, qk_norm='rms_gain', preset='qwen3', depth=0
    )
    expected = {**architecture, 'learning_rate': 5e-4}
    assert taken(resume=False) == expected
    given = dict(learning_rate=1.0, batch_size=2, seed=9, max_iters=3)
    assert taken(resume=False, **given) == expected  # explicit values win in configure()
    rates = dict(
        optimizer='adamw', learning_rate=0.25, embedding_rate=2.0, head_rate=3.0, weight_decay=0.5
    )
    rates |= dict(beta1=0.75, beta2=0.125, adam_eps=0.5, grad_clip=4.0, isolate=True)
    rates |= dict(muon_iterations=3, expert_balance=0.5, value_rate=0.25)
    assert set(rates) == RULES.recipe
    state = dict(config={**RUN, **rates}, model_config=MODEL)
    settings = {**SETTINGS, **dict.fromkeys(rates)}
    answer = inherit(state, WHERE, settings, frozenset(), False, RULES)
    assert {name: value for name, (value, _) in answer.items()} == {**architecture, **rates}


@pytest.mark.parametrize('resume', [False, True])
def test_a_switch_newer_than_the_checkpoint_is_off(resume):
    settings = {**SETTINGS, 'smear': True}  # the default now
    answer = inherit(STATE, WHERE, settings, frozenset(), resume, RULES)
    assert answer['smear'] == (False, str(WHERE))


def test_on_resume_comes_everything_that_is_still_a_setting():
    own = {'init_from', 'out_dir', 'eval_only', 'auto_resume'}
    expected = {name: value for name, value in RUN.items() if name not in own | {'retired_setting'}}
    assert taken(resume=True) == {**expected, 'n_kv_head': 4, 'qk_norm': 'rms_gain'}


@pytest.mark.parametrize('given', [
    dict(n_layer=6), dict(preset='qwen3'), dict(depth=0), dict(block_size=32),
    dict(qk_norm='rms_gain'),
    dict(n_kv_head=4), dict(n_kv_head=0),  # 0 is n_head, as in the run
    dict(out_dir='elsewhere', init_from='x', eval_only=True, auto_resume=True), dict(new_setting=8),
    dict(device='cpu'), dict(compile=True), dict(eval_interval=1),
    dict(batch_size=24, gradient_accumulation_steps=1),
    dict(batch_size=4, gradient_accumulation_steps=6),
    dict(batch_size=8), dict(learning_rate=5e-4, seed=2),
])  # fmt: skip
@pytest.mark.parametrize('resume', [True, False])
def test_equal_and_free_values_may_be_given(given, resume):
    assert taken(resume, **given) == taken(resume)  # configure() lets explicit values win


@pytest.mark.parametrize('given', [dict(max_iters=7), dict(epochs=4.0), dict(epochs=3.0)])
def test_a_new_horizon_replaces_the_old_one(given):
    """With both of them in the checkpoint, the next resume could not tell which one counts."""
    old = taken(resume=True)
    assert (old['max_iters'], old['epochs']) == (100, 3.0)
    assert taken(resume=True, **given) == {
        name: old[name] for name in old if name not in ('max_iters', 'epochs')
    }


@pytest.mark.parametrize('given, resume, here, there', [
    (dict(n_layer=4), False, 4, 6),
    (dict(n_layer=4), True, 4, 6),
    (dict(n_kv_head=2), False, 2, 4),
    (dict(n_kv_head=2), True, 2, 4),
    (dict(block_size=64), True, 64, 32),
    (dict(preset='llama'), False, "'llama'", "'qwen3'"),
    (dict(preset='nano'), True, "'nano'", "'qwen3'"),
    (dict(depth=12), False, 12, 0),
    (dict(learning_rate=1e-3), True, 1e-3, 5e-4),
    (dict(seed=3), True, 3, 2),
])  # fmt: skip
def test_a_contradiction_is_reported_with_both_values(given, resume, here, there):
    with pytest.raises(SystemExit) as stop:
        taken(resume, **given)
    (name,) = given
    one_line(stop, f'{name} is {here} here and {there} in {WHERE}', 'leave it out')


@pytest.mark.parametrize('given, rows', [
    (dict(batch_size=16), 48),
    (dict(gradient_accumulation_steps=1), 8),
    (dict(batch_size=4, gradient_accumulation_steps=5), 20),
])  # fmt: skip
def test_a_resumed_step_keeps_its_number_of_rows(given, rows):
    with pytest.raises(SystemExit) as stop:
        taken(True, **given)
    one_line(stop, f'{rows} rows', f'24 in {WHERE}', 'batch_size', 'gradient_accumulation_steps')
    assert taken(False, **given) == taken(False)  # a new run is free


def test_no_checkpoint_names_the_reward():
    """It is a file to import."""
    state = dict(config={**RUN, 'reward': 'theirs.py:f'}, model_config=MODEL)
    for resume, given in ((False, {}), (True, {'reward': 'mine.py:f'}), (True, {'reward': ''})):
        settings = {**SETTINGS, 'reward': '', **given}
        answer = inherit(state, WHERE, settings, frozenset(given), resume, RULES)
        assert 'reward' not in answer
    with pytest.raises(SystemExit) as stop:
        inherit(state, WHERE, {**SETTINGS, 'reward': ''}, frozenset(), True, RULES)
    one_line(stop, WHERE, "'theirs.py:f'", 'give --reward')


def test_the_rules_name_settings_of_train():
    named = RULES.may_change | RULES.recipe | checkpoint.OWN | checkpoint.HORIZON
    assert named <= set(train_defaults())
    assert checkpoint.HORIZON <= RULES.may_change


def test_a_program_may_have_other_rules():
    nothing = set()
    rules = checkpoint.Rules(may_change=nothing, recipe={'seed', 'n_layer'})
    found = inherit(STATE, WHERE, SETTINGS, nothing, False, rules)
    assert found['seed'] == (2, str(WHERE)) and 'learning_rate' not in found
    with pytest.raises(SystemExit) as stop:  # free there, but of the architecture
        inherit(STATE, WHERE, SETTINGS, {'n_layer'}, False, rules)
    one_line(stop, 'n_layer is 4 here and 6 in')
    with pytest.raises(SystemExit) as stop:  # may change by train.py's rules
        inherit(STATE, WHERE, SETTINGS, {'device', 'eval_interval', 'seed'}, True, rules)
    one_line(stop, 'here and', 'in')


def test_the_tokenizer_of_a_file_a_run_and_a_data_folder(tmp_path, monkeypatch):
    for name, characters in {'run': 'abc', 'best': 'de', 'data': 'fg'}.items():
        (tmp_path / name).mkdir()
        table = tokenizers.CharTokenizer(characters)
        if name == 'data':
            table.save(tmp_path / name / 'tok.json')
        else:
            file = 'ckpt.pt' if name == 'run' else 'best.pt'
            checkpoint.save(tmp_path / name / file, state_of(tokenizer=table.to_dict()))
    for path, characters in {
        'run': 'abc', 'run/ckpt.pt': 'abc', 'best': 'de', 'data': 'fg', 'data/tok.json': 'fg',
    }.items():  # fmt: skip
        assert checkpoint.load_tokenizer(tmp_path / path).characters == characters
        assert checkpoint.load_tokenizer(str(tmp_path / path)).characters == characters


def test_the_weights_stay_on_the_disk_when_the_tokenizer_is_read(path, monkeypatch):
    checkpoint.save(path, state_of(tokenizer=tokenizers.CharTokenizer('ab').to_dict()))
    original, asked = torch.load, []
    monkeypatch.setattr(
        torch, 'load', lambda *args, **given: asked.append(given) or original(*args, **given)
    )
    checkpoint.load_tokenizer(path)
    checkpoint.load(path)
    assert [given['mmap'] for given in asked] == [True, False]


def test_a_missing_tokenizer_is_named(tmp_path):
    (tmp_path / 'world').mkdir()
    (tmp_path / 'world' / 'prepare.py').write_text('', encoding='utf-8')
    for name, hint in {
        'none': 'expected a tok.json, a .pt file, or a folder that has one',
        '.': 'expected a tok.json',
        'world/sft/tok.json': f'run: python {tmp_path / "world" / "prepare.py"}',
        'none.pt': 'no checkpoint',
    }.items():  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            checkpoint.load_tokenizer(tmp_path / name)
        one_line(stop, tmp_path / name, hint)
