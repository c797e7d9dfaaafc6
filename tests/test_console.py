"""Text to and from a terminal; programs whose terminal or pipe breaks."""

import ctypes.util
import importlib.util
import io
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import PATIENCE, ROOT

import checkpoint
import console
import runlog
import shards
from tokenizer import CharTokenizer

TRAIN = [
    sys.executable, 'train.py', 'config/smoke.py', '--n_layer=1', '--n_embd=16', '--block_size=16',
    '--batch_size=2', '--log_interval=1', '--max_iters=1000000', '--eval_interval=1000000',
    '--sample_prompts=the', '--max_new_tokens=8', '--device=cpu',
]  # fmt: skip
on_unix = pytest.mark.skipif(os.name == 'nt', reason='pipes, terminals and descriptors of Unix')


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    'text, expected',
    [
        ('plain, tab\tand\nline', 'plain, tab\tand\nline'),
        ('\x1b[2Jgone\x07', '[2Jgone'),
        ('\x9b2J and \x7f', '2J and '),
        ('你好🌍 e\u0301', '你好🌍 e\u0301'),
    ],
)
def test_printable_drops_control_characters_alone(text, expected):
    assert console.printable(text) == expected


@pytest.mark.parametrize(
    'text, expected',
    [
        ('é 你🌍', 'é 你🌍'),
        ('\x1b[2J\x07\t\n', r'\x1b[2J\x07\t\n'),
        ('\x9b \u202e \ufeff', r'\x9b \u202e \ufeff'),
    ],
)
def test_visible_spells_what_cannot_be_printed(text, expected):
    assert console.visible(text) == expected


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert console.wants_colour(Terminal())
    assert not console.wants_colour(io.StringIO())
    assert not console.wants_colour(None)  # what sys.stdout is where it was closed
    monkeypatch.setenv('NO_COLOR', '1')
    assert not console.wants_colour(Terminal())


# -----------------------------------------------------------------------------
# a message, as a program reads it from a real terminal

READER = """
import sys
import console

if sys.argv[1] == 'none':
    sys.modules['readline'] = None  # importing it is an ImportError
if sys.argv[1] == 'libedit':  # stands for a Python that was built with it
    import builtins, ctypes, ctypes.util, types

    libedit = ctypes.CDLL(ctypes.util.find_library('edit'))
    libedit.rl_initialize()
    libedit.readline.restype = ctypes.c_char_p
    bind = lambda line: libedit.rl_parse_and_bind(line.encode())
    readline = types.SimpleNamespace(__doc__='... using libedit readline', parse_and_bind=bind)
    sys.modules['readline'] = readline
    builtins.input = lambda symbol='': libedit.readline(symbol.encode()).decode()
console.enable_line_editing()
while True:
    print(ascii(console.read_message('> ')), flush=True)
"""
PASTED = b'\x1b[200~one\r\rtwo\r  three\x1b[201~'  # as terminals send it, in the mode for it


@pytest.mark.parametrize('editing', ['readline', 'libedit', 'none'])
def test_a_pasted_text_is_one_message(in_terminal, editing):
    if editing == 'readline' and not importlib.util.find_spec('readline'):
        pytest.skip('this Python has no readline')
    if editing == 'libedit' and not ctypes.util.find_library('edit'):
        pytest.skip('no libedit')
    terminal = in_terminal([sys.executable, '-c', READER, editing])
    for typed, expected in [
        (b'hi', 'hi'),
        (PASTED, 'one\n\ntwo\n  three'),
        (b'see ' + PASTED + b' and ' + PASTED, 'see one\n\ntwo\n  three and one\n\ntwo\n  three'),
        (b'bye', 'bye'),
    ]:
        assert terminal.read(b'> ').endswith(console.PASTE_ON.encode())
        terminal.type(typed + b'\r')
        terminal.read(console.PASTE_OFF.encode())  # after each, so also where the program ends
        assert terminal.read(b'\r\n') == ascii(expected).encode()


@pytest.mark.parametrize('stdin', [b'\xef\xbb\xbfone\r\ntwo', b'one\ntwo\n'])
def test_piped_lines_are_messages(monkeypatch, capsys, stdin):
    """Without Windows' byte order mark."""
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(stdin), encoding='utf-8'))
    assert [console.read_message(''), console.read_message('')] == ['one', 'two']
    assert capsys.readouterr().out == ''  # no request for marks goes to a pipe


def test_a_terminal_without_modes_gets_no_request(monkeypatch, capsys):
    monkeypatch.setenv('TERM', 'dumb')
    monkeypatch.setattr('sys.stdin', Terminal('one\n'))
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    assert console.read_message('> ') == 'one' and capsys.readouterr().out == '> '


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
    """A data folder of characters."""
    folder = tmp_path_factory.mktemp('data')
    text = 'the low, the lower and the lowest of them. ' * 100
    tokenizer = CharTokenizer(text)
    with shards.Writer(folder, tokenizer) as out:
        for split in ('train', 'val'):
            out.write(split, tokenizer.encode(text), len(text))
    return folder


# ---- streams

SPEAKER = """
import subprocess
import sys

import console

finishes, path = sys.argv[1] == 'finishes', sys.argv[2]
console.set_up(must_finish=finishes)
print('first', flush=True)
input()  # until the reader is gone
for _ in range(3):
    print('more', flush=True)
    print('more', file=sys.stderr)
subprocess.run([sys.executable, '-c', 'print(1, flush=True)'], check=True)  # a child
with open(path, 'w', encoding='utf-8') as file:
    file.write('whole')
print('done')  # the interpreter flushes this
"""


@pytest.fixture
def speaker(tmp_path):
    """speaker(code, *arguments, env={}, **of_popen) -> Popen of a program that imports console."""

    def start(code, *arguments, env=None, **more):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), **(env or {})}
        command = [sys.executable, '-c', code, *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **more)

    return start


def lose_reader(program, descriptor):
    """Read a line, close the reader, let the program continue. Returns its exit status."""
    with open(descriptor, 'rb') as reader:
        assert reader.readline().strip() == b'first'
    program.communicate(b'\n', timeout=PATIENCE)
    return program.returncode


def pipe():
    return os.pipe()


def terminal():
    import pty

    return pty.openpty()


@on_unix
@pytest.mark.parametrize('channel', [pipe, terminal])
@pytest.mark.parametrize('kind, status', [('finishes', 0), ('prints only', console.READER_LEFT)])
def test_a_reader_that_leaves(speaker, tmp_path, channel, kind, status):
    """Like `| head -n1` or a closed terminal: no complaint, and files are written."""
    reader, writer = channel()
    with open(tmp_path / 'stderr', 'wb') as stderr:
        program = speaker(SPEAKER, kind, tmp_path / 'file', stdout=writer, stderr=stderr)
        os.close(writer)
        assert lose_reader(program, reader) == status
    assert set((tmp_path / 'stderr').read_text(encoding='utf-8').split()) <= {'more'}
    assert (tmp_path / 'file').exists() == (kind == 'finishes')


@on_unix
def test_stdout_and_stderr_lost_together(speaker, tmp_path):
    reader, writer = pipe()
    program = speaker(SPEAKER, 'finishes', tmp_path / 'file', stdout=writer, stderr=writer)
    os.close(writer)
    assert lose_reader(program, reader) == 0
    assert (tmp_path / 'file').exists()


@on_unix
def test_a_reader_that_leaves_before_the_last_flush(speaker):
    """The program is over by then; the interpreter must not complain."""
    code = "import console\nconsole.set_up(must_finish=False)\ninput()\nprint('never read')"
    reader, writer = pipe()
    buffered = {'PYTHONUNBUFFERED': ''}
    program = speaker(code, env=buffered, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    assert program.communicate(b'\n', timeout=PATIENCE)[1] == b''
    assert program.returncode == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_under_stdout(speaker):
    code = (
        'import console, sys\nconsole.set_up(len(sys.argv) > 1)\n'
        "print('x', flush=True)\nprint('y', file=sys.stderr)"
    )
    for arguments, said, status in (
        (['finishes'], b'y\n', 0),
        ([], b'<stdout>: No space left on device\n', 1),
    ):
        with open('/dev/full', 'wb') as full:
            streams = dict(stdout=full, stderr=subprocess.PIPE)
            program = speaker(code, *arguments, env={'PYTHONUNBUFFERED': ''}, **streams)
            assert program.communicate(timeout=PATIENCE)[1] == said
        assert program.returncode == status


@on_unix
def test_streams_that_are_closed(speaker, tmp_path):
    """As by `<&- >&- 2>&-`."""
    code = (
        'import console, sys\nconsole.set_up(must_finish=True)\n'
        "print('x'), sys.stdout.isatty(), print('y', file=sys.stderr)\n"
        "open(sys.argv[1], 'w').write(sys.stdin.read() + 'whole')"
    )
    program = speaker(code, tmp_path / 'file', preexec_fn=lambda: [os.close(i) for i in range(3)])
    assert program.wait(PATIENCE) == 0
    assert (tmp_path / 'file').read_text(encoding='utf-8') == 'whole'


@pytest.mark.parametrize(
    'missing, shown', [('replace', b'? \xe4'), ('backslashreplace', b'\\u0436 \xe4')]
)
def test_a_character_that_the_encoding_lacks(speaker, missing, shown):
    code = (
        'import console, sys\nconsole.set_up(must_finish=False, missing=sys.argv[1])\n'
        "print('\\u0436 \\xe4')\nsys.exit('\\u0436')"
    )
    program = speaker(
        code,
        missing,
        env={'PYTHONIOENCODING': 'cp1252'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = program.communicate(timeout=PATIENCE)
    assert (stdout.rstrip(), stderr.rstrip(), program.returncode) == (shown, b'\\u0436', 1)


class NotebookStream:
    """A kernel's stream has no `reconfigure`, `closed` or `fileno`."""

    def write(self, text):
        pass

    def flush(self):
        pass


def test_streams_that_need_nothing_stay(monkeypatch):
    for stream in (io.StringIO(), NotebookStream()):
        monkeypatch.setattr('sys.stdout', stream)
        console.set_up(must_finish=True)
        assert sys.stdout is stream


def test_setting_up_again_wraps_no_stream_twice(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr('sys.stdout', stream)
    console.set_up(must_finish=True, missing='backslashreplace')
    once = sys.stdout
    console.set_up(must_finish=False)
    assert sys.stdout is once and once.stream is stream and not once.must_finish
    assert stream.errors == 'backslashreplace'


# ---- programs, as a user starts them


@on_unix
def test_a_file_is_written_though_nobody_reads_the_output(tmp_path):
    """tokenizer.py with its progress bars, stdout and stderr broken; the name is not in cp1252."""
    (tmp_path / 'ж.txt').write_text('low lower lowest ' * 50, encoding='utf-8')
    reader, writer = pipe()
    os.close(reader)
    command = [sys.executable, ROOT / 'tokenizer.py']
    training = ['--input=ж.txt', '--out=ж.json', '--vocab_size=262']
    environment = {**os.environ, 'PYTHONIOENCODING': 'cp1252'}
    done = subprocess.run(
        command + training,
        cwd=tmp_path,
        stdout=writer,
        stderr=writer,
        env=environment,
        timeout=PATIENCE,
    )
    os.close(writer)
    assert done.returncode == 0
    shown = subprocess.run(
        [*command, '--out=ж.json', '--show=ж low'],
        cwd=tmp_path,
        capture_output=True,
        env=environment,
        timeout=PATIENCE,
    )
    assert (shown.returncode, shown.stderr) == (0, b'')  # an encoding error would blame ж.json
    assert shown.stdout.startswith(b'\\xd0|\\xb6| low|')


@on_unix
def test_a_run_outlives_the_terminal(tmp_path, corpora):
    """After a hang-up train.py saves and ends, though nobody reads its output."""
    import fcntl
    import termios

    def own_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    master, slave = terminal()
    out = tmp_path / 'out'
    run = subprocess.Popen(
        [*TRAIN, f'--dataset={corpora}', f'--out_dir={out}'], cwd=ROOT,
        stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(slave)
    said = b''
    while b'tokens/s' not in said:
        said += os.read(master, 2**16)
    os.close(master)
    assert run.wait(PATIENCE) == 0
    assert checkpoint.load(out / 'ckpt.pt')['step'] >= 1


@on_unix
@pytest.mark.parametrize('ranks', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_outlives_the_reader_of_its_output(tmp_path, corpora, ranks):
    """`python train.py 2>&1 | head`, Ctrl-C later: the log continues, the checkpoint is saved."""
    out = tmp_path / 'out'
    torchrun = (
        ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'] if ranks > 1 else []
    )
    command = [TRAIN[0], *torchrun, *TRAIN[1:], f'--dataset={corpora}', f'--out_dir={out}']
    run = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        # a background job ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    said = b''
    while b'tokens/s' not in said:
        more = os.read(run.stdout.fileno(), 2**16)
        assert more, said.decode()
        said += more
    run.stdout.close()
    try:
        log = out / 'log.jsonl'
        enough = len(runlog.read_log(log)) + 20
        deadline = time.monotonic() + PATIENCE
        while len(runlog.read_log(log)) < enough and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        # torchrun exits with 1 after Ctrl-C, or with 120 if it cannot write its own last words
        assert run.wait(PATIENCE) in ((0,) if ranks == 1 else (1, 120))
    finally:
        run.kill()
    assert checkpoint.load(out / 'ckpt.pt')['step'] >= 20


@on_unix
def test_a_program_is_found_through_a_link_and_without_its_folder_on_the_path(tmp_path):
    """PYTHONSAFEPATH=1 is python -P. report.py reads the settings of the train.py beside it."""
    (tmp_path / 'link.py').symlink_to(ROOT / 'report.py')
    (tmp_path / 'log.jsonl').write_text(
        '{"config": {"stage": "pretrain"}, "machine": {}}\n', encoding='utf-8'
    )
    environment = {name: x for name, x in os.environ.items() if name != 'PYTHONPATH'}
    environment['PYTHONSAFEPATH'] = '1'
    command = [sys.executable, 'link.py', '.']
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (0, 'report.md\n'), done.stderr


# ---- a notebook


@pytest.fixture(scope='module')
def notebook(oracle):
    """notebook(code, press_at='…') -> its output. Interrupts the kernel when press_at appears. Over
    Unix sockets: a TCP port, free when it is chosen, may be taken before the kernel listens."""
    oracle('ipykernel')
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import KernelManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, name):
            return KernelSpec(
                argv=[sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
            )

    folder = tempfile.TemporaryDirectory()  # its path is short enough for a socket's
    manager = KernelManager(
        kernel_spec_manager=ThisPython(), transport='ipc', ip=f'{folder.name}/kernel',
        connection_file=f'{folder.name}/kernel.json',
    )  # fmt: skip
    manager.start_kernel(cwd=str(ROOT), env={**os.environ, 'OMP_NUM_THREADS': '1'})
    client = manager.blocking_client()

    def run(code, press_at=None):
        said, pressed = [], []

        def hear(message):
            content = message['content']
            said.append(content.get('text', '') + '\n'.join(content.get('traceback', [])))
            if press_at and press_at in ''.join(said) and not pressed:
                pressed.append(manager.interrupt_kernel())

        client.execute_interactive(code, timeout=PATIENCE, output_hook=hear)
        return ''.join(said)

    try:
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE)
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        folder.cleanup()


STATE = """
import signal, sys, optim, torch
def process_state():
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers = [signal.getsignal(number) for number in signals]
    fills = torch.utils.deterministic.fill_uninitialized_memory
    mode = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()
    return handlers, sys.excepthook, fills, mode, sys.stdout, sys.stderr
state_before = process_state()
"""
BREAKS = """
optim.Optimizer.norm = lambda self: 1 / 0
"""


@on_unix
def test_programs_in_a_notebook_leave_it_as_it_was(notebook, tmp_path, corpora):
    """After a run, another program, the interrupt button, and runs that fail."""
    out = tmp_path / 'out'
    train = f'%run {" ".join(TRAIN[1:])} --out_dir={out}'
    assert notebook(STATE) == ''
    for code, press_at, expected in (
        (f'{train} --dataset={corpora} --max_iters=3', None, 'step 3/3 | val '),
        (f'%run sample.py --out_dir={out} --start=the --max_new_tokens=8', None, '---------------'),
        (f'{train} --dataset={corpora}', 'tokens/s', 'as asked; continue with'),
        (f'%run report.py {tmp_path}', None, 'report.md'),
        (f'{train} --dataset=no_such', None, 'no_such'),
        (f'{BREAKS}{train} --dataset={corpora}', None, 'ZeroDivisionError'),
    ):
        assert expected in notebook(code, press_at)
        assert notebook('print(process_state() == state_before)') == 'True\n', code
