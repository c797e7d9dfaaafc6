"""
Time the tokenizer beside programs in Rust on the same cores: train a BPE, encode with it.

    $ python dev/bench_tokenizer.py                   # 100 MB of text: takes minutes
    $ python dev/bench_tokenizer.py --text_mb=20

Programs: this repository's; rustbpe and gigatoken for training, each if it is installed; tiktoken
with our table for encoding. They take turns, each in a process of its own. Results are checked: the
merges must be rustbpe's, the ids tiktoken's. Figures are medians. The last line of stdout is all of
them as one JSON object.
"""

import ast
import base64
import hashlib
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

import console
from configurator import check_ranges, configure

text_mb = 100.0  # millions of bytes of text to train on, from what this Python has installed
bpe_vocab_size = 32768  # ids of the tokenizer
bpe_repeats = 3  # rounds; in each every program trains or encodes once
seed = 1337  # of the random texts

# -----------------------------------------------------------------------------
# texts

SUFFIXES = {'.py', '.pyi', '.md', '.rst', '.txt', '.po', '.json'}
BETWEEN = '\0'  # separates documents in a file; no document contains it


def installed_texts(limit: int) -> list[tuple[str, str]]:
    """(suffix, text) of the text files below site-packages and the standard library, in order of
    their paths, without duplicates, at most `limit` bytes."""
    roots = [Path(sysconfig.get_path(name)) for name in ('purelib', 'stdlib')]
    paths = {path for root in roots for path in root.rglob('*') if path.suffix in SUFFIXES}
    found = []
    seen = set()
    size = 0
    for path in sorted(paths):
        content = path.read_bytes() if path.is_file() else b''
        digest = hashlib.sha256(content).digest()
        try:
            text = content.decode('utf-8')
        except UnicodeDecodeError:
            continue
        if not text or digest in seen or BETWEEN in text:
            continue
        if size + len(content) > limit:
            break
        seen.add(digest)
        found.append((path.suffix, text))
        size += len(content)
    return found


def natural_texts(texts: list[tuple[str, str]]) -> Iterator[str]:
    """Text written for people: the .md, .rst and .txt files, and the docstrings of .py files."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for suffix, text in texts:
        if suffix in ('.md', '.rst', '.txt'):
            yield text
        if suffix != '.py':
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # invalid escapes in other people's code
                nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        except (SyntaxError, ValueError, RecursionError):  # test data of parsers
            continue
        yield from filter(None, (ast.get_docstring(node, clean=False) for node in nodes))


def worst_texts(size: int) -> dict[str, list[str]]:
    """Texts in which hardly a word occurs twice, about `size` bytes of each kind, in documents of a
    megabyte."""
    rng = random.Random(seed)
    documents = range(-(-size // 10**6))

    def line():
        time = f'12:00:{rng.randrange(60):02d}'
        return f'{time} INFO commit {rng.randbytes(20).hex()} tree {rng.randbytes(20).hex()}'

    return {
        'base64': [base64.b64encode(rng.randbytes(750_000)).decode() for _ in documents],
        'hashes': ['\n'.join(line() for _ in range(9000)) for _ in documents],
    }


# -----------------------------------------------------------------------------
# programs. Each runs in a process of its own, without torch, because its memory and that of the
# processes it starts is measured. Only work() is timed. Arguments: the texts, cores, vocabulary
# size, the tokenizer, and where to write ids

CHILD = """
import json, sys, time
sys.path.insert(0, '')  # PYTHONSAFEPATH leaves it out
import numpy as np, tiktoken
from tokenizer import PATTERN, load, train_bpe
path, cores, size, table, out = sys.argv[1:]
cores, size = int(cores), int(size)

def texts():
    rest = ''
    with open(path, encoding='utf-8', newline='') as file:
        while block := file.read(2**20):
            *whole, rest = (rest + block).split(chr(0))
            yield from whole
    yield rest

def memory():  # peak of this process, and for each core the peak of its largest child
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == 'darwin' else 1024
    own = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:  # on Linux ru_maxrss starts at the parent's
        with open('/proc/self/status', encoding='ascii') as file:
            own = next(1024 * int(line.split()[1]) for line in file if line.startswith('VmHWM'))
    except OSError:
        pass
    return own + cores * children

{program}
started = time.perf_counter()
result = work()
print(json.dumps(dict(seconds=time.perf_counter() - started, memory=memory())))
{after}
"""
# name: (program, what it does after the clock has stopped)
TRAINERS = {
    'ours': (
        'def work(): return train_bpe(texts(), size, num_workers=cores)',
        'result.save(table)',
    ),
    'rustbpe': (
        """
import rustbpe
trained = rustbpe.Tokenizer()
def work(): trained.train_from_iterator(texts(), size, pattern=PATTERN)
""",
        """
ranks = trained.get_mergeable_ranks()
pieces = [bytes(piece) for piece, rank in sorted(ranks, key=lambda item: item[1])]
ours = load(table)
expected = [ours.decode_bytes([i]) for i in range(ours.vocab_size)]
assert pieces == expected, 'these are not the merges of rustbpe'
""",
    ),
    'gigatoken': (
        """
import gigatoken
source = gigatoken.TextFileSource([path], separator=chr(0))
def work(): gigatoken.train_bpe(source, size, [])
""",
        '',
    ),
}
ENCODERS = {
    'ours': (
        """
tokenizer, documents = load(table), list(texts())
tokenizer.encode('builds what is built once')
def work(): np.concatenate(list(tokenizer.encode_batch(documents, cores))).tofile(out)
""",
        '',
    ),
    'tiktoken': (
        """
tokenizer, documents = load(table), list(texts())
ranks = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size)}
engine = tiktoken.Encoding(
    'x', pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={}
)
engine.encode_ordinary('builds what is built once')
def work(): return engine.encode_ordinary_batch(documents, num_threads=cores)
""",
        """
ours = np.fromfile(out, np.uint16)
assert ours.tolist() == [i for ids in result for i in ids], 'these are not the ids of tiktoken'
""",
    ),
}


def run_in_turns(programs: dict[str, tuple[str, str]], arguments: list) -> dict[str, dict]:
    """{name: median seconds and peak memory} of the programs, which take turns."""
    runs = {name: [] for name in programs}
    for name in list(programs) * bpe_repeats:
        program, after = programs[name]
        code = CHILD.replace('{program}', program).replace('{after}', after)
        done = subprocess.run(
            [sys.executable, '-c', code, *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, encoding='utf-8',
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f'{name} failed: {done.stderr.strip().splitlines()[-1]}')
        result = next(line for line in done.stdout.splitlines() if line.startswith('{'))
        runs[name].append(json.loads(result))

    def typical(found, key):
        return None if found[0][key] is None else median(run[key] for run in found)

    return {
        name: {key: typical(found, key) for key in ('seconds', 'memory')}
        for name, found in runs.items()
    }


def show(kind: str, size: int, found: dict[str, dict]) -> None:
    for name, figures in found.items():
        memory = figures['memory']
        memory = 'n/a' if memory is None else f'{memory / 2**20:,.0f} MiB'
        share = found['ours']['seconds'] / figures['seconds']
        print(
            f'{kind:<10}{name:<10}{figures["seconds"]:7.2f} s'
            f' | {size / 1e6 / figures["seconds"]:6.1f} MB/s'
            f' | ours takes {share:.2f} of its time | peak memory {memory}',
            flush=True,
        )


def main() -> None:
    console.set_up(must_finish=False)
    config = configure(globals())
    check_ranges(config, least=dict(text_mb=0.1, bpe_vocab_size=256, bpe_repeats=1, seed=0))

    # 1) Texts: what is installed, what of it is natural language, and what repeats nothing
    cores = os.cpu_count()
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    texts = installed_texts(int(text_mb * 1e6))
    content = BETWEEN.join(text for _, text in texts).encode('utf-8')
    about = dict(
        bytes=len(content),
        documents=len(texts),
        sha256=hashlib.sha256(content).hexdigest(),
        not_ascii=float(np.mean(np.frombuffer(content, np.uint8) >= 128)),
    )
    print(
        f'text    {about["bytes"]:,} bytes, {about["documents"]:,} documents, '
        f'{about["not_ascii"]:.2%} not ASCII, sha256 {about["sha256"]}'
    )
    kinds = {
        'training': [text for _, text in texts],
        'natural': list(natural_texts(texts)),
        **worst_texts(int(text_mb * 1e5)),
    }

    # 2) Train on the first kind, encode the others
    trainers = {
        name: program
        for name, program in TRAINERS.items()
        if name == 'ours' or importlib.util.find_spec(name)
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, documents in kinds.items():
            path = Path(folder, kind)
            path.write_bytes(BETWEEN.join(documents).encode('utf-8'))
            arguments = [
                path,
                cores,
                bpe_vocab_size,
                Path(folder, 'tok.json'),
                Path(folder, 'ids.bin'),
            ]
            found[kind] = run_in_turns(trainers if kind == 'training' else ENCODERS, arguments)
            show(kind, path.stat().st_size, found[kind])

    machine = dict(
        name=platform.machine(),
        cores=cores,
        python=platform.python_version(),
        system=platform.system(),
    )
    print(json.dumps(dict(tokenizer=dict(text=about, **found), machine=machine, settings=config)))


if __name__ == '__main__':
    main()
