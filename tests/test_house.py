"""
The rules of the house, checked on the source: imports, lengths, encodings, what programs call.

A rule is a function from a file's syntax tree and name to its complaints. Each one is tested on a
bad and a good example too: a rule that cannot complain proves nothing.
"""

import ast
import functools
import io
import math
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# All files but the tests; deeper folders below data/ hold downloaded files
PATTERNS = ('*.py', 'config/**/*.py', 'data/*.py', 'data/*/*.py', 'dev/*.py')
CODE = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
TESTS = sorted((ROOT / 'tests').glob('*.py'))
CORE = [path for path in CODE if path.parent == ROOT]

LAYERS = {
    'base': 'utf8 console disk segments',  # for leaves; need the standard library and numpy only
    'leaf': 'model moe extras tokenizer conversation optim sampling tools sandbox configurator '
    'runtime runlog hf_files',
    'lower': 'shards cache hf_tokenizer families packed rewards',
    'middle': 'batches tasks engine pretrained export plan',
    'high': 'core checkpoint validation exam',
    'upper': 'evaluate costs dialogue',
    'top': 'protocol',
    'program': 'train sample serve bench report dial compare bench_tokenizer gpu_check exercise '
    'race',
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
MAY_IMPORT = {layer: tuple(LAYERS)[:i] for i, layer in enumerate(LAYERS)}  # those before it
PACKAGES = {'torch', 'numpy', 'tiktoken', 'requests', 'tqdm', 'regex'}
UNIX_ONLY = {'fcntl', 'resource', 'termios', 'pwd', 'grp', 'readline', 'tty', 'pty', 'syslog'}
PICKLES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
EVALUATES = {'eval', 'exec', '__import__'}
MAX_COLUMNS = 100
MAX_LINES = 60  # of a function


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'), name_of(path))


def complaints(rule, paths):
    """{file: complaints} of the files that break the rule."""
    found = {name_of(path): list(rule(parse(path), name_of(path))) for path in paths}
    return {name: said for name, said in found.items() if said}


def is_main_block(node):
    test = ast.unparse(node.test) if isinstance(node, ast.If) else ''
    return '__name__' in test and '__main__' in test


def walk(node, inside_functions=True, main_block=True):
    """Like ast.walk, with the choice to skip functions and `if __name__ == '__main__':`."""
    for child in ast.iter_child_nodes(node):
        if not main_block and is_main_block(child):
            continue
        yield child
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if inside_functions or not is_function:
            yield from walk(child, inside_functions, main_block)


def imported(nodes):
    """(top name, line) of each module that these nodes import: `data.download` counts as data."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition('.')[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = 'a relative import' if node.level else node.module.partition('.')[0]
            yield module, node.lineno


def module_of(path):
    """'data/tinyworld/text.py' -> 'data.tinyworld.text'. Files in dev/ find each other by stem."""
    return name_of(path).removesuffix('.py').replace('/', '.').removeprefix('dev.')


def imported_in_full(tree, main_block=True):
    """(dotted name, line) of everything that may be a module: `from a import b` gives a and a.b."""
    for node in walk(tree, main_block=main_block):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.removeprefix('dev.'), node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for name in [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]:
                yield name.removeprefix('dev.'), node.lineno


def find_circle(trees):
    """
    [a, b, …, a] if module a imports b and so on, else None. trees: {module: syntax tree}.

    Imports inside functions count: they hide a circle, they do not break it. Imports below
    `if __name__ == '__main__':` do not count: they never run on import.
    """
    imports = {}
    for module, tree in trees.items():
        names = imported_in_full(tree, main_block=False)
        imports[module] = [name for name, _ in names if name in trees]
    free = set()  # modules from which no circle can be reached

    def search(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        for other in imports[module] if module not in free else []:
            circle = search(other, [*path, module])
            if circle:
                return circle
        free.add(module)
        return None

    for module in imports:
        circle = search(module, [])
        if circle:
            return circle
    return None


# ---- the rules: (tree, file name) -> complaints


def imports_only_below(tree, name):
    layer = LAYER.get(name.removesuffix('.py'), 'program')  # data/*/prepare.py are programs
    allowed = (*MAY_IMPORT[layer], layer)
    for module, line in imported(walk(tree, main_block=False)):
        excused = name == 'model.py' and module in ('extras', 'moe')
        if module == 'a relative import' or LAYER.get(module, layer) not in allowed:
            yield f'{line}: {layer} imports {module}'
        elif LAYER.get(module) == layer and not excused:
            yield f'{line}: {layer} imports {module}, of its own layer'


def imports_no_program(tree, name):
    """A program runs when it is imported. evaluate.py and tokenizer.py are modules that can run."""
    for module, line in imported_in_full(tree):
        *_, last = module.split('.')
        if LAYER.get(module) == 'program' or module.startswith('data.') and last == 'prepare':
            yield f'{line}: {module} is a program'


def imports_core_packages_at_top(tree, name):
    own = {path.stem for path in CORE} | {'data', 'download'}
    for module, line in imported(walk(tree, inside_functions=False)):
        if module not in own | PACKAGES | set(sys.stdlib_module_names):
            yield f'{line}: {module} is not a core package, import it inside a function'
        if module in UNIX_ONLY:
            yield f'{line}: {module} does not exist on Windows, import it inside a function'


def evaluates_and_pickles_nothing(tree, name):
    for module, line in imported(walk(tree)):
        if module in PICKLES:
            yield f'{line}: import {module}'
    for node in walk(tree):
        if isinstance(node, ast.Name) and node.id in EVALUATES:
            yield f'{node.lineno}: {node.id}'
        if isinstance(node, ast.Attribute) and node.attr in EVALUATES:
            if ast.unparse(node.value) == 'builtins':
                yield f'{node.lineno}: {ast.unparse(node)}'
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {key.arg: ast.unparse(key.value) for key in node.keywords}
            if called == 'torch.load' and given.get('weights_only') != 'True':
                yield f'{node.lineno}: torch.load without weights_only=True unpickles'
            if given.get('allow_pickle') == 'True':
                yield f'{node.lineno}: allow_pickle=True'


def functions_are_short(tree, name):
    for node in walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_LINES:
                yield f'{node.lineno}: {node.name} has {lines} lines, expected at most {MAX_LINES}'


def lines_are_short(source):
    for number, line in enumerate(source.splitlines(), start=1):
        if len(line) > MAX_COLUMNS:
            yield f'{number}: {len(line)} columns, expected at most {MAX_COLUMNS}'


def text_is_opened_with_its_encoding(tree, name):
    for node in walk(tree):
        if not isinstance(node, ast.Call) or any(key.arg == 'encoding' for key in node.keywords):
            continue
        called = ast.unparse(node.func)
        owner, _, method = called.rpartition('.')
        position = {'read_text': 0, 'write_text': 1}.get(method)  # of encoding without its name
        if position is not None and len(node.args) <= position:
            yield f'{node.lineno}: {method} without encoding'
        elif method in ('open', 'fdopen') and owner not in ('tarfile', 'zipfile', 'webbrowser'):
            compressed = owner in ('gzip', 'bz2', 'lzma')
            path_first = not owner or compressed or owner in ('os', 'io')  # else path.open(mode)
            keywords = [key.value for key in node.keywords if key.arg == 'mode']
            modes = keywords or node.args[1 if path_first else 0 :] or [ast.Constant('r')]
            mode = ast.unparse(modes[0])
            text = 't' in mode if compressed else 'b' not in mode
            if text and called != 'os.open':
                yield f'{node.lineno}: {called} of text without encoding'


def reads_no_environment(tree, name):
    for node in walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'os':
            names.append(node.attr)
        if {'environ', 'environb', 'getenv', 'putenv'} & set(names):
            yield f'{node.lineno}: the environment belongs to runtime.py'


def has_no_global_and_swallows_nothing(tree, name):
    for node in walk(tree):
        if isinstance(node, ast.Global):
            yield f'{node.lineno}: global {", ".join(node.names)}'
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else 'BaseException'
            everything = caught in ('Exception', 'BaseException')
            idle = all(isinstance(step, (ast.Pass, ast.Continue, ast.Return)) for step in node.body)
            if node.type is None or everything and idle:
                yield f'{node.lineno}: an except that hides errors'


def sets_up_the_console_first(tree, name):
    """A program calls console.set_up before configure, which may print --help."""
    calls = {}  # function: the first line that calls it
    for node in walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            calls[called] = min(node.lineno, calls.get(called, node.lineno))
    is_program = 'configure' in calls or any(map(is_main_block, tree.body))
    if is_program and 'console.set_up' not in calls:
        yield '1: the program does not call console.set_up'
    elif is_program and calls['console.set_up'] > calls.get('configure', math.inf):
        yield f'{calls["configure"]}: configure is called before console.set_up'


def finds_its_neighbours(tree, name):
    """Also through a symbolic link, and under python -P, which drops its folder from sys.path."""
    called = {ast.unparse(node.func) for node in walk(tree) if isinstance(node, ast.Call)}
    if 'console.set_up' in called and 'sys.path.insert' not in called:
        yield '1: under python -P its imports fail'
    for node in walk(tree):
        beside = isinstance(node, ast.Attribute) and node.attr in ('parent', 'parents', 'with_name')
        if beside and ast.unparse(node.value) == 'Path(__file__)':
            yield f'{node.lineno}: Path(__file__) without resolve() is the folder of a link'


def has_its_settings_explained(tree, name, source):
    """Each plain assignment above `configure(`, which main() may call, has a comment: its meaning,
    its unit, when to change it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for block in [tree, *filter(is_main_block, tree.body)]:
        nodes = walk(block, inside_functions=block is tree, main_block=block is not tree)
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        calls = [node.lineno for node in calls if ast.unparse(node.func) == 'configure']
        for node in block.body:
            if calls and node.lineno < calls[0] and is_assignment(node) and is_plain(node.value):
                setting = ast.unparse(node.targets[0])
                private = setting.startswith('_') or setting.isupper()
                if not private and node.end_lineno not in comments:
                    yield f'{node.lineno}: {setting} has no comment'


def is_assignment(node):
    return isinstance(node, ast.Assign)


def is_plain(node):
    """True for a literal number, text, bool or None, and for arithmetic on these."""
    plain = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
    return all(isinstance(part, plain) for part in ast.walk(node))


# ---- each rule complains about the bad example and not about the good one

EXAMPLES = {
    imports_only_below: [
        ('batches.py', 'import train', 'import model\nimport numpy'),
        (
            'batches.py',
            'def f():\n    from engine import Engine',
            'from tokenizer import Tokenizer',
        ),
        ('model.py', 'import optim', 'import moe'),
        ('utf8.py', 'import console', 'import json'),
        ('tokenizer.py', 'from conversation import Chat', 'from utf8 import valid_text'),
        ('moe.py', 'import model', 'import torch'),
        ('extras.py', 'import moe', 'import torch'),
        ('evaluate.py', 'import bench', 'import batches\nimport model'),
        ('train.py', 'from sample import complete', 'import evaluate, batches, model'),
        ('data/a/prepare.py', 'import train', 'import tokenizer\nfrom data.download import fetch'),
        (
            'tokenizer.py',
            'import configurator',
            'if __name__ == "__main__":\n    import configurator',
        ),
        ('model.py', 'from . import moe', 'import math'),
    ],
    imports_no_program: [
        ('evaluate.py', 'import bench', 'import batches\nimport benchmark'),
        ('report.py', 'def f():\n    from train import model', 'import tokenizer'),
        ('dev/a.py', 'from dev import dial', 'import evaluate'),
        ('model.py', 'import data.a.prepare', 'import data.a.facts'),
        ('data/b/prepare.py', 'from data.a import prepare', 'from data.a import text'),
    ],
    imports_core_packages_at_top: [
        ('a.py', 'import safetensors', 'def f():\n    import safetensors'),
        ('a.py', 'try:\n    import triton\nexcept ImportError:\n    x = 1', 'import torch'),
        ('a.py', 'import fcntl', 'import json, torch.nn.functional as F\nimport model'),
    ],
    evaluates_and_pickles_nothing: [
        ('a.py', 'eval("1")', 'model.eval()'),
        ('a.py', 'f = exec', 'ast.literal_eval("1")'),
        ('a.py', 'builtins.eval("1")', 'self.eval("1")'),
        ('a.py', 'from pickle import load', 'import json'),
        ('a.py', 'torch.load(f)', 'torch.load(f, weights_only=True)'),
        ('a.py', 'np.load(f, allow_pickle=True)', 'np.load(f)'),
    ],
    functions_are_short: [
        ('a.py', 'def f():\n' + '    x = 1\n' * 60, 'def f():\n' + '    x = 1\n' * 59),
    ],
    text_is_opened_with_its_encoding: [
        ('a.py', 'open(p)', 'open(p, encoding="utf-8")'),
        ('a.py', 'open(p, "w")', 'open(p, "wb")'),
        ('a.py', 'open(p, mode=m)', 'open(p, mode="rb")'),
        ('a.py', 'p.open()', 'p.open("rb")'),
        ('a.py', '(a / b).open("a")', '(a / b).open("a", encoding="utf-8")'),
        ('a.py', 'gzip.open(p, "rt")', 'gzip.open(p)\nos.open(p, 0)\ntarfile.open(p)'),
        ('a.py', 'p.read_text()', 'p.read_text("utf-8")\np.read_bytes()'),
        ('a.py', 'p.write_text(s)', 'p.write_text(s, encoding="utf-8")'),
    ],
    reads_no_environment: [
        ('a.py', 'os.environ["A"]', 'os.cpu_count()'),
        ('a.py', 'os.getenv("A")', 'simulator.environ'),
        ('a.py', 'from os import environ', 'from os import replace'),
    ],
    has_no_global_and_swallows_nothing: [
        ('a.py', 'def f():\n    global x', 'def f():\n    nonlocal_ = 1'),
        ('a.py', 'try:\n    f()\nexcept:\n    g()', 'try:\n    f()\nfinally:\n    g()'),
        (
            'a.py',
            'try:\n    f()\nexcept Exception:\n    pass',
            'try:\n    f()\nexcept KeyError:\n    pass',
        ),
    ],
    sets_up_the_console_first: [
        ('a.py', 'configure(globals())', 'console.set_up(True)\nconfigure(globals())'),
        ('a.py', 'configure({})\nconsole.set_up(True)', 'def configure(): print(1)'),
        (
            'a.py',
            'if __name__ == "__main__":\n    main()',
            'def main():\n    console.set_up(True)\n\nif __name__ == "__main__":\n    main()',
        ),
    ],
    finds_its_neighbours: [
        ('a.py', 'Path(__file__).with_name("b")', 'Path(__file__).resolve().with_name("b")'),
        ('a.py', 'console.set_up(True)', 'sys.path.insert(0, "a")\nconsole.set_up(True)'),
    ],
}
ROWS = [(rule, *row) for rule, rows in EXAMPLES.items() for row in rows]


@pytest.mark.parametrize(
    'rule, name, bad, good', ROWS, ids=[f'{row[0].__name__}-{row[2]!r:.30}' for row in ROWS]
)
def test_a_rule_tells_bad_from_good(rule, name, bad, good):
    assert list(rule(ast.parse(bad), name))
    assert not list(rule(ast.parse(good), name))


def test_the_circle_rule_tells_bad_from_good():
    def circle(**sources):
        return find_circle({name.replace('_', '.'): ast.parse(x) for name, x in sources.items()})

    inside = 'def f():\n    from c import g'
    assert circle(a='import b', b=inside, c='import a') == ['a', 'b', 'c', 'a']
    assert circle(a='import b', b='import c', c='from b import f') == ['b', 'c', 'b']
    assert circle(data_x='from data import y', data_y='import data.x')
    assert circle(a='import a')
    main = 'if __name__ == "__main__":\n    import a'
    assert not circle(a='import b', b=main)
    assert not circle(a='import b, c', b='import c', c='import os', d='import a, b')


def test_the_columns_rule_tells_bad_from_good():
    assert list(lines_are_short('x' * 100 + '\n' + 'ö' * 101))[0].startswith('2: 101 columns')
    assert not list(lines_are_short('ö' * 100 + '\n'))


def test_the_settings_rule_tells_bad_from_good():
    cases = {
        'import os\nN = 1\nlr = 1e-3 * 2  # rate\nname = None\n_x = 1\npath = f()\n'
        'config = configure({})\ny = 2\n': '4: name has no comment',
        'a = 1\nwith b:\n    c = 1\n    config = configure({})\n': '1: a has no comment',
        'SIZE = 3\nx = 1\nif __name__ == "__main__":\n    a = 1\n'
        '    config = configure(globals())\n': '4: a has no comment',
    }
    for source, complaint in cases.items():
        assert list(has_its_settings_explained(ast.parse(source), 'a.py', source)) == [complaint]


# ---- the house itself


def test_the_files_are_found():
    assert {'model.py', 'train.py', 'configurator.py'} <= {path.name for path in CORE}


def test_the_root_holds_the_planned_files_only():
    assert {path.stem for path in CORE} <= set(LAYER)


@pytest.mark.parametrize(
    'rule',
    [
        imports_only_below,
        imports_no_program,
        functions_are_short,
        text_is_opened_with_its_encoding,
        has_no_global_and_swallows_nothing,
        sets_up_the_console_first,
    ],
)
def test_every_file_keeps(rule):
    assert not complaints(rule, CODE)


def test_imports_have_no_circle():
    assert find_circle({module_of(path): parse(path) for path in CODE}) is None


def test_core_files_find_their_neighbours():
    assert not complaints(finds_its_neighbours, CORE)


def test_core_files_need_core_packages_only():
    assert not complaints(imports_core_packages_at_top, CORE)


def test_only_the_configurator_evaluates():
    assert complaints(evaluates_and_pickles_nothing, CODE).keys() <= {'configurator.py'}


# data/download.py reads HF_ENDPOINT and HF_TOKEN, as all programs that use the hub do; sandbox.py
# empties the environment
READ_THE_ENVIRONMENT = {'runtime.py', 'console.py', 'data/download.py', 'sandbox.py'}


def test_only_these_files_read_the_environment():
    assert complaints(reads_no_environment, CODE).keys() <= READ_THE_ENVIRONMENT


def test_every_line_is_short():
    for path in CODE + TESTS:
        found = list(lines_are_short(path.read_text(encoding='utf-8')))
        assert not found, name_of(path)


def test_every_setting_has_a_comment():
    for path in CORE:
        source = path.read_text(encoding='utf-8')
        # configurator's docstring contains the call
        if 'configure(globals()' in source and path.stem != 'configurator':
            assert not list(has_its_settings_explained(parse(path), path.name, source)), path.name


def test_the_settings_rule_sees_the_settings():
    source = (ROOT / 'train.py').read_text(encoding='utf-8')
    bare = '\n'.join(line.partition('  # ')[0] for line in source.splitlines())  # no comments
    assert len(list(has_its_settings_explained(ast.parse(bare), 'train.py', bare))) > 20


def test_the_dependencies_are_exactly_the_six():
    text = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')  # Python 3.10 has no tomllib
    block = re.search(r'^dependencies = (\[.*?^\])', text, re.MULTILINE | re.DOTALL).group(1)
    dependencies = ast.literal_eval(block)
    assert {re.match(r'\w+', dependency).group() for dependency in dependencies} == PACKAGES
    assert len(dependencies) == 6 and 'torch>=2.9,<2.14' in dependencies


def test_programs_without_a_model_start_without_torch(tmp_path, run_program):
    programs = ['tokenizer', 'conversation']
    programs += [module_of(path) for path in CODE if path.stem == 'prepare']
    source = f'import sys, {", ".join(programs)}\nassert "torch" not in sys.modules'
    (tmp_path / 'a.py').write_text(source, encoding='utf-8')
    run_program(tmp_path / 'a.py', env={'PYTHONPATH': ROOT}, fresh=True)


# ---- conftest.py


@pytest.mark.parametrize(
    'ci, processes, outcome', [('', 1, '1 passed, 1 skipped'), ('true', 0, '1 failed, 1 passed')]
)
def test_an_oracle_that_is_missing_is_named_and_fails_under_ci(
    tmp_path, run_program, ci, processes, outcome
):
    (tmp_path / 'conftest.py').write_bytes((ROOT / 'tests' / 'conftest.py').read_bytes())
    (tmp_path / 'test_it.py').write_text(
        'def test_present(oracle):\n    assert oracle("json").dumps([1]) == "[1]"\n\n'
        'def test_absent(oracle):\n    oracle("no_such_oracle.part")\n',
        encoding='utf-8',
    )
    (tmp_path / 'run.py').write_text(
        f'import pytest\nraise SystemExit(pytest.main([{str(tmp_path)!r}, "-n{processes}"]))',
        encoding='utf-8',
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
        'import os, sys\nprint(os.environ["OMP_NUM_THREADS"], "ö")\nsys.exit(sys.argv[1])',
        encoding='utf-8',
    )
    with pytest.raises(AssertionError, match='(?s)exit status 1.*stdout.*1 ö.*stderr.*so it is'):
        run_program(program, 'so it is', cwd=tmp_path)
    assert run_program(program, 'so it is', check=False).stderr == 'so it is\n'
