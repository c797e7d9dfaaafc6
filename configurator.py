"""
Override the settings of a program with Python config files and --name=value arguments:

    $ python train.py config/train_shakespeare_char.py --batch_size=16 --compile=False
    $ python train.py --help

A program's settings are its plain globals: numbers, text, bool or None. Names in ALL_CAPS or with a
leading _ are not settings. Files and arguments apply from left to right.

The idea and the command line are nanoGPT's. Its configurator accepts any value; this one checks.
Only names that have a default exist, a value keeps the type of its default, and any error ends the
program with one line. A typo must not train the wrong model for a day.
"""

import ast
import difflib
import io
import math
import os
import sys
import tokenize
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from utf8 import valid_text

PLAIN = (bool, int, float, str, type(None))  # the types of settings
EXPECTED = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a finite number',
    str: 'text',
    type(None): 'a bool, a finite number, text or None',
}
# The settings that name files, in all programs; some are lists with commas. A shell expands the ~
# of `cat ~/a`, but not that of --out_dir=~/a, which would make a folder named ~
PATHS = {
    'answers', 'data', 'dataset', 'evaluate', 'export', 'import_from', 'init_from', 'input',
    'json', 'out', 'out_dir', 'problems', 'reward', 'to', 'tokenizer',
}  # fmt: skip


class Settings(dict):
    """
    A program's settings, in the order of its source. dict(settings) fits JSON and a checkpoint.

    defaults    {name: default}
    sources     {name: who set it}, for values that are explicit or differ from the default
    explicit    names that an argument or a config file has set, even to the default
    """

    def __init__(self, defaults: dict):
        super().__init__(defaults)
        self.defaults = dict(defaults)
        self.sources = {}
        self.explicit = frozenset()

    def differs(self, name: str) -> bool:
        return not same(self[name], self.defaults[name])

    def describe(self) -> str:
        """A line for each value that is not its default: batch_size = 16   (command line)."""
        lines = []
        for name in self:
            if self.differs(name):
                lines.append(f'{name} = {self[name]!r}   ({self.sources[name]})')
        return '\n'.join(lines)

    def nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower().replace('-', '_'), self, n=1)
        return f"did you mean '{near[0]}'?" if near else '--help lists them all'

    def assign(self, name: str, value, source: str, where: str, explicit: bool = True) -> None:
        """Check a value and set it; every value passes here. SystemExit for a wrong one: one line
        that begins with `where`."""
        # 1) The name
        if name not in self:
            fail(f"{where}: no such setting '{name}', {self.nearest(name)}")

        # 2) The type, which is the default's. A default of None takes any plain value
        kind = type(self.defaults[name])
        value = valid_text(value)  # it goes into logs and checkpoints
        if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
            value = float(value)  # not for True, which is an int by isinstance
        fits = type(value) in PLAIN and kind in (type(value), type(None))
        if not fits or type(value) is float and not math.isfinite(value):
            hint = ''
            if kind is int and type(value) is float and value.is_integer():
                hint = f': write {int(value)}'
            fail(f'{where}: {name} must be {EXPECTED[kind]}, got {value!r}{hint}')
        if name in PATHS and type(value) is str:
            value = ','.join(map(os.path.expanduser, value.split(',')))

        # 3) Who set it
        self[name] = value
        self.sources[name] = source
        if explicit:
            self.explicit |= {name}
        elif not self.differs(name):
            del self.sources[name]


class Scope(dict):
    """The globals of a config file. bound: every name that a statement of it binds when executed,
    so not a in `if False: a = 1`."""

    bound = frozenset()

    def __setitem__(self, name, value):
        self.bound |= {name}
        super().__setitem__(name, value)


def configure(
    namespace: dict, derive: Callable | None = None, argv: list[str] | None = None
) -> Settings:
    """
    Set a program's settings and return them. Call it once, right below the defaults:

        config = configure(globals(), derive=derive)

    derive(settings, explicit) -> {name: (value, source)} is called after files and arguments, for
    values that follow from them (from a depth, a checkpoint). They pass the same check and never
    replace an explicit value. Prints nothing but the page of --help. SystemExit of one line for any
    error; namespace is unchanged then.
    """
    # 1) Defaults
    defaults = {name: value for name, value in namespace.items() if is_setting(name, value)}
    settings = Settings(defaults)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if '--help' in arguments or '-h' in arguments:
        print(help_page(namespace, settings))
        raise SystemExit(0)

    # 2) Config files and arguments. A notebook's kernel is started with the name of a JSON file,
    # `-f NAME` or --f=NAME, which is ignored
    while arguments:
        argument, *arguments = arguments
        following = arguments[0] if arguments else ''
        if argument == '-f' and following.endswith('.json'):
            arguments = arguments[1:]
        elif argument.startswith('--f=') and argument.endswith('.json') and 'f' not in settings:
            continue
        elif argument.startswith('-'):
            read_argument(settings, argument, following)
        else:
            read_file(settings, argument)

    # 3) What follows from them
    derived = derive(dict(settings), settings.explicit) if derive else {}
    for name, (value, source) in derived.items():
        if name not in settings.explicit:
            settings.assign(name, value, source, where=source, explicit=False)
    namespace.update(settings)
    return settings


# -----------------------------------------------------------------------------
# arguments and config files


def read_argument(settings: Settings, argument: str, following: str) -> None:
    """Assign --name=value. following: the next argument; if the user wrote a blank instead of =,
    it is the value, and the message says so."""
    name, equals, text = argument.removeprefix('--').partition('=')
    if name not in settings:
        fail(f"{argument}: no such setting '{name}', {settings.nearest(name.lstrip('-'))}")
    if not equals:
        meant = following if following and not following.startswith('--') else 'VALUE'
        if type(settings.defaults[name]) is bool and meant.lower() not in ('true', 'false'):
            meant = 'True'
        fail(f'{argument}: write --{name}={meant}')
    value = parse(text, settings.defaults[name])
    settings.assign(name, value, 'command line', where=argument)


def parse(text: str, default):
    """The value of an argument's text. Text of the wrong type stays text; assign refuses it."""
    if type(default) is str:
        return text
    if text in ('true', 'false'):
        return text == 'true'
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if type(value) in PLAIN else text


def read_file(settings: Settings, path: str) -> None:
    """Execute a config file in a copy of the settings, then assign what its statements assigned."""
    # 1) Read
    if not path.endswith('.py'):
        is_argument = path.partition('=')[0] in settings
        hint = f'write --{path}' if is_argument else 'a config file ends in .py'
        fail(f'{path}: neither --name=value nor a config file, {hint}')
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        fail(f'{path}: cannot read this config file: {error.strerror}')

    # 2) Execute. From bytes, so that Python sees a coding line and a byte order mark
    scope = Scope(settings, __name__='__config__', __file__=path)
    try:
        tree = ast.parse(source, path)
        exec(compile(tree, path, 'exec', dont_inherit=True), scope)
    except Exception as error:
        what = getattr(error, 'msg', error)
        fail(f'{path}:{line_of(error, path)}: {type(error).__name__}: {what}')

    # 3) Assign. A name that is bound but not assigned (an import, a function) belongs to the file.
    # So does a value that is not plain, unless it was assigned to a setting: assign refuses it
    lines = {name: node.lineno for name, node in assignments(tree)}
    for name, value in scope.items():
        bound = name in scope.bound or name in settings and not same(value, settings[name])
        assigned = name in lines
        plain = type(value) in PLAIN
        counts = assigned or plain if name in settings else assigned and plain
        if bound and counts and not name.startswith('_'):
            settings.assign(name, value, path, where=f'{path}:{lines.get(name, 1)}')


def assignments(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name, statement) for each name assigned at top level, also inside if, for, with and try."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for leaf in (leaf for target in targets for leaf in ast.walk(target)):
                if isinstance(leaf, ast.Name) and type(leaf.ctx) is ast.Store:
                    yield leaf.id, node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            yield from assignments(node)


def is_setting(name: str, value) -> bool:
    return type(value) in PLAIN and not name.startswith('_') and not name.isupper()


def same(a, b) -> bool:
    """Equal and of one type: 1, 1.0 and True are equal, but not the same setting."""
    return type(a) is type(b) and a == b


def line_of(error: BaseException, path: str, otherwise: int = 1) -> int:
    """The line of a user's file where an error arose, also inside a function that it called;
    `otherwise` if none of its lines was running."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return lines[-1] if lines else otherwise


def fail(message: str) -> NoReturn:
    """SystemExit with the message on one line, whatever the values in it contain."""
    raise SystemExit(' '.join(message.split()))


# -----------------------------------------------------------------------------
# --help


def help_page(namespace: dict, settings: Settings) -> str:
    """The program's docstring, then each setting with its default and comment, below the headings
    of the source."""
    # 1) Comments of the source, by line
    try:
        text = Path(namespace['__file__']).read_text(encoding='utf-8-sig')
    except (KeyError, OSError):  # no source, as in a notebook: only names and defaults
        text = ''
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    own_line = {
        line: token.string
        for line, token in comments.items()
        if token.line.lstrip().startswith('#')
    }

    # 2) The statement that gives each default, the first one
    nodes = dict.fromkeys(settings)
    tree = ast.parse(text)
    for name, node in assignments(tree):
        if name in nodes and nodes[name] is None:
            nodes[name] = node

    # 3) The page. Comment lines right above a setting are a heading
    about = namespace.get('__doc__') or ast.get_docstring(tree) or ''  # python -OO drops __doc__
    page = [about.strip(), '', 'Settings, as --name=value or in a config file:']
    for name, node in nodes.items():
        heading = []
        above = node.lineno - 1 if node else 0
        while above in own_line:
            heading.insert(0, own_line[above].strip('#- '))
            above -= 1
        if heading:
            page += ['', *filter(None, heading)]
        comment = ''
        if node and node.end_lineno in comments:
            comment = comments[node.end_lineno].string.replace('#', ' ', 1)
        page.append(f'  --{name}={settings[name]!r}'.ljust(44) + comment)
    return '\n'.join(line.rstrip() for line in page).strip()


# -----------------------------------------------------------------------------
# ranges


def check_ranges(
    settings: Mapping,
    choices: Mapping[str, Collection] = {},
    least: Mapping[str, float] = {},
    most: Mapping[str, float] = {},
    below: Mapping[str, float] = {},
    wrong: Iterable[str] = (),
) -> None:
    """
    SystemExit with one line that names every setting whose value is not allowed:

        check_ranges(config, choices=dict(optimizer=('muon', 'adamw')), least=dict(seed=0))

        optimizer is 'sgd', expected one of muon, adamw; seed is -1, expected at least 0

    The bounds in least and most are allowed values, those in below are not. wrong: complaints that
    the caller adds.
    """
    found = []
    for name, allowed in choices.items():
        if settings[name] not in allowed:
            listed = ', '.join(map(str, allowed))
            found.append(f'{name} is {settings[name]!r}, expected one of {listed}')
    for name, bound in least.items():
        if settings[name] < bound:
            found.append(f'{name} is {settings[name]}, expected at least {bound}')
    for name, bound in most.items():
        if settings[name] > bound:
            found.append(f'{name} is {settings[name]}, expected at most {bound}')
    for name, bound in below.items():
        if settings[name] >= bound:
            found.append(f'{name} is {settings[name]}, expected less than {bound}')
    found += wrong
    if found:
        fail('; '.join(found))
