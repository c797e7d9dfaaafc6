"""
A reward of your own for reinforcement learning, in place of the graders of tasks.py.

    # brief.py
    def brief(problems, answers):
        return [0 < len(answer) <= 40 for answer in answers]

$ python train.py config/tinyworld_rl.py --reward=brief.py:brief

In each step every rank calls the function with two lists of equal length:

    problems    for each answer, the line of problems.jsonl that it answers (see tasks.py). The last
                of problem['messages'] is the question
    answers     texts as a user would see them, without tool calls

It returns a finite number for each answer; those of the graders are from 0 to 1. Only differences
between answers to one question count: an answer is reinforced if its number is above their mean. If
the numbers are random, or depend on earlier steps, a resumed run differs from one without a stop.

The file is imported, so its code runs with all rights of the user. Therefore neither a checkpoint
nor a data set can name it: see checkpoint.inherit. It may import other files of its folder, if no
module of this repository and no installed package has their name.
"""

import importlib.util
import inspect
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import runtime
from configurator import fail, line_of

MODULE = '__reward__'  # the name of the imported module; no other module has it


def load(given: str, ranks: runtime.Ranks) -> 'Reward | None':
    """The function of --reward=FILE.py:function, None for ''. Imports the file, and prints a line
    that says so. SystemExit if there is no such file or function, or if the import fails."""
    if not given:
        return None
    # 1) The file
    path, _, name = given.rpartition(':')
    if not path.endswith('.py') or not name:
        fail(f'--reward={given}: expected FILE.py:function, such as brief.py:brief')
    if not Path(path).is_file():
        fail(f'--reward={given}: there is no file {path}, expected FILE.py:function')
    if ranks.rank == 0:
        print(f'--reward: importing {path}, whose code may do all that you may', flush=True)
    module = import_file(path)

    # 2) The function
    value = getattr(module, name, None)
    if not callable(value):
        own = [name for name, other in vars(module).items() if is_defined_here(other)]
        found = f'{path} has no {name}' if value is None else f'{name} is {value!r:.60}'
        listed = f'one of its functions: {", ".join(own)}' if own else 'a function'
        fail(f'--reward={given}: {found}, expected {listed}')
    return Reward(value, name, path, module.__file__, ranks)


def import_file(path: str) -> ModuleType:
    """The module of a file. SystemExit with the line of the file that raised."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # where a dataclass looks for its module
    # The file may import its neighbours, as a script may. Their folder is the last that Python
    # searches, so that a model.py in it does not replace ours
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = line_of(error, module.__file__)
        fail(f'{path}:{line}: {described(error)}; expected a file that can be imported')
    return module


def is_defined_here(value) -> bool:
    return inspect.isfunction(value) and value.__module__ == MODULE


def described(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.rstrip(': ')


@dataclass
class Reward:
    """
    Call it with problems and answers for a list of finite floats, one per answer.

    All ranks call it together. If the function raises, or returns anything else, all exit with one
    line that names the function and its place in the user's file.
    """

    function: Callable
    name: str
    path: str  # of the file, as the user gave it
    file: str  # the same, as Python names it
    ranks: runtime.Ranks

    def __call__(self, problems: Sequence[dict], answers: Sequence[str]) -> list[float]:
        with runtime.errors_once(self.ranks):
            # a rank may have no answers in a step
            return self.ask(list(problems), list(answers)) if answers else []

    def ask(self, problems: list[dict], answers: list[str]) -> list[float]:
        expected = f'expected a list of {len(answers)} finite numbers, one per answer'
        # 1) Call it
        code = getattr(inspect.unwrap(self.function), '__code__', None)
        first = code.co_firstlineno if code and code.co_filename == self.file else 1
        try:
            values = plain(self.function(problems, answers))
        except (Exception, SystemExit) as error:
            place = f'{self.path}:{line_of(error, self.file, first)}'
            fail(f'{place}: {self.name} raised {described(error)}; {expected}')

        # 2) Check what it returned
        place = f'{self.path}:{first}: {self.name}'
        if not isinstance(values, list | tuple):
            fail(f'{place} returned {values!r:.60}, {expected}')
        if len(values) != len(answers):
            fail(f'{place} returned {len(values)} values, {expected}')
        values = [plain(value) for value in values]
        for value, answer in zip(values, answers):
            if not isinstance(value, numbers.Real) or not abs(value) <= sys.float_info.max:
                fail(f'{place} returned {value!r:.60} for the answer {answer!r:.60}, {expected}')
        return [float(value) for value in values]


def plain(value):
    """Python's list or number of an array or a tensor; anything else as it is."""
    return value.tolist() if hasattr(value, 'tolist') else value
