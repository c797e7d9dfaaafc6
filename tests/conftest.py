"""
What the tests share: oracles that may be missing, and programs run as a user runs them.

An oracle is an independent library that a test compares us with. One that is not installed is named at the end of the
run; under CI=true it is a failure, so that a green run means that every comparison took place.
"""

import ast
import importlib
import json
import os
import re
import select
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MISSING = pytest.StashKey[set]()  # the names of the oracles that could not be asked


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """Two processes of two threads on two cores slow each other up to 22-fold; and one thread gives the same bits."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def oracle(request):
    """oracle('transformers') returns the module. Missing: the test is skipped by name, under CI=true it fails."""

    def ask(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            package = name.partition('.')[0]
            request.config.stash.setdefault(MISSING, set()).add(package)
            message = f'oracle not run: {package} is missing (pip install ".[dev]"): {error}'
            (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(message)

    return ask


def pytest_terminal_summary(terminalreporter, config):
    for name in sorted(config.stash.get(MISSING, ())):
        terminalreporter.write_line(f'oracle not run: {name} is missing (pip install ".[dev]")', yellow=True)


def tail(text, lines=30):
    return '\n'.join(text.splitlines()[-lines:])


@pytest.fixture(scope='session')
def run_program():
    """
    run_program('train.py', '--a=b', ranks=1, cwd=ROOT, check=True, env={}) -> CompletedProcess with text.

    ranks > 1 goes through torchrun. cwd other than the root still runs the root's script. An exit status that is not 0
    is an AssertionError with the ends of stdout and stderr; check=False hands it back instead.
    """

    def run(script, *args, ranks=1, cwd=ROOT, check=True, env=None, timeout=300):
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}']
        command = [*launcher, str(ROOT / script), *map(str, args)]
        environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
        environment |= {'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8'}
        environment |= {name: str(value) for name, value in (env or {}).items()}
        done = subprocess.run(
            command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True, encoding='utf-8'
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f'{" ".join(command)}: exit status {done.returncode}\n'
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
            text += rng.choice(' \n') + ''.join(rng.choice('aaabbc') for _ in range(rng.randint(1, 9)))
        elif kind < 0.7:
            text += rng.choice(LINES)
        elif kind < 0.8:
            text += rng.choice(' \t\n\r\u00a0\u3000\u2028\x85\x1c') * rng.randint(1, 4)
        else:
            character = chr(rng.choice([rng.randrange(0x80), rng.randrange(0x2000), rng.randrange(0x30000)]))
            text += character if unicodedata.category(character) not in ('Cn', 'Cs', 'Co') else ' '
    return text


# ---- runs


def train_defaults():
    """{name: default} of train.py's settings, from its source: importing it would train."""
    from configurator import assignments, is_setting

    found = {}
    for name, node in assignments(ast.parse((ROOT / 'train.py').read_bytes())):
        try:
            found.setdefault(name, ast.literal_eval(node.value))
        except (ValueError, TypeError):
            continue  # computed, so not a default
    return {name: value for name, value in found.items() if is_setting(name, value)}


def run_settings(stage, **more):
    base = dict(stage=stage, out_dir=f'out/x/{stage}', seed=7, batch_size=8, gradient_accumulation_steps=2)
    return {**base, 'block_size': 32, 'max_iters': 40, **more}


def write_log(folder, rows, first=None):
    folder.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ([first] if first else []) + rows)
    (folder / 'log.jsonl').write_bytes(text.encode())


def as_numbers(cell):
    return [float(part.replace(',', '')) for part in re.findall(r'[-+]?[\d,]*\.?\d+', cell)]


# ---- a terminal


class Terminal:
    """A program in a terminal of its own: type(bytes), and read(until) what it shows."""

    def __init__(self, command, cwd, environment):
        import pty

        self.fd, child = pty.openpty()
        environment = {**os.environ, 'TERM': 'xterm', 'OMP_NUM_THREADS': '1', **environment}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        self.shown = b''

    def type(self, keys):
        os.write(self.fd, keys)

    def read(self, until):
        """All that was shown since the last read, up to `until`."""
        while until not in self.shown:
            assert select.select([self.fd], [], [], 120)[0], self.shown
            self.shown += os.read(self.fd, 4096)  # OSError: the program has ended
        shown, _, self.shown = self.shown.partition(until)
        return shown

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def in_terminal():
    """in_terminal(command, cwd=ROOT, env={}) -> Terminal, in which the program runs until the test ends."""
    pytest.importorskip('pty')  # not on Windows
    terminals = []

    def start(command, cwd=ROOT, env=None):
        terminals.append(Terminal(command, cwd, env or {}))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()
