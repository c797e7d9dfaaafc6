"""Every file in config/ starts."""

import runpy

import pytest
import torch
from conftest import ROOT, read_defaults, train_defaults
from test_stages import FOLDERS, world  # noqa: F401  fixture
from test_train import running

import plan
from configurator import configure
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer

TRAIN = runpy.run_path(str(ROOT / 'train.py'), run_name='train')
CONFIGS = sorted((ROOT / 'config').glob('*.py'))
PROGRAMS = {'_data': 'data/fineweb_edu/prepare.py', '_tokenizer': 'tokenizer.py'}


def program_of(path):
    """The program whose settings the file sets."""
    if path.stem.startswith('tokenizer_'):
        return 'tokenizer.py'
    found = [program for end, program in PROGRAMS.items() if path.stem.endswith(end)]
    return found[0] if found else 'train.py'


STAGES = [path for path in CONFIGS if program_of(path) == 'train.py']
OTHERS = [path for path in CONFIGS if program_of(path) != 'train.py']
DEFAULTS = train_defaults()
GPT2_SIZES = {
    'gpt2': dict(n_layer=12, n_head=12, n_embd=768),
    'gpt2-medium': dict(n_layer=24, n_head=16, n_embd=1024),
    'gpt2-large': dict(n_layer=36, n_head=20, n_embd=1280),
    'gpt2-xl': dict(n_layer=48, n_head=25, n_embd=1600),
}


def each(paths):
    return pytest.mark.parametrize('path', paths, ids=[path.stem for path in paths])


def own_settings(path):
    return configure(dict(DEFAULTS), argv=[str(path)])


def with_parents(path):
    """The settings of a run: a later stage takes architecture and recipe from the one before, whose
    config is the one with its init_from as out_dir."""
    config = own_settings(path)
    if config['init_from'] == 'scratch':
        return configure(dict(DEFAULTS), derive=plan.derive, argv=[str(path)])
    if config['init_from'] in GPT2_SIZES:  # as pretrained.py reads them from config.json
        sizes = {**PRESETS['gpt2'], 'bias': True, 'block_size': 1024}
        sizes |= GPT2_SIZES[config['init_from']]
        derived = {name: (x, 'config.json') for name, x in sizes.items()}
        return configure(dict(DEFAULTS), lambda *_: derived, argv=[str(path)])
    parent = next(p for p in STAGES if own_settings(p)['out_dir'] == config['init_from'])
    before = with_parents(parent)
    names = TRAIN['RECIPE'] | set(GPTConfig.__dataclass_fields__)
    derived = {name: (x, 'parent') for name, x in before.items() if name in names}
    return configure(dict(DEFAULTS), lambda *_: derived, argv=[str(path)])


@each(OTHERS)
def test_its_names_are_settings_of_its_program(path):
    configure(dict(read_defaults(ROOT / program_of(path))), argv=[str(path)])


@each(STAGES)
def test_its_settings_fit_together(path):
    config = with_parents(path)
    TRAIN['check']({**config, 'wandb_log': False})  # wandb may not be installed
    assert (
        config['stage'] != 'rl'
        or config['batch_size'] * config['gradient_accumulation_steps'] % config['rl_samples'] == 0
    )
    plan.horizon(config, config.explicit, 100, 10**6, 10**5)


def two_steps(config, vocab_size):
    """Two steps at the shapes of the config, without data. Returns the number of parameters."""
    names = [name for name in GPTConfig.__dataclass_fields__ if name in config]
    fields = {name: config[name] for name in names}
    with torch.device('meta'):
        model = GPT(GPTConfig(vocab_size=vocab_size, **fields))
        optimizer = Optimizer(
            model, config['optimizer'], (config['beta1'], config['beta2']), config['weight_decay'],
            config['embedding_rate'], config['head_rate'], config['muon_iterations'],
            eps=config['adam_eps'],
        )  # fmt: skip
        ids = torch.zeros(config['batch_size'], config['block_size'], dtype=torch.int64)
    for _ in range(2):
        model(ids, ids).sum().backward()  # one micro-batch: the others have its shape
        optimizer.reduce()
        optimizer.step(config['learning_rate'], optimizer.norm(), config['grad_clip'])
    return model.num_params()


@pytest.mark.slow
@each([path for path in STAGES if own_settings(path)['init_from'] == 'scratch'])
def test_two_steps_at_its_own_shapes_on_the_meta_device(path):
    counted = two_steps(with_parents(path), 65536)
    exact = dict(speedrun_d20=560_988_160, d32=1_879_048_192, d12=185_597_952, h100x1=335_544_320)
    assert counted == exact.get(path.stem, counted)


@pytest.mark.parametrize('name, width', [('speedrun_d20', 1280), ('d32', 2048)])
def test_the_rates_are_nanochats(name, width):
    """In its units: Muon's 0.02, AdamW's 0.2 and 0.004 at a width of 768."""
    config = own_settings(ROOT / 'config' / f'{name}.py')
    rate = config['learning_rate']
    assert 0.2 * width**0.5 * rate == pytest.approx(0.02, 0.01)
    assert config['embedding_rate'] * rate == pytest.approx(0.2 * (768 / width) ** 0.5, 0.02)
    assert config['head_rate'] * rate == pytest.approx(0.004 * (768 / width) ** 0.5, 0.02)
    for stage, share in dict(sft=0.02, rl=0.05).items():
        later = own_settings(ROOT / 'config' / f'{name}_{stage}.py')
        assert later['learning_rate'] == pytest.approx(share * rate)
    rows = config['batch_size'] * config['gradient_accumulation_steps']
    assert rows * config['block_size'] == 2**19


# What makes any config small enough for this machine, and gives it data that is there
SMALL = dict(
    block_size=256, batch_size=4, gradient_accumulation_steps=1, max_iters=2, eval_interval=0,
    eval_iters=1, eval_problems=2, max_new_tokens=4, sample_prompts='', rl_samples=2, rl_tokens=4,
    rl_skills='', wandb_log=False, device='cpu', dtype='float32', auto_resume=False,
)  # fmt: skip


def options(settings):
    return [f'--{name}={x}' for name, x in settings.items()]


@pytest.mark.slow
@each(STAGES)
def test_its_first_two_steps_run_shrunk_by_settings(
    path,
    world,  # noqa: F811
    small_base,
    tmp_path,
    capsys,  # noqa: F811
):
    own = own_settings(path)
    data = world.folder / FOLDERS[own['stage']]
    more = dict(SMALL, dataset=data, out_dir=tmp_path / 'out')
    if own['init_from'] == 'scratch':
        more |= dict(depth=2) if own['depth'] else dict(n_layer=1)
    else:
        more['init_from'] = small_base
    with running(capsys) as run:
        done = run(path, *options(more))
    assert done.returncode == 0, done.stderr
    assert ('val ' if own['eval_only'] else 'step 2/2') in done.stdout


@pytest.fixture(scope='module')
def small_base(world, run_program, tmp_path_factory):  # noqa: F811
    """A model for the later stages to start from."""
    out = tmp_path_factory.mktemp('base')
    shape = dict(n_layer=1, n_embd=32, n_head=2)
    data = world.folder / FOLDERS['pretrain']
    run_program('train.py', *options(dict(SMALL, **shape, dataset=data, out_dir=out)))
    return out
