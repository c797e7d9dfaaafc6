"""
What the tests share: oracles that may be missing, and programs run as a user runs them.

An oracle is an independent library that a test compares us with. The end of the run names each one
that is not installed. Under CI=true a missing oracle is a failure, so a green run means that every
comparison took place.
"""

import ast
import functools
import importlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

# On two cores, two processes of two threads slow each other down up to 22-fold. Tiny tensors are
# faster on one thread, and it gives the same bits each time
os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported; for all processes

# Servers of tests are on this machine. A proxy of the user's would stand between, or would reach
# what a test declares unreachable
for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)

ROOT = Path(__file__).resolve().parent.parent
LINUX = sys.platform == 'linux'
MISSING = pytest.StashKey[set]()  # names of the oracles that are not installed
PATIENCE = 600  # seconds to wait for what takes less than ten; a busy machine is 20 times slower


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """Where the environment names another number, too."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def as_before():
    """Take back what a program changes for its process when a test runs it in this one: it adds its
    folder to sys.path, and runtime.undo_changes() knows the rest."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    if 'runtime' in sys.modules:
        sys.modules['runtime'].undo_changes()


@pytest.fixture(scope='session')
def oracle(request):
    """oracle('transformers') returns the module. If it is missing, the test is skipped, and fails
    under CI=true."""

    def ask(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            package = name.partition('.')[0]
            request.config.stash.setdefault(MISSING, set()).add(package)
            message = f'oracle not run: {package} is missing (pip install ".[dev]"): {error}'
            if os.environ.get('CI') == 'true':
                pytest.fail(message)
            pytest.skip(message)

    return ask


@pytest.fixture
def transformers(oracle):
    """The oracle of other projects' models, without its log lines and progress bars."""
    found = oracle('transformers')
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


def pytest_sessionfinish(session):
    """A process of pytest-xdist tells the one that prints which oracles it missed."""
    output = getattr(session.config, 'workeroutput', {})
    output['missing'] = sorted(session.config.stash.get(MISSING, ()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    missing = getattr(node, 'workeroutput', {}).get('missing', ())
    node.config.stash.setdefault(MISSING, set()).update(missing)


def pytest_terminal_summary(terminalreporter, config):
    for name in sorted(config.stash.get(MISSING, ())):
        line = f'oracle not run: {name} is missing (pip install ".[dev]")'
        terminalreporter.write_line(line, yellow=True)


def one_line(stop, *words):
    """Assert that a SystemExit (pytest.raises(SystemExit) as stop) is one line with these words."""
    message = str(stop.value.code)
    assert '\n' not in message
    assert [word for word in map(str, words) if word not in message] == [], message


def tail(text, lines=30):
    return '\n'.join(text.splitlines()[-lines:])


def environment_of(more):
    """The environment of a program that a test starts."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    environment |= {'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8'}
    return environment | {name: str(value) for name, value in more.items()}


@pytest.fixture(scope='session')
def run_forked(tmp_path_factory):
    """run_forked(command, ranks, stdin, cwd, env, timeout) -> CompletedProcess: tests/forks.py."""
    if not sys.platform.startswith('linux'):  # elsewhere a process with threads may not be forked
        yield None
        return
    folder = tmp_path_factory.mktemp('streams')
    server = subprocess.Popen(
        [sys.executable, str(ROOT / 'tests' / 'forks.py')], env=environment_of({}), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(command, **program):
        streams = {name: folder / name for name in ('stdout', 'stderr')}
        for path in streams.values():
            path.unlink(missing_ok=True)  # a process that an earlier program left may still write
            path.write_bytes(b'')
        paths = {name: str(path) for name, path in streams.items()}
        print(json.dumps({'argv': command, **program, **paths}), file=server.stdin, flush=True)
        statuses = json.loads(server.stdout.readline())
        said = {name: path.read_text(encoding='utf-8') for name, path in streams.items()}
        status = statuses[0] if len(set(statuses)) == 1 else statuses
        return subprocess.CompletedProcess(command, status, **said)

    yield run
    server.communicate()


@pytest.fixture(scope='session')
def run_program(run_forked):
    """
    run_program('train.py', '--a=b', ranks=1, stdin=PATH, cwd=ROOT, check=True, env={},
    fresh=False) -> CompletedProcess

    Runs a script of the root, also with another cwd. It is a fork of a process that has imported
    torch; if fresh, for what depends on the start of Python, it is a new Python. ranks > 1 starts
    that many, with what torchrun tells them; if fresh, torchrun starts them. An exit status other
    than 0 is an AssertionError that shows the ends of stdout and stderr, unless check is False.
    Ranks whose exit statuses differ have a list of them. stdout and stderr are text.
    """

    def run(
        script, *args, ranks=1, stdin=os.devnull, cwd=ROOT, check=True, env=None, timeout=900,
        fresh=False,
    ):  # fmt: skip
        command = [str(ROOT / script), *map(str, args)]
        place = dict(cwd=str(cwd), env=environment_of(env or {}), timeout=timeout)
        if run_forked and not fresh:
            done = run_forked(command, ranks=ranks, stdin=str(stdin), **place)
        else:
            launcher = [sys.executable]
            if ranks > 1:
                launcher += ['-m', 'torch.distributed.run', '--standalone']
                launcher += [f'--nproc_per_node={ranks}']
            text = dict(capture_output=True, text=True, encoding='utf-8')
            with open(stdin, 'rb') as file:
                done = subprocess.run([*launcher, *command], stdin=file, **place, **text)
        if check and done.returncode != 0:
            raise AssertionError(
                f'{" ".join(done.args)}: exit status {done.returncode}\n'
                f'--- stdout ---\n{tail(done.stdout)}\n--- stderr ---\n{tail(done.stderr)}'
            )
        return done

    return run


# ---- texts for the tokenizer

LINES = [
    'First Citizen: Before we proceed any further, hear me speak.\n\n',
    "I'll say it's 12345 o'clock, WE'RE late -- isn't it?  \r\n\tdef f(x):\n        return x**2\n",
    '你好,世界🌍 naïve Straße Ελλάδα हिन्दी नमस्ते עברית 한국어 ١٢٣ ½\n',
    '   leading and trailing   \n\n\n',
]


def random_text(rng, length):
    """Words over few letters, so that pairs repeat, and any character that Unicode has assigned."""
    text = ''
    while len(text) < length:
        kind = rng.random()
        if kind < 0.5:
            text += rng.choice(' \n')
            text += ''.join(rng.choice('aaabbc') for _ in range(rng.randint(1, 9)))
        elif kind < 0.7:
            text += rng.choice(LINES)
        elif kind < 0.8:
            text += rng.choice(' \t\n\r\u00a0\u3000\u2028\x85\x1c') * rng.randint(1, 4)
        else:
            limits = (0x80, 0x2000, 0x30000)
            character = chr(rng.choice([rng.randrange(limit) for limit in limits]))
            is_assigned = unicodedata.category(character) not in ('Cn', 'Cs', 'Co')
            text += character if is_assigned else ' '
    return text


# ---- runs


def train_defaults():
    """{name: default} of train.py's settings."""
    return dict(read_defaults(ROOT / 'train.py'))


@functools.cache
def read_defaults(path):
    """The same of any program, from its source."""
    from configurator import assignments, is_setting

    found = {}
    for name, node in assignments(ast.parse(path.read_bytes())):
        try:
            found.setdefault(name, ast.literal_eval(node.value))
        except (ValueError, TypeError):
            continue  # computed, so not a default
    return {name: value for name, value in found.items() if is_setting(name, value)}


def run_settings(stage, **more):
    base = dict(stage=stage, out_dir=f'out/x/{stage}', seed=7)
    base |= dict(batch_size=8, gradient_accumulation_steps=2, block_size=32, max_iters=40)
    return {**base, **more}


def write_log(folder, rows, first=None):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [first, *rows] if first else rows
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    (folder / 'log.jsonl').write_bytes(text.encode())


def is_mapped(path):
    """Whether this process has the file mapped into its memory. False where that is unknown."""
    return LINUX and str(path) in Path('/proc/self/maps').read_text(encoding='utf-8')


def as_numbers(cell):
    return [float(part.replace(',', '')) for part in re.findall(r'[-+]?[\d,]*\.?\d+', cell)]


# ---- a model in a Hugging Face folder


@pytest.fixture(scope='session')
def good_folder(tmp_path_factory):
    """A random llama, exported. Tests change copies of it."""
    from random_models import config_of, random_model, state_of

    from export import export_folder

    folder = tmp_path_factory.mktemp('good')
    export_folder(state_of(random_model(config_of('llama'))), folder)
    return folder


@pytest.fixture
def refused(good_folder, tmp_path):
    """refused(change, *words): after change(copy of a folder), read() stops with these words."""
    import checkpoint

    folder = tmp_path / 'model'
    shutil.copytree(good_folder, folder)

    def check(change, *words):
        change(folder)
        with pytest.raises(SystemExit) as stop:
            checkpoint.load(folder / 'config.json')
        one_line(stop, *words)

    return check


# ---- a terminal


class Terminal:
    """A program in a terminal of its own: type(bytes), and read(until) what it shows."""

    def __init__(self, command, cwd, environment):
        import pty

        self.fd, child = pty.openpty()
        # without the user's own settings of readline and libedit
        usual = {'TERM': 'xterm', 'INPUTRC': os.devnull, 'EDITRC': os.devnull}
        environment = {**os.environ, **usual, 'OMP_NUM_THREADS': '1', **environment}
        streams = dict(stdin=child, stdout=child, stderr=child)
        place = dict(cwd=cwd, env=environment, start_new_session=True)
        self.process = subprocess.Popen(command, **streams, **place)
        os.close(child)
        self.shown = b''

    def type(self, keys):
        os.write(self.fd, keys)

    def read(self, until):
        """What was shown since the last read, up to `until`."""
        while until not in self.shown:
            assert select.select([self.fd], [], [], PATIENCE)[0], self.shown
            self.shown += os.read(self.fd, 4096)  # OSError: the program has ended
        shown, _, self.shown = self.shown.partition(until)
        return shown

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def in_terminal():
    """in_terminal(command, cwd=ROOT, env={}) -> Terminal in which the command runs. It is killed at
    the end of the test."""
    pytest.importorskip('pty')  # not on Windows
    terminals = []

    def start(command, cwd=ROOT, env=None):
        terminals.append(Terminal(command, cwd, env or {}))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()
