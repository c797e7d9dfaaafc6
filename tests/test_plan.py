"""plan.py: what a preset and a depth imply, how long a run is, what memory it needs."""

import pytest
import torch
from conftest import one_line, train_defaults

import plan
import runtime
from configurator import configure
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer


def configured(*argv):
    return configure(train_defaults(), derive=plan.derive, argv=list(argv))


# ---- presets


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_gives_its_row(preset):
    row = {name: (value, f'preset {preset}') for name, value in PRESETS[preset].items()}
    assert plan.derive(dict(preset=preset, depth=0), frozenset()) == row
    config = configured(f'--preset={preset}')
    assert {name: config[name] for name in PRESETS[preset]} == PRESETS[preset]
    expected = {**train_defaults(), **PRESETS[preset], 'preset': preset}
    assert dict(config) == expected  # nothing else changes
    assert set(PRESETS[preset]) == set(PRESETS['nano'])  # every preset sets every switch


def test_the_default_preset_is_what_the_defaults_say():
    assert dict(configured()) == train_defaults()
    assert configured().describe() == ''


@pytest.mark.parametrize('preset', PRESETS)
def test_what_is_given_wins_over_the_preset(preset):
    for name, value in PRESETS['gpt2' if preset != 'gpt2' else 'llama'].items():
        config = configured(f'--preset={preset}', f'--{name}={value}')
        assert config[name] == value and config.sources[name] == 'command line'
        others = {other: value for other, value in PRESETS[preset].items() if other != name}
        assert {other: config[other] for other in others} == others


def test_an_unknown_preset_and_a_negative_depth_are_named():
    with pytest.raises(SystemExit) as stop:
        configured('--preset=gpt5')
    one_line(stop, "'gpt5'", *PRESETS)
    with pytest.raises(SystemExit) as stop:
        configured('--depth=-2')
    one_line(stop, 'depth is -2')


# ---- the dial


@pytest.mark.parametrize('depth, n_embd, n_head', [
    (1, 64, 1), (4, 256, 4), (7, 448, 7),  # heads of 64
    # heads of 128
    (8, 512, 4), (9, 640, 5), (10, 640, 5), (12, 768, 6), (20, 1280, 10), (32, 2048, 16),
])  # fmt: skip
def test_the_width_follows_the_depth(depth, n_embd, n_head):
    config = configured('--preset=nano', f'--depth={depth}')
    assert (config['n_layer'], config['n_embd'], config['n_head']) == (depth, n_embd, n_head)
    assert config.sources['n_embd'] == f'depth {depth}'
    assert {name: config[name] for name in PRESETS['nano']} == PRESETS['nano']


def test_heads_are_whole_and_of_64_or_128():
    for depth in range(1, 65):
        config = configured(f'--depth={depth}')
        head_dim = 64 if 64 * depth < 512 else 128
        assert config['n_embd'] == config['n_head'] * head_dim
        assert 0 <= config['n_embd'] - 64 * depth < head_dim  # rounded up, by less than a head
        model_config = GPTConfig(
            **{name: config[name] for name in ('n_layer', 'n_head', 'n_embd', 'n_kv_head')}
        )
        assert model_config.head_dim == head_dim


def test_a_larger_depth_moves_each_setting_one_way():
    configs = [
        configured(f'--depth={depth}', '--batch_size=1', '--block_size=64')
        for depth in range(1, 40)
    ]
    for small, large in zip(configs, configs[1:]):
        assert small['n_layer'] < large['n_layer'] and small['n_embd'] <= large['n_embd']
        assert small['gradient_accumulation_steps'] <= large['gradient_accumulation_steps']


def test_the_batch_is_nanochats_at_depth_12_and_scales_from_it():
    config = configured('--depth=12', '--batch_size=32', '--block_size=1024')
    assert config['gradient_accumulation_steps'] * 32 * 1024 == 2**19
    # 32 times the depth: 64 times the batch
    rows = [configured(f'--depth={depth}', '--batch_size=1', '--block_size=1') for depth in (2, 64)]
    small, large = [config['gradient_accumulation_steps'] for config in rows]
    assert large / small == pytest.approx(64, 1e-3)


@pytest.mark.parametrize('given', [
    'n_layer=3', 'n_head=2', 'n_embd=96', 'beta1=0.95', 'weight_decay=0.25',
    'gradient_accumulation_steps=5', 'target_param_data_ratio=8.0',
    *(f'{name}={train_defaults()[name]}' for name in ('n_layer', 'weight_decay')),
])  # fmt: skip
def test_what_is_given_wins_over_the_dial(tmp_path, given):
    name, text = given.split('=')
    value = type(train_defaults()[name])(text)
    (tmp_path / 'a.py').write_text(f'{name} = {text}', encoding='utf-8')
    plain = configured('--depth=20')
    assert plain[name] != value
    for config in (
        configured('--depth=20', f'--{given}'),
        configured(str(tmp_path / 'a.py'), '--depth=20'),
    ):
        assert config[name] == value and name in config.explicit
        assert {k: v for k, v in config.items() if k != name} == {
            k: v for k, v in plain.items() if k != name
        }


@pytest.mark.parametrize('given', ['max_iters=100', 'epochs=2'])
def test_a_given_horizon_replaces_the_dials(given):
    config = configured('--depth=4', f'--{given}')
    assert config['target_param_data_ratio'] == 0.0
    steps, _ = plan.horizon(config, config.explicit, 30, 10**6, 10**3)
    assert steps == (100 if 'iters' in given else 60)


def test_a_dialled_run_is_20_tokens_a_parameter():
    config = configured('--depth=2')
    model = GPT(
        GPTConfig(vocab_size=65, **{name: config[name] for name in ('n_layer', 'n_head', 'n_embd')})
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    steps, why = plan.horizon(config, config.explicit, 10, count, 4096)
    assert abs(steps * 4096 - 20 * count) <= 4096 / 2
    assert '20 tokens' in why and f'{count:,}' in why


# ---- the dial's rates


def shaped(depth, **other):
    config = configured(f'--depth={depth}', '--batch_size=1', '--block_size=64')
    sizes = {name: config[name] for name in ('n_layer', 'n_head', 'n_embd')}
    return GPTConfig(**{'vocab_size': 65536, **sizes, **other})


def test_at_depth_20_the_rates_are_near_nanochats():
    """Within a factor of 1.5 of nanochat 0.1.0's, in our units: config/speedrun_d20.py."""
    theirs = dict(learning_rate=2.8e-3, embedding_rate=55.0, head_rate=1.1)
    found = {**train_defaults(), **plan.rates(shaped(20), 21_400, 2**19)}
    for name, rate in theirs.items():
        assert 1 / 1.5 < found[name] / rate < 1.5, name
    table = found['learning_rate'] * found['embedding_rate']
    assert table == pytest.approx(0.2 * (1280 / 768) ** -0.5, 1e-2)


@pytest.mark.parametrize('steps, tokens, power', [(1, 8, 0.75 - 0.43), (8, 1, -0.43)])
def test_rates_follow_batch_and_length(steps, tokens, power):
    first, second = (
        plan.rates(shaped(2), 500, 2**13),
        plan.rates(shaped(2), 500 * steps, 2**13 * tokens),
    )
    grown = second['learning_rate'] / first['learning_rate']
    assert grown == pytest.approx(8**power, 0.02)
    assert second['embedding_rate'] / first['embedding_rate'] == pytest.approx(1 / grown, 0.02)


def test_the_rate_of_a_table_follows_its_kind_and_its_ids():
    narrow = plan.rates(shaped(2, vocab_size=256), 500, 2**13)
    wide = plan.rates(shaped(2, vocab_size=4096), 500, 2**13)
    assert wide == plan.rates(shaped(2), 500, 2**13)
    assert wide['embedding_rate'] / narrow['embedding_rate'] == pytest.approx(8, 0.02)
    assert plan.rates(shaped(2, embed_norm=False), 500, 2**13)['embedding_rate'] == 1.0


def test_set_rates_leaves_what_is_given():
    implied = plan.rates(shaped(2), 500, 2**13)
    for given in ('', *implied):
        config = configured('--depth=2', *([f'--{given}=0.25'] if given else []))
        plan.set_rates(config, shaped(2), 500, 2**13)
        assert {name: config[name] for name in implied} == implied | (
            {given: 0.25} if given else {}
        )
        assert {config.sources[name] for name in implied if name != given} == {'depth 2'}
    config = configured('--depth=2', '--min_lr=0.5')
    with pytest.raises(SystemExit) as stop:
        plan.set_rates(config, shaped(2), 500, 2**13)
    one_line(stop, f'min_lr is 0.5, expected at most learning_rate = {implied["learning_rate"]}')


def test_no_steps_have_rates_too():
    assert plan.rates(shaped(1), 0, 2**13) == plan.rates(shaped(1), 1, 2**13)


# ---- the horizon


@pytest.mark.parametrize('argv, steps, why', [
    ([], train_defaults()['max_iters'], 'max_iters'),
    (['--max_iters=70'], 70, 'max_iters'),
    (['--max_iters=0'], 0, 'max_iters'),
    (['--epochs=3'], 36, '3 epochs of 12 steps'),
    (['--epochs=0.5'], 6, '0.5 epochs'),
    (['--target_param_data_ratio=20'], 40, '20 tokens for each of 5,000'),
    (['--target_param_data_ratio=0.5'], 1, '0.5 tokens'),
])  # fmt: skip
def test_the_horizon_is_one_number_of_steps(argv, steps, why):
    config = configured(*argv)
    answer = plan.horizon(
        config, config.explicit, steps_per_epoch=12, num_params=5000, tokens_per_step=2500
    )
    assert answer[0] == steps and type(answer[0]) is int
    assert why in answer[1]


@pytest.mark.parametrize('config, steps', [
    (dict(max_iters=9, epochs=0.0, target_param_data_ratio=0.0), 9),
    (dict(max_iters=9, epochs=2.0, target_param_data_ratio=0.0), 24),
    (dict(max_iters=9, epochs=2.0, target_param_data_ratio=1.0), 2),
])  # fmt: skip
def test_of_inherited_values_the_ratio_comes_first_then_epochs(config, steps):
    """On resume nothing need be explicit: the settings come from the checkpoint."""
    assert plan.horizon(config, frozenset(), 12, 5000, 2500)[0] == steps
    given = {**config, 'max_iters': 77}
    assert plan.horizon(given, frozenset({'max_iters'}), 12, 5000, 2500)[0] == 77


@pytest.mark.parametrize('argv', [
    ['--max_iters=7', '--epochs=2'],
    ['--epochs=2', '--target_param_data_ratio=2'],
    ['--max_iters=1000', '--target_param_data_ratio=2'],
])  # fmt: skip
def test_two_horizons_are_an_error(argv):
    config = configured(*argv)
    with pytest.raises(SystemExit) as stop:
        plan.horizon(config, config.explicit, 12, 5000, 2500)
    one_line(stop, *[argument.strip('-').split('=')[0] for argument in argv], 'expected one')


@pytest.mark.parametrize(
    'in_file', ['target_param_data_ratio = 20.0', 'epochs = 3', 'max_iters = 9']
)
def test_a_horizon_on_the_command_line_replaces_another_kind_in_a_file(tmp_path, in_file):
    path = tmp_path / 'a.py'
    path.write_text(in_file, encoding='utf-8')
    typed = '--max_iters=70' if 'max_iters' not in in_file else '--epochs=2'
    for argv in ([str(path), typed], [typed, str(path)]):
        config = configured(*argv)
        answer = plan.horizon(config, config.explicit, 12, 5000, 2500)
        assert answer[0] == (70 if 'max_iters' in typed else 24)
        # the checkpoint of this run must not say two things: a resume names no horizon
        assert plan.horizon(config, frozenset(), 12, 5000, 2500) == answer


def test_two_horizons_in_one_file_are_an_error(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('epochs = 3\nmax_iters = 9', encoding='utf-8')
    config = configured(str(path))
    with pytest.raises(SystemExit) as stop:
        plan.horizon(config, config.explicit, 12, 5000, 2500)
    one_line(stop, 'epochs', 'max_iters', 'expected one')


@pytest.mark.parametrize('name', ['max_iters', 'epochs', 'target_param_data_ratio'])
def test_a_negative_horizon_is_named(name):
    config = configured(f'--{name}=-3')
    with pytest.raises(SystemExit) as stop:
        plan.horizon(config, config.explicit, 12, 5000, 2500)
    one_line(stop, f'{name} is -3', 'at least 0')


# ---- memory

GIB = 2**30
ONE = runtime.Ranks()
SHAPES = [
    dict(
        PRESETS[preset],
        n_layer=3,
        n_head=4,
        n_kv_head=n_kv_head,
        n_embd=64,
        block_size=32,
        vocab_size=256,
    )
    for preset, n_kv_head in zip(PRESETS, (4, 4, 2, 1, 2))
]
NANO = dict(n_layer=4, n_head=4, n_embd=128, block_size=128, vocab_size=1536)


@pytest.mark.parametrize('shape', SHAPES, ids=PRESETS)
def test_weights_and_activations_are_counted_without_a_model(shape):
    """The arithmetic is a lower bound on a real model, and not far below."""
    config = GPTConfig(**shape)
    model, ids = GPT(config), torch.zeros(4, 32, dtype=torch.int64)
    assert 0.99 < plan.weights(config) / model.num_params() <= 1
    kept = {}

    def note(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(ids, ids).sum()  # keeps the tensors alive
    assert 1 < sum(kept.values()) / (4 * plan.activations(config, 4 * 32)) < 3.5
    assert loss.requires_grad


def test_a_step_holds_as_many_gradients_as_are_counted(monkeypatch):
    """In Optimizer.reduce each gradient is in its parameter and in its bucket."""
    model = GPT(GPTConfig(**SHAPES[0]))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer, seen = Optimizer(model), []
    for bucket in optimizer.buckets.values():

        def note(original=bucket.reduce):
            original()
            there = sum(p.numel() for p in model.parameters() if p.grad is not None)
            laid = sum(b.grad.numel() for b in optimizer.buckets.values() if b.grad is not None)
            seen.append(there + laid)

        monkeypatch.setattr(bucket, 'reduce', note)
    optimizer.reduce()
    assert seen[-1] >= 2 * plan.weights(model.config)


@pytest.mark.parametrize('shape, rows', [
    (NANO, 18),
    (dict(NANO, block_size=256), 8),
    (dict(NANO, n_layer=6, n_head=6, n_embd=384, block_size=256), 4),  # 1,024 tokens
    (dict(NANO, n_embd=256), 10),
    (dict(NANO, vocab_size=65536), 8),
    (dict(n_layer=24, n_head=16, n_embd=2048, block_size=4096, vocab_size=50304), 2),
])  # fmt: skip
def test_rows_of_a_micro_batch_on_a_cpu(shape, rows):
    config = GPTConfig(**shape)
    assert plan.cpu_rows(config) == rows and rows % 2 == 0
    settings = dict(batch_size=64, cpu_micro_batch_size=0)
    assert plan.micro_batch_rows(config, settings, 'cpu') == rows
    assert plan.micro_batch_rows(config, {**settings, 'batch_size': 1}, 'cpu') == 1
    given = {**settings, 'cpu_micro_batch_size': 24}
    assert plan.micro_batch_rows(config, given, 'cpu') == 24
    for device in ('cuda:0', 'mps'):
        assert plan.micro_batch_rows(config, given, device) == 64


def refused(monkeypatch, gib, device='cpu', dtype='float32', ranks=ONE, **given):
    """The message of check_memory for a device of `gib` GiB; None if the settings pass."""
    monkeypatch.setattr(runtime, 'memory', lambda device: gib and int(gib * GIB))
    settings = {**train_defaults(), **NANO, **given}
    fields = {name: x for name, x in settings.items() if name in GPTConfig.__dataclass_fields__}
    try:
        plan.check_memory(GPTConfig(**fields), settings, device, dtype, ranks)
    except SystemExit as stop:
        assert '\n' not in stop.code
        return stop.code
    return None


@pytest.mark.parametrize('given', [
    dict(n_layer=10**9), dict(n_embd=10**8), dict(n_hidden=10**10), dict(n_head=10**9, head_dim=64),
    dict(block_size=10**8), dict(block_size=10**6, bos=0, isolate=True), dict(batch_size=10**9),
    dict(vocab_size=10**9),
    dict(gradient_accumulation_steps=10**10), dict(block_size=10**8, positions='learned'),
    dict(block_size=10**9, eval_only=True), dict(n_layer=10**9, stage='rl'),
])  # fmt: skip
def test_what_cannot_fit_is_named_with_its_value(monkeypatch, given):
    (name, value), *_ = given.items()
    for device in ('cpu', 'cuda:0'):
        message = refused(monkeypatch, 16, device, **given)
        assert f'{name} = {value}' in message and f'{device} has 16.0 GiB' in message
    assert refused(monkeypatch, None, **given) is None  # memory of unknown size


def test_the_bound_is_below_what_is_needed(monkeypatch):
    gpt2 = dict(
        PRESETS['gpt2'],
        n_layer=12,
        n_head=12,
        n_embd=768,
        vocab_size=50257,
        block_size=1024,
        optimizer='adamw',
    )
    assert refused(monkeypatch, 1) is None
    assert refused(monkeypatch, 0.01)
    # 124M parameters with gradients, copied once, and two moments: 5 * 4 * 124M bytes = 2.3 GiB
    assert refused(monkeypatch, 2.5, batch_size=1, **gpt2) is None
    assert 'at least 2.3 GiB' in refused(monkeypatch, 2, batch_size=1, **gpt2)
    assert refused(monkeypatch, 0.5, eval_only=True, **gpt2) is None
    # ranks on several cards share moments and the copy; ranks on a CPU share its memory
    two = runtime.Ranks(0, 0, 2, 2)
    assert refused(monkeypatch, 2, 'cuda:0', ranks=two, batch_size=1, **gpt2) is None
    assert refused(monkeypatch, 2.5, 'cpu', ranks=two, batch_size=1, **gpt2)
    # activations of 12 rows: half as much in half precision
    assert refused(monkeypatch, 6, 'cuda:0', batch_size=12, **gpt2)
    assert refused(monkeypatch, 6, 'cuda:0', 'bfloat16', batch_size=12, **gpt2) is None
    # rows of dpo and rl are as long as the longest text, whatever block_size is
    long = dict(block_size=2**17, batch_size=32)
    assert refused(monkeypatch, 16, 'cuda:0', stage='sft', **long)
    assert refused(monkeypatch, 16, 'cuda:0', stage='dpo', **long) is None
