"""
The rules of the house, held by reading the source: who imports whom, how long things get, what is said where.

Each rule is a function from a file's syntax tree to its complaints, and is shown a bad and a good example first: a rule
that cannot complain proves nothing.
"""

import ast
import io
import math
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(
    path for pattern in ('*.py', 'config/**/*.py', 'data/*.py', 'data/*/*.py', 'dev/*.py') for path in ROOT.glob(pattern)
)  # all but the tests; a data set's raw/ holds other people's files
TESTS = sorted((ROOT / 'tests').glob('*.py'))
CORE = [path for path in CODE if path.parent == ROOT]

LAYERS = {
    'base': 'utf8 console disk segments',  # what several leaves need; the standard library and numpy
    'leaf': 'model moe tokenizer conversation optim tools configurator runtime runlog',
    'lower': 'shards',
    'middle': 'batches tasks engine checkpoint pretrained plan',
    'upper': 'evaluate',
    'program': 'train sample serve bench report dial compare bench_tokenizer',
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
MAY_IMPORT = {
    'base': (),
    'leaf': ('base',),
    'lower': ('base', 'leaf'),
    'middle': ('base', 'leaf', 'lower'),
    'upper': ('base', 'leaf', 'lower', 'middle'),
    'program': ('base', 'leaf', 'lower', 'middle', 'upper'),
}
PACKAGES = {'torch', 'numpy', 'tiktoken', 'requests', 'tqdm', 'regex'}
UNIX_ONLY = {'fcntl', 'resource', 'termios', 'pwd', 'grp', 'readline', 'tty', 'pty', 'syslog'}
PICKLES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
EVALUATES = {'eval', 'exec', '__import__'}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'), name_of(path))


def each(paths):
    return pytest.mark.parametrize('path', paths, ids=[name_of(path) for path in paths])


def is_main_block(node):
    return isinstance(node, ast.If) and '__name__' in ast.unparse(node.test) and '__main__' in ast.unparse(node.test)


def walk(node, inside_functions=True, main_block=True):
    """ast.walk, which can stay out of functions and of `if __name__ == '__main__':`."""
    for child in ast.iter_child_nodes(node):
        if not main_block and is_main_block(child):
            continue
        yield child
        if inside_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from walk(child, inside_functions, main_block)


def imported(nodes):
    """(top name, line) of every module that these nodes import: `data.download` counts as data."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition('.')[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ('a relative import' if node.level else node.module.partition('.')[0]), node.lineno


# ---- the rules: (tree, file name) -> complaints


def imports_only_below(tree, name):
    layer = LAYER.get(name.removesuffix('.py'), 'program')  # data/*/prepare.py are programs
    for module, line in imported(walk(tree, main_block=False)):
        excused = (name, module) == ('model.py', 'moe')
        if module == 'a relative import' or LAYER.get(module, layer) not in (*MAY_IMPORT[layer], layer):
            yield f'{line}: {layer} imports {module}'
        elif LAYER.get(module) == layer and not excused:
            yield f'{line}: {layer} imports {module}, of its own layer'


def imports_core_packages_at_top(tree, name):
    own = {path.stem for path in CORE} | {'data', 'download'}
    for module, line in imported(walk(tree, inside_functions=False)):
        if module not in own | PACKAGES | set(sys.stdlib_module_names):
            yield f'{line}: {module} is no core package, import it inside the function that needs it'
        if module in UNIX_ONLY:
            yield f'{line}: {module} does not exist on Windows, import it inside the function that needs it'


def evaluates_and_pickles_nothing(tree, name):
    for module, line in imported(walk(tree)):
        if module in PICKLES:
            yield f'{line}: import {module}'
    for node in walk(tree):
        if isinstance(node, ast.Name) and node.id in EVALUATES:
            yield f'{node.lineno}: {node.id}'
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {f'builtins.{word}' for word in EVALUATES}:
            yield f'{node.lineno}: {ast.unparse(node)}'
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            if called == 'torch.load' and given.get('weights_only') != 'True':
                yield f'{node.lineno}: torch.load without weights_only=True unpickles'
            if given.get('allow_pickle') == 'True':
                yield f'{node.lineno}: allow_pickle=True'


def functions_are_short(tree, name):
    for node in walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60:
            yield f'{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines'


def text_is_opened_with_its_encoding(tree, name):
    for node in walk(tree):
        if not isinstance(node, ast.Call) or any(key.arg == 'encoding' for key in node.keywords):
            continue
        called = ast.unparse(node.func)
        owner, _, method = called.rpartition('.')
        position = {'read_text': 0, 'write_text': 1}.get(method)  # where encoding stands, if it is not named
        if position is not None and len(node.args) <= position:
            yield f'{node.lineno}: {method} without encoding'
        elif method in ('open', 'fdopen') and owner not in ('tarfile', 'zipfile', 'webbrowser'):
            path_first = not owner or owner in ('os', 'io', 'gzip', 'bz2', 'lzma')  # else path.open(mode)
            keywords = [key.value for key in node.keywords if key.arg == 'mode']
            mode = (keywords or node.args[1 if path_first else 0 :] or [ast.Constant('r')])[0]
            text = 't' in ast.unparse(mode) if owner in ('gzip', 'bz2', 'lzma') else 'b' not in ast.unparse(mode)
            if text and called != 'os.open':
                yield f'{node.lineno}: {called} of text without encoding'


def reads_no_environment(tree, name):
    for node in walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [node.attr] if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'os' else []
        if {'environ', 'environb', 'getenv', 'putenv'} & set(names):
            yield f'{node.lineno}: the environment belongs to runtime.py'


def has_no_global_and_swallows_nothing(tree, name):
    for node in walk(tree):
        if isinstance(node, ast.Global):
            yield f'{node.lineno}: global {", ".join(node.names)}'
        if isinstance(node, ast.ExceptHandler):
            everything = node.type is None or ast.unparse(node.type) in ('Exception', 'BaseException')
            idle = all(isinstance(step, (ast.Pass, ast.Continue, ast.Return)) for step in node.body)
            if node.type is None or everything and idle:
                yield f'{node.lineno}: an except that hides what went wrong'


def sets_up_the_console_first(tree, name):
    """A program calls console.set_up before configure, which may print --help."""
    calls = {}  # what is called: the first line that does
    for node in walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            calls[called] = min(node.lineno, calls.get(called, node.lineno))
    is_program = 'configure' in calls or any(map(is_main_block, tree.body))
    if is_program and 'console.set_up' not in calls:
        yield '1: a program that does not call console.set_up'
    elif is_program and calls['console.set_up'] > calls.get('configure', math.inf):
        yield f'{calls["configure"]}: configure is called before console.set_up'


def finds_its_neighbours(tree, name):
    """Through a symbolic link too, and where python -P leaves the program's folder out of sys.path."""
    called = {ast.unparse(node.func) for node in walk(tree) if isinstance(node, ast.Call)}
    if 'console.set_up' in called and 'sys.path.insert' not in called:
        yield '1: python -P does not find what it imports'
    for node in walk(tree):
        beside = isinstance(node, ast.Attribute) and node.attr in ('parent', 'parents', 'with_name')
        if beside and ast.unparse(node.value) == 'Path(__file__)':
            yield f'{node.lineno}: Path(__file__) without resolve(): the folder of a link, not of the program'


def has_its_settings_explained(tree, name, source):
    """Every plain assignment above `configure(`: what it is, its unit, when to change it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for block in [tree, *filter(is_main_block, tree.body)]:
        nodes = walk(block, inside_functions=False, main_block=block is not tree)
        calls = [node.lineno for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == 'configure']
        for node in block.body:
            if calls and node.lineno < calls[0] and is_assignment(node) and is_plain(node.value):
                setting = ast.unparse(node.targets[0])
                if not setting.startswith('_') and not setting.isupper() and node.end_lineno not in comments:
                    yield f'{node.lineno}: {setting} has no comment'


def is_assignment(node):
    return isinstance(node, ast.Assign)


def is_plain(node):
    """True for a literal number, text, bool or None, and for arithmetic on such."""
    return all(isinstance(part, (ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop))
               for part in ast.walk(node))  # fmt: skip


# ---- each rule complains about the bad and lets the good pass

EXAMPLES = [
    (imports_only_below, 'batches.py', 'import train', 'import model\nimport numpy'),
    (imports_only_below, 'batches.py', 'def f():\n    from engine import Engine', 'from tokenizer import Tokenizer'),
    (imports_only_below, 'model.py', 'import optim', 'import moe'),
    (imports_only_below, 'utf8.py', 'import console', 'import json'),
    (imports_only_below, 'tokenizer.py', 'from conversation import Chat', 'from utf8 import valid_text'),
    (imports_only_below, 'moe.py', 'import model', 'import torch'),
    (imports_only_below, 'evaluate.py', 'import bench', 'import batches\nimport model'),
    (imports_only_below, 'train.py', 'from sample import complete', 'import evaluate, batches, model'),
    (imports_only_below, 'data/a/prepare.py', 'import train', 'import tokenizer\nfrom data.download import fetch'),
    (imports_only_below, 'tokenizer.py', 'import configurator', 'if __name__ == "__main__":\n    import configurator'),
    (imports_only_below, 'model.py', 'from . import moe', 'import math'),
    (imports_core_packages_at_top, 'a.py', 'import safetensors', 'def f():\n    import safetensors'),
    (imports_core_packages_at_top, 'a.py', 'try:\n    import triton\nexcept ImportError:\n    x = 1', 'import torch'),
    (imports_core_packages_at_top, 'a.py', 'import fcntl', 'import json, torch.nn.functional as F\nimport model'),
    (evaluates_and_pickles_nothing, 'a.py', 'eval("1")', 'model.eval()'),
    (evaluates_and_pickles_nothing, 'a.py', 'f = exec', 'ast.literal_eval("1")'),
    (evaluates_and_pickles_nothing, 'a.py', 'builtins.eval("1")', 'self.eval("1")'),
    (evaluates_and_pickles_nothing, 'a.py', 'from pickle import load', 'import json'),
    (evaluates_and_pickles_nothing, 'a.py', 'torch.load(f)', 'torch.load(f, weights_only=True)'),
    (evaluates_and_pickles_nothing, 'a.py', 'np.load(f, allow_pickle=True)', 'np.load(f)'),
    (functions_are_short, 'a.py', 'def f():\n' + '    x = 1\n' * 60, 'def f():\n' + '    x = 1\n' * 59),
    (text_is_opened_with_its_encoding, 'a.py', 'open(p)', 'open(p, encoding="utf-8")'),
    (text_is_opened_with_its_encoding, 'a.py', 'open(p, "w")', 'open(p, "wb")'),
    (text_is_opened_with_its_encoding, 'a.py', 'open(p, mode=m)', 'open(p, mode="rb")'),
    (text_is_opened_with_its_encoding, 'a.py', 'p.open()', 'p.open("rb")'),
    (text_is_opened_with_its_encoding, 'a.py', '(a / b).open("a")', '(a / b).open("a", encoding="utf-8")'),
    (text_is_opened_with_its_encoding, 'a.py', 'gzip.open(p, "rt")', 'gzip.open(p)\nos.open(p, 0)\ntarfile.open(p)'),
    (text_is_opened_with_its_encoding, 'a.py', 'p.read_text()', 'p.read_text("utf-8")\np.read_bytes()'),
    (text_is_opened_with_its_encoding, 'a.py', 'p.write_text(s)', 'p.write_text(s, encoding="utf-8")'),
    (reads_no_environment, 'a.py', 'os.environ["A"]', 'os.cpu_count()'),
    (reads_no_environment, 'a.py', 'os.getenv("A")', 'simulator.environ'),
    (reads_no_environment, 'a.py', 'from os import environ', 'from os import replace'),
    (has_no_global_and_swallows_nothing, 'a.py', 'def f():\n    global x', 'def f():\n    nonlocal_ = 1'),
    (has_no_global_and_swallows_nothing, 'a.py', 'try:\n    f()\nexcept:\n    g()', 'try:\n    f()\nfinally:\n    g()'),
    (sets_up_the_console_first, 'a.py', 'configure(globals())', 'console.set_up(True)\nconfigure(globals())'),
    (sets_up_the_console_first, 'a.py', 'configure({})\nconsole.set_up(True)', 'def configure(): print(1)'),
    (
        sets_up_the_console_first,
        'a.py',
        'if __name__ == "__main__":\n    main()',
        'def main():\n    console.set_up(True)\n\nif __name__ == "__main__":\n    main()',
    ),
    (finds_its_neighbours, 'a.py', 'Path(__file__).with_name("b")', 'Path(__file__).resolve().with_name("b")'),
    (finds_its_neighbours, 'a.py', 'console.set_up(True)', 'sys.path.insert(0, "a")\nconsole.set_up(True)'),
    (
        has_no_global_and_swallows_nothing,
        'a.py',
        'try:\n    f()\nexcept Exception:\n    pass',
        'try:\n    f()\nexcept KeyError:\n    pass',
    ),
]


@pytest.mark.parametrize(
    'rule, name, bad, good', EXAMPLES, ids=[f'{row[0].__name__}-{row[2]!r:.30}' for row in EXAMPLES]
)
def test_a_rule_tells_bad_from_good(rule, name, bad, good):
    assert list(rule(ast.parse(bad), name))
    assert not list(rule(ast.parse(good), name))


def test_the_settings_rule_tells_bad_from_good():
    source = 'import os\nN = 1\nlr = 1e-3 * 2  # rate\nname = None\n_x = 1\npath = f()\nconfig = configure({})\ny = 2\n'
    assert list(has_its_settings_explained(ast.parse(source), 'a.py', source)) == ['4: name has no comment']
    nested = 'a = 1\nwith b:\n    c = 1\n    config = configure({})\n'
    assert list(has_its_settings_explained(ast.parse(nested), 'a.py', nested)) == ['1: a has no comment']
    library = 'SIZE = 3\nx = 1\nif __name__ == "__main__":\n    a = 1\n    config = configure(globals())\n'
    assert list(has_its_settings_explained(ast.parse(library), 'a.py', library)) == ['4: a has no comment']


# ---- the house itself


def test_the_files_are_found():
    assert {'model.py', 'train.py', 'configurator.py'} <= {path.name for path in CORE}


def test_the_root_holds_the_planned_files_only():
    assert {path.stem for path in CORE} <= set(LAYER)


@each(CODE)
@pytest.mark.parametrize(
    'rule',
    [
        imports_only_below,
        functions_are_short,
        text_is_opened_with_its_encoding,
        has_no_global_and_swallows_nothing,
        sets_up_the_console_first,
    ],
)
def test_every_file_keeps(rule, path):
    assert not list(rule(parse(path), name_of(path)))


@each(CORE)
def test_core_files_find_their_neighbours(path):
    assert not list(finds_its_neighbours(parse(path), name_of(path)))


@each(CORE)
def test_core_files_need_core_packages_only(path):
    assert not list(imports_core_packages_at_top(parse(path), name_of(path)))


@each([path for path in CODE if name_of(path) != 'configurator.py'])
def test_only_the_configurator_evaluates(path):
    assert not list(evaluates_and_pickles_nothing(parse(path), name_of(path)))


@each([path for path in CODE if name_of(path) not in ('runtime.py', 'console.py')])
def test_only_runtime_and_console_read_the_environment(path):
    assert not list(reads_no_environment(parse(path), name_of(path)))


@each(CODE + TESTS)
def test_no_line_is_above_120_columns(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 120] == []


@each([path for path in CORE if 'configure(globals()' in path.read_text(encoding='utf-8')])
def test_every_setting_has_a_comment(path):
    if path.stem != 'configurator':  # its docstring shows the call
        assert not list(has_its_settings_explained(parse(path), path.name, path.read_text(encoding='utf-8')))


def test_the_settings_rule_sees_the_settings():
    source = (ROOT / 'train.py').read_text(encoding='utf-8')
    bare = '\n'.join(line.partition('  # ')[0] for line in source.splitlines())  # train.py without its comments
    assert len(list(has_its_settings_explained(ast.parse(bare), 'train.py', bare))) > 20


def test_the_dependencies_are_exactly_the_six():
    text = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')  # tomllib is younger than Python 3.10
    block = re.search(r'^dependencies = (\[.*?^\])', text, re.MULTILINE | re.DOTALL).group(1)
    dependencies = ast.literal_eval(block)
    assert {re.match(r'\w+', dependency).group() for dependency in dependencies} == PACKAGES
    assert len(dependencies) == 6 and 'torch>=2.9,<2.14' in dependencies


# ---- what conftest promises


@pytest.mark.parametrize('ci, outcome', [('', '1 passed, 1 skipped'), ('true', '1 failed, 1 passed')])
def test_an_oracle_that_is_missing_is_named_and_fails_under_ci(tmp_path, run_program, ci, outcome):
    (tmp_path / 'conftest.py').write_bytes((ROOT / 'tests' / 'conftest.py').read_bytes())
    (tmp_path / 'test_it.py').write_text(
        'def test_present(oracle):\n    assert oracle("json").dumps([1]) == "[1]"\n\n'
        'def test_absent(oracle):\n    oracle("no_such_oracle.part")\n',
        encoding='utf-8',
    )
    (tmp_path / 'run.py').write_text(
        f'import pytest\nraise SystemExit(pytest.main([{str(tmp_path)!r}]))', encoding='utf-8'
    )
    done = run_program(tmp_path / 'run.py', cwd=tmp_path, check=False, env={'CI': ci})
    assert outcome in done.stdout.splitlines()[-1]
    assert done.returncode == (1 if ci else 0)
    assert (
        'oracle not run: no_such_oracle is missing (pip install ".[dev]")'
        in done.stdout.splitlines()[-2 - bool(ci) * 2 :]
    )


def test_run_program_shows_why_a_program_failed(tmp_path, run_program):
    program = tmp_path / 'a.py'
    program.write_text(
        'import os, sys\nprint(os.environ["OMP_NUM_THREADS"], "ö")\nsys.exit(sys.argv[1])', encoding='utf-8'
    )
    with pytest.raises(AssertionError, match='(?s)exit status 1.*stdout.*1 ö.*stderr.*so it is'):
        run_program(program, 'so it is', cwd=tmp_path)
    assert run_program(program, 'so it is', check=False).stderr == 'so it is\n'
