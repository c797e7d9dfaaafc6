"""
What a preset and a depth imply. `derive` fills in settings that nobody set; whatever is given explicitly wins.

    python train.py --preset=llama     # a family of models: see PRESETS in model.py
    python train.py --depth=20         # one dial for the size of everything: nanochat's d20

The dial is nanochat's idea: depth is the only number one turns; width, heads, rates, batch and horizon follow. Where an
exponent comes from stands beside it. The learning rate was measured at depths 1 to 3 (dial.py, LOG.md); nothing has
been measured here beyond depth 3.
"""

from model import PRESETS

# What the dial scales from; rows_tokens are the tokens of a step
REFERENCE = dict(depth=12, learning_rate=4.7e-3, weight_decay=0.1, rows_tokens=2**19)


def derive(settings: dict, explicit: frozenset) -> dict[str, tuple]:
    """{name: (value, source)} of what settings['preset'] and settings['depth'] imply."""
    preset, depth = settings['preset'], settings['depth']
    if preset not in PRESETS:
        raise SystemExit(f"preset is '{preset}', expected one of {', '.join(PRESETS)}")
    derived = {name: (value, f'preset {preset}') for name, value in PRESETS[preset].items()}
    if depth < 0:
        raise SystemExit(f'depth is {depth}, expected 1 or more (or 0: no dial)')
    if depth:
        derived.update({name: (value, f'depth {depth}') for name, value in dial(depth, settings, explicit).items()})
    return derived


def dial(depth: int, settings: dict, explicit: frozenset) -> dict:
    """{setting: value} for a model of `depth` layers."""
    n_embd = 64 * depth
    head_dim = 64 if n_embd < 512 else 128
    n_head = -(-n_embd // head_dim)
    n_embd = n_head * head_dim  # whole heads
    implied = dict(n_layer=depth, n_head=n_head, n_embd=n_embd)
    # The best rates of depths 1 and 2 (dial.py: 6e-2, 3.3e-2) and the one that nanochat takes at depth 20 lie on
    # 1 / depth: its Muon moves a matrix of width 1280 by 0.02 / sqrt(1280) per weight, as ours does at 2.8e-3
    implied['learning_rate'] = REFERENCE['learning_rate'] * REFERENCE['depth'] / depth
    # rate * decay * steps stays what it is at the reference (Wang and Aitchison, 2024, arXiv 2405.13698): with the rate
    # above and the batch below, steps grow as depth^(3 - 1.2) and the rate shrinks as 1 / depth
    implied['weight_decay'] = REFERENCE['weight_decay'] * (REFERENCE['depth'] / depth) ** 0.8
    if not explicit & {'max_iters', 'epochs', 'target_param_data_ratio'}:
        implied['target_param_data_ratio'] = 20.0  # tokens per parameter (Hoffmann et al., 2022, Chinchilla)
    if 'gradient_accumulation_steps' not in explicit:
        # the best batch grows as tokens^0.4 (Bergsma et al., 2025, arXiv 2505.13738), and tokens as depth^3
        tokens = REFERENCE['rows_tokens'] * (depth / REFERENCE['depth']) ** 1.2
        implied['gradient_accumulation_steps'] = max(
            1, round(tokens / (settings['batch_size'] * settings['block_size']))
        )
    return implied


def horizon(
    config: dict, explicit: frozenset, steps_per_epoch: int, num_params: int, tokens_per_step: int
) -> tuple[int, str]:
    """(steps of the run, why). At most one of max_iters, epochs, target_param_data_ratio may be explicit; it wins."""
    names = ('target_param_data_ratio', 'epochs', 'max_iters')
    given = [name for name in names if name in explicit and (config[name] or name == 'max_iters')]  # 0: not used
    if len(given) > 1:
        raise SystemExit(f'{" and ".join(given)} are both given, expected one of them: each says how long the run is')
    name = given[0] if given else next((name for name in names if config[name]), 'max_iters')
    if config[name] < 0:
        raise SystemExit(f'{name} is {config[name]}, expected 0 or more')
    if name == 'target_param_data_ratio':
        tokens = config[name] * num_params
        return round(tokens / tokens_per_step), f'{config[name]:g} tokens for each of {num_params:,} parameters'
    if name == 'epochs':
        return round(config[name] * steps_per_epoch), f'{config[name]:g} epochs of {steps_per_epoch:,} steps'
    return config[name], 'max_iters'
