"""The configurator, on tables of what users type: accepted, or refused with which words."""

import ast
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, train_defaults

from configurator import PATHS, Settings, check_ranges, configure

# A setting of each type, and other names in a program's globals
PROGRAM = dict(
    __name__='__main__', _private=1, LIMIT=7, sys=sys, helper=lambda: 1, shape=(1, 2),
    dataset='toy', batch_size=8, block_size=64, learning_rate=1e-3, weight_decay=0.1, grad_clip=1.0,
    max_iters=10,
    compile=None, depth=None, bias=False, wandb_log=False, wandb_run_name='run', f1=0.5,
)  # fmt: skip

# nanoGPT's train.py: its names and the types of its defaults
NANOGPT = dict(
    out_dir='out', eval_interval=2000, log_interval=1, eval_iters=200, eval_only=False,
    always_save_checkpoint=True, init_from='scratch', wandb_log=False, wandb_project='owt',
    wandb_run_name='gpt2', dataset='openwebtext', gradient_accumulation_steps=40, batch_size=12,
    block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0, bias=False,
    learning_rate=6e-4, max_iters=600000, weight_decay=1e-1, beta1=0.9, beta2=0.95, grad_clip=1.0,
    decay_lr=True, warmup_iters=2000, lr_decay_iters=600000, min_lr=6e-5, backend='nccl',
    device='cuda',
    dtype='bfloat16', compile=None,
)  # fmt: skip


def settings_of(namespace):
    others = ('__name__', '_private', 'LIMIT', 'sys', 'helper', 'shape')
    return {name: value for name, value in namespace.items() if name not in others}


def config_file(folder, text, name='a.py'):
    path = folder / name
    path.write_text(text, encoding='utf-8')
    return str(path)


def refusal(*argv, namespace=PROGRAM, derive=None):
    """The one line with which configure refuses argv. The namespace is unchanged then."""
    before = dict(namespace)
    with pytest.raises(SystemExit) as caught:
        configure(namespace, derive=derive, argv=list(map(str, argv)))
    assert isinstance(caught.value.code, str) and '\n' not in caught.value.code
    assert namespace == before
    return caught.value.code


ACCEPTED = [
    ('--learning_rate=1', 'learning_rate', 1.0),
    ('--learning_rate=1e-4', 'learning_rate', 1e-4),
    ('--learning_rate=-0.5', 'learning_rate', -0.5),
    ('--weight_decay=0', 'weight_decay', 0.0),
    ('--max_iters=2000', 'max_iters', 2000),
    ('--max_iters=-1', 'max_iters', -1),
    ('--max_iters=1_000', 'max_iters', 1000),
    ('--bias=True', 'bias', True),
    ('--bias=true', 'bias', True),
    ('--bias=False', 'bias', False),
    ('--bias=false', 'bias', False),
    ('--wandb_run_name=1337', 'wandb_run_name', '1337'),
    ('--wandb_run_name=True', 'wandb_run_name', 'True'),
    ('--wandb_run_name=', 'wandb_run_name', ''),
    ("--wandb_run_name='quoted'", 'wandb_run_name', "'quoted'"),
    ('--dataset=a=b', 'dataset', 'a=b'),
    ('--dataset=--x=y', 'dataset', '--x=y'),
    ('--dataset=größe/my data', 'dataset', 'größe/my data'),
    ('--compile=false', 'compile', False),
    ('--compile=True', 'compile', True),
    ('--compile=None', 'compile', None),
    ('--compile=max-autotune', 'compile', 'max-autotune'),
    ('--depth=20', 'depth', 20),
    ('--depth=0.5', 'depth', 0.5),
    ('--depth=', 'depth', ''),
    ('--depth=[1, 2]', 'depth', '[1, 2]'),
    ('--depth={[]: 1}', 'depth', '{[]: 1}'),
    ('--depth=2026-10-12', 'depth', '2026-10-12'),
    ('--f1=1', 'f1', 1.0),
]


@pytest.mark.parametrize('argument, name, value', ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_argument_is_accepted(argument, name, value):
    namespace = dict(PROGRAM)
    config = configure(namespace, argv=[argument])
    assert config == settings_of(PROGRAM) | {name: value}
    assert type(config[name]) is type(value) and type(namespace[name]) is type(value)
    assert namespace == PROGRAM | {name: value}
    assert config.explicit == {name} and config.sources == {name: 'command line'}


REFUSED = [
    (['--batchsize=32'], "no such setting 'batchsize', did you mean 'batch_size'?"),
    (['--batch-size=32'], "did you mean 'batch_size'?"),
    (['--BATCH_SIZE=32'], "did you mean 'batch_size'?"),
    (['--zzz=1'], "no such setting 'zzz', --help lists them all"),
    (['--batch_size', '32'], 'write --batch_size=32'),
    (['--learning_rate', '-1'], 'write --learning_rate=-1'),
    (['--batch_size'], 'write --batch_size=VALUE'),
    (['--batch_size', '--bias=True'], 'write --batch_size=VALUE'),
    (['--bias'], 'write --bias=True'),
    (['--bias', 'false'], 'write --bias=false'),
    (['--bias', 'config/a.py'], 'write --bias=True'),
    (['batch_size=32'], 'write --batch_size=32'),
    (['-batch_size=32'], "did you mean 'batch_size'?"),
    (['-x'], "no such setting '-x'"),
    (['--'], "no such setting ''"),
    (['--max_iters=1e3'], 'max_iters must be a whole number, got 1000.0: write 1000'),
    (['--max_iters=1.5'], 'max_iters must be a whole number, got 1.5'),
    (['--max_iters=True'], 'max_iters must be a whole number, got True'),
    (['--max_iters=None'], 'max_iters must be a whole number, got None'),
    (['--max_iters='], "max_iters must be a whole number, got ''"),
    (['--max_iters=ten'], "max_iters must be a whole number, got 'ten'"),
    (['--max_iters=5*4'], "max_iters must be a whole number, got '5*4'"),
    (['--learning_rate=true'], 'learning_rate must be a finite number, got True'),
    (['--learning_rate=nan'], "learning_rate must be a finite number, got 'nan'"),
    (['--learning_rate=inf'], 'learning_rate must be a finite number'),
    (['--learning_rate=1e999'], 'learning_rate must be a finite number, got inf'),
    (['--learning_rate=1' + '0' * 400], 'learning_rate must be a finite number'),
    (['--depth=1e999'], 'depth must be a bool, a finite number, text or None, got inf'),
    (['--bias=1'], 'bias must be True or False, got 1'),
    (['--bias=yes'], "bias must be True or False, got 'yes'"),
    (['--_private=2'], "no such setting '_private'"),
    (['--LIMIT=2'], "no such setting 'LIMIT'"),
    (['--sys=2'], "no such setting 'sys'"),
    (['--shape=2'], "no such setting 'shape'"),
    (['--batchsize=one\ntwo'], 'batchsize'),
    (['config/absent.py'], 'config/absent.py: cannot read this config file: No such file'),
    (['32'], '32: neither --name=value nor a config file, a config file ends in .py'),
    (['run.yaml'], 'run.yaml: neither --name=value nor a config file'),
    (['-f', 'config/absent.py'], "-f: no such setting"),
]  # fmt: skip


@pytest.mark.parametrize('argv, words', REFUSED, ids=[' '.join(row[0])[:30] for row in REFUSED])
def test_argument_is_refused(argv, words):
    message = refusal(*argv)
    assert words in message
    assert message.startswith(' '.join(argv[0].split()))  # the line names what it is about


def test_nothing_given_changes_nothing_and_prints_nothing(capsys):
    namespace = dict(PROGRAM)
    config = configure(namespace, argv=[])
    assert namespace == PROGRAM and config == settings_of(PROGRAM)
    assert (config.explicit, config.sources, config.describe()) == (frozenset(), {}, '')
    assert capsys.readouterr() == ('', '')


def test_arguments_default_to_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', '--batch_size=3'])
    assert configure(dict(PROGRAM))['batch_size'] == 3


@pytest.mark.parametrize('kernel', [['-f', '/run/kernel-1.json'], ['--f=/run/kernel-1.json']])
def test_a_notebooks_kernel_file_is_ignored(kernel):
    config = configure(dict(PROGRAM), argv=[*kernel, '--batch_size=3'])
    assert config == settings_of(PROGRAM) | {'batch_size': 3} and config.explicit == {'batch_size'}


# ---- config files


def test_files_and_arguments_apply_left_to_right(tmp_path):
    small = config_file(tmp_path, 'batch_size = 2\nblock_size = batch_size * 16\n')
    config = configure(dict(PROGRAM), argv=['--batch_size=5', small, '--block_size=40'])
    assert (config['batch_size'], config['block_size']) == (2, 40)
    assert config.sources == {'batch_size': small, 'block_size': 'command line'}
    more = config_file(tmp_path, 'max_iters = 1000 // (batch_size * block_size)\n', 'b.py')
    config = configure(dict(PROGRAM), argv=[small, '--batch_size=5', more])
    assert (config['batch_size'], config['block_size']) == (5, 32)
    assert config['max_iters'] == 1000 // (5 * 32)


def test_a_file_that_is_refused_changes_nothing(tmp_path):
    path = config_file(tmp_path, 'batch_size = 2\nlearning_rat = 1.0\n')
    message = refusal(path)
    assert message == f"{path}:2: no such setting 'learning_rat', did you mean 'learning_rate'?"


def test_nanogpts_own_config_file_runs_unchanged(tmp_path):
    """Like a nanoGPT user's file: imports, the time in a name, products, a helper of its own."""
    text = """
# finetune; launch: python train.py config/mine.py
import time
from math import sqrt, pi

out_dir = 'out-mine'
eval_interval = 5
wandb_log = False # feel free to turn on
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
# 12 batch size * 1024 block size * 5 gradaccum * 8 GPUs = 491,520
batch_size = 12
gradient_accumulation_steps = 5 * 8
_tokens = 1e9
max_iters = int(_tokens // (batch_size * block_size * gradient_accumulation_steps))
lr_decay_iters = max_iters
learning_rate = 3e-5 * sqrt(4)
def half(x):
    return x / 2
min_lr = half(learning_rate)
weight_decay = 1
decay_lr = False
compile = False
"""
    namespace = dict(NANOGPT)
    config = configure(namespace, argv=[config_file(tmp_path, text), '--eval_interval=7'])
    assert config['wandb_run_name'].startswith('ft-1')
    assert namespace['wandb_run_name'] == config['wandb_run_name']
    assert config['max_iters'] == config['lr_decay_iters'] == 10**9 // 491520
    assert (config['learning_rate'], config['min_lr'], config['weight_decay']) == (6e-5, 3e-5, 1.0)
    assert type(config['weight_decay']) is float
    assert (config['compile'], config['eval_interval']) == (False, 7)
    assert set(config) == set(NANOGPT) == set(namespace)  # no import, function or _name


def test_a_file_that_replaces_a_setting_by_a_module_or_function_keeps_the_setting(tmp_path):
    path = config_file(tmp_path, 'import math as depth\ndef bias():\n    return 1\n')
    config = configure(dict(PROGRAM), argv=[path])
    assert config == settings_of(PROGRAM) and not config.explicit


@pytest.mark.parametrize(
    'text, explicit',
    [
        ('batch_size = 8', {'batch_size'}),
        ('batch_size += 0', {'batch_size'}),
        ('batch_size: int = 8', {'batch_size'}),
        ('batch_size: int', set()),
        ('batch_size, block_size = 8, 64', {'batch_size', 'block_size'}),
        ('batch_size = max_iters = 8', {'batch_size', 'max_iters'}),
        ('[batch_size, *_rest] = 8, 1, 2', {'batch_size'}),
        ('if True:\n    batch_size = 8', {'batch_size'}),
        ('if False:\n    batch_size = 9', set()),
        ('for i in range(3):\n    batch_size = 8', {'batch_size'}),
        ('for batch_size in (7, 8): pass', {'batch_size'}),
        ('with open(__file__, encoding="utf-8") as f:\n    batch_size = 8', {'batch_size'}),
        ('try:\n    batch_size = int("8")\nexcept ValueError:\n    max_iters = 3', {'batch_size'}),
        ('def f():\n    batch_size = 9\nf()', set()),
        ('class A:\n    batch_size = 9', set()),
        ('x = [1, 2]\ny = lambda: 3\nbatch_size = len(x) * 4', {'batch_size'}),
        ('(batch_size := 8)', {'batch_size'}),
        ('from math import pi, tau as _tau', set()),
    ],
)
def test_what_a_file_assigns_is_explicit_also_at_the_default(tmp_path, text, explicit):
    path = config_file(tmp_path, text)
    config = configure(dict(PROGRAM), argv=[path])
    assert config.explicit == explicit and set(config.sources) == explicit
    assert config['batch_size'] == 8 and config['block_size'] == 64


@pytest.mark.parametrize(
    'text, words',
    [
        ('batch_sise = 1', ":1: no such setting 'batch_sise', did you mean 'batch_size'?"),
        ('import time\ntokens = 10', ":2: no such setting 'tokens'"),
        (
            'batch_size = 1\nBATCH_SIZE = 2',
            ":2: no such setting 'BATCH_SIZE', did you mean 'batch_size'?",
        ),
        ('if True:\n    lerning_rate = 1', ":2: no such setting 'lerning_rate'"),
        ('batch_size = 1.5', ':1: batch_size must be a whole number, got 1.5'),
        ('batch_size = 1e3', 'got 1000.0: write 1000'),
        ('batch_size = True', ':1: batch_size must be a whole number, got True'),
        ('batch_size = None', 'batch_size must be a whole number, got None'),
        ('batch_size = [1, 2]', 'batch_size must be a whole number, got [1, 2]'),
        ('depth = [1, 2]', 'depth must be a bool, a finite number, text or None, got [1, 2]'),
        ('learning_rate = float("nan")', 'learning_rate must be a finite number, got nan'),
        ('learning_rate = "1"', "learning_rate must be a finite number, got '1'"),
        ('dataset = 1337', 'dataset must be text, got 1337'),
        ('bias = 1', 'bias must be True or False, got 1'),
        ('batch_size = 1\nbatch_size = 4 / 0', ':2: ZeroDivisionError: division by zero'),
        (
            'batch_size = 1\ndef f():\n    raise ValueError("two\\nlines")\n\nf()',
            ':3: ValueError: two lines',
        ),
        ('batch_size = 1\nblock_size = = 2', ':2: SyntaxError: invalid syntax'),
        ('import absent_module', ":1: ModuleNotFoundError: No module named 'absent_module'"),
        ('batch_size = tokens', ":1: NameError: name 'tokens' is not defined"),
        ('open("absent.txt", encoding="utf-8")', ':1: FileNotFoundError'),
    ],
)
def test_file_is_refused(tmp_path, text, words):
    path = config_file(tmp_path, text)
    message = refusal(path)
    assert message.startswith(path) and words in message


def test_a_config_folder_and_odd_bytes_are_refused_in_one_line(tmp_path):
    (tmp_path / 'folder.py').mkdir()
    assert 'cannot read this config file' in refusal(tmp_path / 'folder.py')
    for content in (b'batch_size = 1\x00', b'dataset = "\xff"'):
        (tmp_path / 'odd.py').write_bytes(content)
        assert refusal(tmp_path / 'odd.py').startswith(f'{tmp_path / "odd.py"}:1: ')


def test_a_config_file_in_a_path_with_spaces_and_windows_byte_order_mark(tmp_path):
    folder = tmp_path / 'my größe'
    folder.mkdir()
    (folder / 'a.py').write_bytes('\ufeffdataset = "ö"\r\nbatch_size = 3\r\n'.encode())
    config = configure(dict(PROGRAM), argv=[str(folder / 'a.py')])
    assert (config['dataset'], config['batch_size']) == ('ö', 3)


# ---- derived settings


def test_derived_settings_never_override_explicit_ones(tmp_path):
    asked = []

    def derive(settings, explicit):
        asked.append((settings, explicit))
        settings['dataset'] = 'a copy, so this has no effect'
        names = ('batch_size', 'block_size', 'max_iters', 'f1')
        return {name: (settings['depth'] * 2, 'depth=3') for name in names}

    path = config_file(tmp_path, 'block_size = 64\n')  # the default, but explicit
    namespace = dict(PROGRAM)
    config = configure(namespace, derive=derive, argv=['--depth=3', path, '--batch_size=8'])
    assert config == settings_of(PROGRAM) | {'depth': 3, 'max_iters': 6, 'f1': 6.0}
    assert namespace['max_iters'] == 6 and type(config['f1']) is float
    ((settings, explicit),) = asked
    assert config.explicit == {'depth', 'block_size', 'batch_size'} == explicit
    assert isinstance(explicit, frozenset) and type(settings) is dict
    assert config.sources == {
        'depth': 'command line',
        'block_size': path,
        'batch_size': 'command line',
        'max_iters': 'depth=3',
        'f1': 'depth=3',
    }


@pytest.mark.parametrize(
    'derived, words',
    [
        (
            {'batchsize': (3, 'depth=3')},
            "depth=3: no such setting 'batchsize', did you mean 'batch_size'?",
        ),
        ({'batch_size': (3.5, 'depth=3')}, 'depth=3: batch_size must be a whole number, got 3.5'),
        ({'bias': (1, 'out/a')}, 'out/a: bias must be True or False, got 1'),
    ],
)
def test_derived_settings_pass_the_same_check(derived, words):
    assert refusal(derive=lambda settings, explicit: derived) == words


# ---- paths


def test_a_home_that_no_shell_expands(tmp_path, monkeypatch):
    """In arguments, files and lists, but not in text that names no path."""
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('USERPROFILE', '/home/me')
    path = config_file(tmp_path, 'dataset = "~/a,b:2,~/c:3"\n')
    argv = [path, '--out_dir=~/runs', '--init_from=a~/b', '--start=~/x']
    config = configure(dict(out_dir='', dataset='', init_from='', start='', data=''), argv=argv)
    assert dict(config) == dict(
        out_dir='/home/me/runs',
        dataset='/home/me/a,b:2,/home/me/c:3',
        init_from='a~/b',
        start='~/x',
        data='',
    )


@pytest.mark.parametrize('name', sorted(PATHS))
def test_a_path_is_a_setting_of_a_program(name):
    programs = [*ROOT.glob('*.py'), *ROOT.glob('data/*/prepare.py')]
    named = re.compile(rf"^ *{name} = '.*'  # ", re.MULTILINE)
    assert any(named.search(path.read_text(encoding='utf-8')) for path in programs)


# ---- what a program prints


def test_describe_shows_what_is_not_default_with_its_source_in_the_programs_order(tmp_path):
    path = config_file(tmp_path, 'wandb_run_name = "a b"\nblock_size = 64\n')
    derived = {'grad_clip': (2, 'depth=4'), 'f1': (0.5, 'depth=4')}
    config = configure(dict(PROGRAM), lambda *_: derived, [path, '--depth=4', '--dataset=d'])
    assert config.describe().splitlines() == [
        "dataset = 'd'   (command line)",
        'grad_clip = 2.0   (depth=4)',
        'depth = 4   (command line)',
        f"wandb_run_name = 'a b'   ({path})",
    ]
    assert set(config.sources) == {'dataset', 'grad_clip', 'depth', 'wandb_run_name', 'block_size'}


def test_settings_are_plain():
    config = configure(dict(PROGRAM), argv=['--depth=4'])
    assert isinstance(config, Settings) and isinstance(config, dict)
    assert json.loads(json.dumps(config)) == dict(config) and type(dict(config)) is dict


SOURCE = '''"""Train something."""
from configurator import configure

LIMIT = 3
# -----------------------------------------------------------------
# the data
dataset = 'toy'  # a folder under data/
batch_size = 8   # rows of a "micro-batch" # at most
# the optimizer
# (AdamW)
learning_rate = (
    1e-3
)  # AdamW's
bare = None
config = configure(globals())
print(dict(config))
'''


def help_of(tmp_path, *arguments):
    program = config_file(tmp_path, SOURCE, 'prögram.py')
    run = (
        f'import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); del sys.argv[0]; '
        'runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    command = [sys.executable, '-X', 'utf8', '-c', run, program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding='utf-8')


@pytest.mark.parametrize(
    'argv', [['--help'], ['--batchsize=1', '-h'], ['config/absent.py', '--help']]
)
def test_help_lists_every_setting_its_default_and_its_comment(tmp_path, argv):
    done = help_of(tmp_path, *argv)
    assert (done.returncode, done.stderr) == (0, '')
    lines = [' '.join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        'Train something.',
        '',
        'Settings, as --name=value or in a config file:',
        '',
        'the data',
        "--dataset='toy' a folder under data/",
        '--batch_size=8 rows of a "micro-batch" # at most',
        '',
        'the optimizer',
        '(AdamW)',
        "--learning_rate=0.001 AdamW's",
        '--bare=None',
    ]


def test_a_program_runs_with_its_arguments_and_an_error_is_one_line_on_stderr(tmp_path):
    done = help_of(tmp_path, '--batch_size=9')
    expected = dict(dataset='toy', batch_size=9, learning_rate=1e-3, bare=None)
    assert ast.literal_eval(done.stdout) == expected
    done = help_of(tmp_path, '--batch_size', '9')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == '--batch_size: write --batch_size=9\n'


def test_help_reads_a_program_with_a_byte_order_mark(tmp_path):
    program = tmp_path / 'program.py'
    program.write_bytes(b'\xef\xbb\xbf' + SOURCE.encode())
    with pytest.raises(SystemExit) as caught:
        configure(dict(__file__=str(program), batch_size=8), argv=['--help'])
    assert caught.value.code == 0


def test_help_under_python_OO_shows_the_docstring_too(tmp_path, capsys):
    """There __doc__ is None."""
    program = config_file(tmp_path, SOURCE, 'program.py')
    with pytest.raises(SystemExit):
        configure({'__file__': str(program), '__doc__': None, 'batch_size': 8}, argv=['--help'])
    assert capsys.readouterr().out.startswith('Train something.\n\nSettings')


def test_help_without_source_lists_names_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        configure(dict(PROGRAM), argv=['--help'])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.strip() for line in lines if line.startswith('  --')]
    assert listed == [f'--{name}={value!r}' for name, value in settings_of(PROGRAM).items()]


# ---- nanoGPT's command lines, from its README and the comments of its config files

COMMANDS = [
    '--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 '
    '--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0',
    '--device=mps',
    '--batch_size=32 --compile=False',
    '--init_from=gpt2-xl --eval_only=True --wandb_log=False',
    '--dtype=float16 --gradient_accumulation_steps=1 --always_save_checkpoint=False '
    '--weight_decay=1e-1',
]


def test_where_nanogpt_has_a_setting_ours_has_its_name_and_type():
    ours = train_defaults()
    assert set(NANOGPT) - set(ours) == set()
    for name, default in NANOGPT.items():
        assert ours[name] is None or type(ours[name]) is type(default), name


@pytest.mark.parametrize('program', ['nanoGPT', 'train.py'])
@pytest.mark.parametrize('command', COMMANDS)
def test_nanogpts_command_lines_are_accepted_as_they_are(command, program):
    defaults = NANOGPT if program == 'nanoGPT' else train_defaults()
    config = configure(dict(defaults), argv=command.split())
    given = dict(argument[2:].split('=') for argument in command.split())
    assert config.explicit == set(given)
    for name, text in given.items():
        expected = text if type(defaults[name]) is str else ast.literal_eval(text)
        assert config[name] == expected and type(config[name]) is type(expected)


def test_text_is_made_valid_utf8(tmp_path):
    """An argument's bytes that are not UTF-8, and half an emoji in a config file."""
    namespace = dict(PROGRAM)
    path = config_file(tmp_path, r"dataset = 'half \ud83d'")
    configure(namespace, argv=['--wandb_run_name=caf\udce9', path])
    assert (namespace['wandb_run_name'], namespace['dataset']) == ('caf\ufffd', 'half \ufffd')


# ---- ranges


def test_everything_out_of_range_is_named_at_once():
    settings = dict(optimizer='sgd', rounds=4, seed=-1, warmdown=1.5, beta1=1.0, other=0)
    with pytest.raises(SystemExit) as caught:
        check_ranges(
            settings,
            choices=dict(optimizer=('muon', 'adamw'), rounds=(3, 5)),
            least=dict(seed=0),
            most=dict(warmdown=1),
            below=dict(beta1=1),
            wrong=['other is bad'],
        )
    assert caught.value.code == (
        "optimizer is 'sgd', expected one of muon, adamw; rounds is 4, expected one of 3, 5; "
        'seed is -1, expected at least 0; warmdown is 1.5, expected at most 1; '
        'beta1 is 1.0, expected less than 1; other is bad'
    )


def test_bounds_themselves_are_in_range():
    settings = dict(optimizer='muon', seed=0, warmdown=1.0, beta1=0.999)
    check_ranges(settings)
    check_ranges(
        settings,
        choices=dict(optimizer=('muon', 'adamw')),
        least=dict(seed=0),
        most=dict(warmdown=1),
        below=dict(beta1=1),
    )


def test_a_value_with_a_line_break_is_named_on_one_line():
    with pytest.raises(SystemExit) as caught:
        check_ranges(dict(stage='a\nb'), choices=dict(stage=('sft',)))
    assert caught.value.code == r"stage is 'a\nb', expected one of sft"
