"""dev/race.py: what it refuses, its score against the model's own losses, and a race of an entry
against itself."""

import shutil
import sys
import textwrap
import time

import numpy as np
import pytest
import race
import torch
from conftest import LINUX, ROOT, one_line, train_defaults

from model import GPT, GPTConfig
from shards import Data, Writer
from tokenizer import CharTokenizer

TEXT = 'the cat sat on the mat. a cow had a hat. ' * 40


@pytest.fixture
def config(tmp_path):
    """config(source) -> path of a config file."""

    def write(source='n_layer = 1\n'):
        path = tmp_path / 'entry.py'
        path.write_text(source, encoding='utf-8')
        return str(path)

    return write


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A track 'tiny' of its own data."""
    tokenizer = CharTokenizer(TEXT)
    with Writer(tmp_path / 'data' / 'tiny', tokenizer) as out:
        out.write('train', tokenizer.encode(TEXT), len(TEXT))
        out.write('val', tokenizer.encode(TEXT[::-1]), len(TEXT))
    monkeypatch.setattr(race, 'DATA', tmp_path / 'data')
    monkeypatch.setitem(race.TRACKS, 'tiny', race.Track('tiny', 1, 'bits_per_byte'))
    return Data(tmp_path / 'data' / 'tiny')


# ---- entries


@pytest.mark.parametrize('source, said', [
    ("dataset = 'shakespeare_char'\n", 'entry.py:1: dataset is set by the race'),
    ("n_layer = 2\ninit_from = 'assets/tinyworld.pt'\n", 'entry.py:2: init_from is set by'),
    ('seed = 3\n', 'entry.py:1: seed is set by the race'),
    ('eval_iters = 1\n', 'entry.py:1: eval_iters is set by the race'),
    ('import runlog\nrunlog.Clock = None\n', 'entry.py:1: `import runlog`, expected only lines'),
    ('if True:\n    n_layer = 2\n', 'entry.py:1: `if True:`'),
    ('n_layer = print(1)\n', 'entry.py:1: `n_layer = print(1)`'),
    ('a = b = 1\n', 'entry.py:1: `a = b = 1`'),
    ('n_layer =\n', 'entry.py: no Python'),
])  # fmt: skip
def test_a_config_that_is_more_than_settings_is_refused(config, source, said):
    with pytest.raises(SystemExit) as stop:
        race.read_entry(config(source))
    one_line(stop, said)


def test_a_config_of_plain_values_is_read(config):
    entry = race.read_entry(config("# an idea\nn_layer = 2\nmin_lr = -1e-3\nmlp = 'gelu'\n"))
    assert entry.settings == dict(n_layer=2, min_lr=-1e-3, mlp='gelu')
    assert race.FIXED.keys() < train_defaults().keys()
    for path in (ROOT / 'config' / 'race').glob('*.py'):
        assert race.read_entry(str(path)).settings.keys() < train_defaults().keys()


@pytest.mark.parametrize('arguments, said', [
    ([], 'expected a track and one or two entries: python dev/race.py'),
    (['tinyworld'], 'expected a track'),
    (['mars', 'a.py'], "'mars' is no track, expected one of shakespeare, tinyworld"),
    (['tinyworld', 'a.txt'], 'a.txt: no entry, expected CONFIG.py or CONFIG.py+CHANGE.diff'),
    (['tinyworld', 'no.py'], 'no.py: no such file'),
    (['tinyworld', 'a.py', '--seed=3'], 'expected a track'),
    (['tinyworld', 'a.py', '--seeds=1'], '--seeds=1: expected a number of at least 2'),
])  # fmt: skip
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(SystemExit) as stop:
        race.read_arguments(arguments)
    one_line(stop, said)


# ---- diffs


def diff_of(name, old, new):
    """A diff that replaces one line of a file."""
    lines = (ROOT / name).read_text(encoding='utf-8').splitlines()
    [number] = [i for i, line in enumerate(lines) if line == old]
    after = new.splitlines()
    around = lines[number - 3 : number], lines[number + 1 : number + 4]
    body = [f' {x}' for x in around[0]] + [f'-{old}'] + [f'+{x}' for x in after]
    body += [f' {x}' for x in around[1]]
    where = f'@@ -{number - 2},7 +{number - 2},{6 + len(after)} @@'
    return '\n'.join([f'--- a/{name}', f'+++ b/{name}', where, *body, ''])


STREAM = (
    "    steps = batches.Stream(run.data.split('train'), run.shape, bos=run.data.tokenizer.bos)"
)
RATE = '    return min_lr + height * (learning_rate - min_lr)'


@pytest.fixture
def applied(tmp_path):
    """applied(diff) -> folder of programs to which it was applied."""
    if not shutil.which('git'):
        pytest.skip('git is not installed')

    def run(text):
        folder = tmp_path / 'copy'
        folder.mkdir()
        for name in (*race.FILES, 'runlog.py', 'validation.py'):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        path = tmp_path / 'mine.diff'
        path.write_text(text, encoding='utf-8')
        race.apply(path, folder)
        return folder

    return run


def test_a_diff_of_the_schedule_is_applied(applied):
    new = RATE.replace('height', 'height**2')
    folder = applied(diff_of('train.py', RATE, new))
    assert new in (folder / 'train.py').read_text(encoding='utf-8')


@pytest.mark.parametrize('name, old, new, said', [
    ('train.py', STREAM, STREAM.replace("'train'", "'val'"), "reads the split 'val'"),
    ('runlog.py', '        began = perf_counter()', '        began = 0.0', 'changes runlog.py'),
    ('validation.py', "        numbers = {'val': nats, 'perplexity': math.exp(min(nats, 700))}  # "
     'exp(710) overflows', "        numbers = {'val': 0.0}", 'changes validation.py'),
    ('train.py', '        numbers = run.measure()', "        numbers = {'val': 1.0}",
     'changes evaluate_model() of train.py'),
    ('train.py', RATE, RATE + '\n' * 151, 'lines, expected 1 to 150'),
    ('train.py', RATE, RATE + ')', 'train.py is no Python after the diff'),
])  # fmt: skip
def test_a_diff_of_the_race_itself_is_refused(applied, name, old, new, said):
    with pytest.raises(SystemExit) as stop:
        applied(diff_of(name, old, new))
    one_line(stop, said)


def test_a_diff_that_does_not_apply_is_named(applied):
    with pytest.raises(SystemExit) as stop:
        applied(diff_of('train.py', RATE, '    return 0.0').replace('learning_rate', 'rate'))
    one_line(stop, 'mine.diff: does not apply', 'undo it by: git apply -R ')


def test_the_copy_holds_no_validation_text(data, tmp_path):
    race.copy_text(data, tmp_path / 'copy')
    held = Data(tmp_path / 'copy' / 'data' / 'race')
    train = data.split('train').read(0, 10**6)
    assert np.array_equal(held.split('train').read(0, 10**6), train)
    val = held.split('val').read(0, 10**6)
    assert np.array_equal(val, train[: len(val)]) and len(val)


# ---- runs


def watched(source, folder):
    program = folder / 'program.py'
    program.write_text(textwrap.dedent(source), encoding='utf-8')
    return race.watch([program], folder, 1, 'entry')


DAEMON = """
    import os, sys, time
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, b'x')
            time.sleep({seconds})
            os._exit(0)
        os._exit(0)
    os.wait()
    os.read(reader, 1)
"""


@pytest.fixture
def adopting():
    """Orphans come to this process, as in a race; the setting is taken back."""
    race.adopt_orphans(True)
    yield
    race.adopt_orphans(False)


@pytest.mark.skipif(not LINUX, reason='/proc')
def test_a_process_that_detaches_is_found_and_ended(tmp_path, adopting, monkeypatch):
    monkeypatch.setattr(race, 'GRACE', 0.1)
    before = race.children()
    with pytest.raises(SystemExit) as stop:
        watched(DAEMON.format(seconds=600), tmp_path)
    one_line(stop, 'entry: left 1 other processes running')
    assert race.children() <= before


@pytest.mark.skipif(not LINUX, reason='/proc')
def test_a_helper_that_ends_soon_is_waited_for(tmp_path, adopting, monkeypatch):
    monkeypatch.setattr(race, 'GRACE', 600)
    watched(DAEMON.format(seconds=0.05), tmp_path)


@pytest.mark.skipif(sys.platform == 'win32', reason='no getrusage')
def test_time_is_taken_outside(tmp_path):
    began = time.perf_counter()
    spent, text = watched(
        'import time\ntime.perf_counter = time.time = lambda: 0.0\n'
        'while time.process_time() < 0.3:\n    pass\nprint(time.time())\n',
        tmp_path,
    )
    assert text == '0.0\n'
    assert 0.2 <= spent.processor_seconds and spent.seconds <= time.perf_counter() - began


@pytest.mark.skipif(sys.platform == 'win32', reason='no getrusage')
def test_a_run_that_fails_is_named_with_its_last_line(tmp_path):
    with pytest.raises(SystemExit) as stop:
        watched("print(1)\nraise SystemExit('n_layer is 0, expected at least 1')", tmp_path)
    one_line(stop, 'entry: exit status 1: n_layer is 0, expected at least 1')


@pytest.mark.skipif(sys.platform == 'win32', reason='no getrusage')
def test_a_run_that_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(race, 'LONGEST', 0.2)
    with pytest.raises(SystemExit) as stop:
        watched('import time\ntime.sleep(600)', tmp_path)
    one_line(stop, 'entry: ran for more than 0.2 seconds')


# ---- the score


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=17, block_size=8, n_layer=1, n_head=1, n_embd=16)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3)
    return model


def test_the_score_is_the_mean_of_the_model_s_losses(model):
    ids = np.random.default_rng(0).integers(0, 17, 8 * 9 + 4)  # 9 rows and one of 3 targets
    rows = [ids[i : i + 9] for i in range(0, len(ids) - 1, 8)]
    with torch.no_grad():
        nats = [model(*map(torch.from_numpy, (r[None, :-1], r[None, 1:]))) for r in rows]
    expected = torch.cat([t.flatten() for t in nats])
    assert len(expected) == len(ids) - 1
    assert race.mean_nats(model, ids) == pytest.approx(expected.mean().item(), abs=1e-5)


@pytest.mark.parametrize('leak', [
    lambda inputs: inputs.roll(-1, 1),  # a row's next id
    lambda inputs: inputs.roll(-1, 0),  # the next row
])  # fmt: skip
def test_a_model_that_looks_ahead_is_refused(model, leak):
    hidden = model.hidden

    def peeking(inputs, *arguments):
        seen = hidden(leak(inputs), *arguments)
        return hidden(inputs, *arguments) + seen

    model.hidden = peeking
    with pytest.raises(SystemExit, match='logits depend on later tokens, or on other rows'):
        race.mean_nats(model, np.random.default_rng(0).integers(0, 17, 8 * 9 + 4))


# ---- the race


ROW = dict(step=9, seconds=2.0, processor_seconds=2.0, gflops=100.0, bits_per_byte=2.0)


def test_a_loss_that_only_luck_reaches_has_no_place(config, capsys):
    entry = race.read_entry(config())
    track = race.Track('tiny', 1, 'seconds', most_nats=1.88)
    rows = [dict(ROW, val=val) for val in (1.86, 1.87, 1.89)]
    assert not race.reaches(entry, track, rows)  # 1.8733 + 2 * 0.0088
    assert race.reaches(entry, track, [dict(row, val=row['val'] - 0.02) for row in rows])
    assert 'loss 1.8733, plus 2 standard errors 1.8910, expected at most 1.88' in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_an_entry_against_itself_is_not_shown(config, data, tmp_path, run_program, monkeypatch):
    """The whole program, with a track of its own."""
    entry = config('n_layer = 1\nn_head = 1\nn_embd = 16\nblock_size = 16\nmax_iters = 5\n')
    program = tmp_path / 'race_tiny.py'
    program.write_text(
        'import sys\n'
        f'sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "dev")!r}]\n'
        'from pathlib import Path\n'
        'import race\n'
        f'race.DATA = Path({str(tmp_path / "data")!r})\n'
        "race.TRACKS['tiny'] = race.Track('tiny', 1, 'bits_per_byte')\n"
        'race.main()\n',
        encoding='utf-8',
    )
    done = run_program(program, 'tiny', entry, entry, '--seeds=2', cwd=tmp_path)
    assert done.stdout.endswith('\nb against a: not shown\n')
    assert done.stdout.count('bits per byte; ') == 4
