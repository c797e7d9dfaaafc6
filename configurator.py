"""
Override the settings of a program, its plain globals, with Python config files and --name=value arguments:

    $ python train.py config/train_shakespeare_char.py --batch_size=16 --compile=False
    $ python train.py --help

They apply from left to right. The idea and the command line are nanoGPT's. Its configurator believes what it is told;
this one checks: only names that the program has given a default exist, a value keeps the type of its default, and
whatever is wrong ends the program with one line. A typo must never train the wrong model for a day.
Names in ALL_CAPS or with a leading _ are the program's own, not settings.
"""

import ast
import difflib
import io
import math
import os
import sys
import tokenize
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from utf8 import valid_text

PLAIN = (bool, int, float, str, type(None))
EXPECTED = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a finite number',
    str: 'text',
    type(None): 'a bool, a finite number, text or None',
}
# The settings of all programs that name files; some are lists with commas. A shell expands the ~ of
# `cat ~/a`, but not that of --out_dir=~/a, which would make a folder named ~
PATHS = frozenset('data dataset evaluate init_from input json out out_dir problems tokenizer'.split())


class Settings(dict):
    """What a program runs with, in the order of its source. dict(settings) is plain: it fits JSON and a checkpoint."""

    def __init__(self, defaults: dict):
        super().__init__(defaults)
        self.defaults = dict(defaults)
        self.sources = {}  # name -> who set it, for every value that is explicit or not the default
        self.explicit = frozenset()  # names that an argument or a config file has set, be it to the default

    def differs(self, name: str) -> bool:
        return not same(self[name], self.defaults[name])

    def describe(self) -> str:
        """One line for every value that is not its default: batch_size = 16   (command line)."""
        return '\n'.join(f'{name} = {self[name]!r}   ({self.sources[name]})' for name in self if self.differs(name))

    def nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower().replace('-', '_'), self, n=1)
        return f"did you mean '{near[0]}'?" if near else '--help lists them all'

    def assign(self, name: str, value, source: str, where: str, explicit: bool = True):
        """The one check that every value passes, whoever gives it. where begins the line that says what is wrong."""
        if name not in self:
            fail(f"{where}: no such setting '{name}', {self.nearest(name)}")
        kind = type(self.defaults[name])
        value = valid_text(value)  # the log and a checkpoint hold it
        if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
            value = float(value)  # 1 is a fine learning rate; but True is no int, hence `is`
        fits = type(value) in PLAIN and kind in (type(value), type(None))
        if not fits or type(value) is float and not math.isfinite(value):
            mend = f': write {int(value)}' if kind is int and type(value) is float and value.is_integer() else ''
            fail(f'{where}: {name} must be {EXPECTED[kind]}, got {value!r}{mend}')
        if name in PATHS and type(value) is str:
            value = ','.join(map(os.path.expanduser, value.split(',')))
        self[name] = value
        self.sources[name] = source
        if explicit:
            self.explicit |= {name}
        elif not self.differs(name):
            del self.sources[name]


class Scope(dict):
    """The globals of a config file, which note every name that a statement of the file binds (not if False: a = 1)."""

    bound = frozenset()

    def __setitem__(self, name, value):
        self.bound |= {name}
        super().__setitem__(name, value)


def configure(namespace: dict, derive=None, argv: list[str] | None = None) -> Settings:
    """
    Call once, right below the defaults: config = configure(globals(), derive=derive). Sets and returns the settings.

    derive(settings, explicit) -> {name: (value, source)} is asked, after files and arguments, for what follows from
    them (a depth, a checkpoint). Its values pass the same check and never replace one that was given explicitly.
    Prints nothing, --help's page excepted. Whatever is wrong is a SystemExit of one line.
    """
    settings = Settings({name: value for name, value in namespace.items() if is_setting(name, value)})
    arguments = list(sys.argv[1:] if argv is None else argv)
    if '--help' in arguments or '-h' in arguments:
        print(help_page(namespace, settings))
        raise SystemExit(0)
    while arguments:
        argument, *arguments = arguments
        following = arguments[0] if arguments else ''
        if argument == '-f' and following.endswith('.json'):  # what a notebook's kernel is started with
            arguments = arguments[1:]
        elif argument.startswith('--f=') and argument.endswith('.json') and 'f' not in settings:
            continue  # the same kernel file, as newer notebooks write it
        elif argument.startswith('-'):
            read_argument(settings, argument, following)
        else:
            read_file(settings, argument)
    derived = derive(dict(settings), settings.explicit) if derive else {}
    for name, (value, source) in derived.items():
        if name not in settings.explicit:
            settings.assign(name, value, source, where=source, explicit=False)
    namespace.update(settings)
    return settings


def read_argument(settings: Settings, argument: str, following: str):
    """--name=value. following is the next argument, which `--name value` with a space meant as the value."""
    name, equals, text = argument.removeprefix('--').partition('=')
    if name not in settings:
        fail(f"{argument}: no such setting '{name}', {settings.nearest(name.lstrip('-'))}")
    if not equals:
        meant = following if following and not following.startswith('--') else 'VALUE'
        if type(settings.defaults[name]) is bool and meant.lower() not in ('true', 'false'):
            meant = 'True'
        fail(f'{argument}: write --{name}={meant}')
    settings.assign(name, parse(text, settings.defaults[name]), 'command line', where=argument)


def parse(text: str, default):
    """The value that an argument's text stands for. Text of the wrong kind stays text, and the check says so."""
    if type(default) is str:
        return text
    if text in ('true', 'false'):
        return text == 'true'
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if type(value) in PLAIN else text


def read_file(settings: Settings, path: str):
    """Execute a config file in a copy of the settings so far; what its statements assign are its answers."""
    if not path.endswith('.py'):
        mend = f'write --{path}' if path.partition('=')[0] in settings else 'a config file ends in .py'
        fail(f'{path}: neither --name=value nor a config file, {mend}')
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        fail(f'{path}: cannot read this config file: {error.strerror}')
    scope = Scope(settings, __name__='__config__', __file__=path)
    try:
        tree = ast.parse(source, path)  # bytes, so that an encoding line and Windows' byte order mark are understood
        exec(compile(tree, path, 'exec', dont_inherit=True), scope)
    except Exception as error:
        fail(f'{path}:{line_of(error, path)}: {type(error).__name__}: {getattr(error, "msg", error)}')
    lines = {name: node.lineno for name, node in assignments(tree)}
    for name, value in scope.items():
        bound = name in scope.bound or name in settings and not same(value, settings[name])
        # What is bound but not assigned (imports, functions) is the file's own, and so is what is no plain value,
        # unless it was assigned to a setting: then the check refuses it.
        assigned, plain = name in lines, type(value) in PLAIN
        counts = assigned or plain if name in settings else assigned and plain
        if bound and counts and not name.startswith('_'):
            settings.assign(name, value, path, where=f'{path}:{lines.get(name, 1)}')


def help_page(namespace: dict, settings: Settings) -> str:
    """The program's docstring, then every setting with its default and comment, under the headings of its source."""
    try:
        text = Path(namespace['__file__']).read_text(encoding='utf-8-sig')
    except (KeyError, OSError):  # no source, as in a notebook: names and defaults alone
        text = ''
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line: token.string for line, token in comments.items() if token.line.lstrip().startswith('#')}
    nodes = dict.fromkeys(settings)  # name -> the statement that gives its default
    tree = ast.parse(text)
    for name, node in assignments(tree):
        if nodes.get(name, node) is None:
            nodes[name] = node
    about = namespace.get('__doc__') or ast.get_docstring(tree) or ''  # python -OO drops __doc__
    page = [about.strip(), '', 'Settings, as --name=value or in a config file:']
    for name, node in nodes.items():
        heading, above = [], node.lineno - 1 if node else 0
        while above in alone:
            heading.insert(0, alone[above].strip('#- '))
            above -= 1
        page += ['', *filter(None, heading)] if heading else []
        comment = comments[node.end_lineno].string if node and node.end_lineno in comments else ''
        page.append(f'  --{name}={settings[name]!r}'.ljust(44) + comment.replace('#', ' ', 1))
    return '\n'.join(line.rstrip() for line in page).strip()


def assignments(tree: ast.AST):
    """(name, statement) for each name assigned at top level, inside `if`, `for`, `with` and `try` there too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            leaves = [leaf for target in targets for leaf in ast.walk(target)]
            yield from (
                (leaf.id, node) for leaf in leaves if isinstance(leaf, ast.Name) and type(leaf.ctx) is ast.Store
            )
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            yield from assignments(node)


def check_ranges(
    settings: Mapping,
    choices: Mapping[str, Iterable] = {},
    least: Mapping[str, float] = {},
    most: Mapping[str, float] = {},
    below: Mapping[str, float] = {},
    wrong: Iterable[str] = (),
) -> None:
    """
    One SystemExit that names all settings with a value that is not allowed:

        check_ranges(config, choices=dict(optimizer=('muon', 'adamw')), least=dict(seed=0))
        -> optimizer is 'sgd', expected one of muon, adamw; seed is -1, expected at least 0

    least and most are allowed themselves, below is not. wrong: complaints that the caller adds.
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


def is_setting(name: str, value) -> bool:
    return type(value) in PLAIN and not name.startswith('_') and not name.isupper()


def same(a, b) -> bool:
    return type(a) is type(b) and a == b  # 1, 1.0 and True are equal, but not the same setting


def line_of(error: Exception, path: str) -> int:
    """The line of the config file where an error arose, be it in what the line has called."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else 1


def fail(message: str):
    raise SystemExit(' '.join(message.split()))  # one line, whatever the value in it holds
