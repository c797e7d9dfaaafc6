"""
What settings imply. `derive` fills in what a preset and a depth say of settings that nobody set; whatever is given
explicitly wins.

    python train.py --preset=llama     # a family of models: see PRESETS in model.py
    python train.py --depth=20         # one dial for the size of everything: nanochat's d20

The dial is nanochat's idea: depth is the only number one turns; width, heads, rates, batch and horizon follow. Where an
exponent comes from stands beside it. The learning rate was measured at depths 1 to 3 (dial.py, LOG.md); nothing has
been measured here beyond depth 3.

Below: how long a run is (`horizon`), how many rows a CPU takes at once (`cpu_rows`), and whether a run can fit into
memory at all (`check_memory`). All of it is arithmetic: no model is built.
"""

import runtime
from model import LOGITS_BYTES, PRESETS, GPTConfig

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


# -----------------------------------------------------------------------------
# memory

# A micro-batch on a CPU. Malloc does not keep the activations of a large one: every step gets their
# pages from the kernel again, cleared. A small one makes narrow matrix products, and adds to all
# gradients for few tokens. These are constants, not the caches of this machine, because how rows
# are split decides the last bits of a gradient.
ACTIVATION_BYTES = 2**26  # at most, in float32, as activations() counts them
MICRO_BATCH_TOKENS = 1024  # at least, whatever their activations take


def weights(config: GPTConfig) -> int:
    """Numbers in the weight matrices of a model. Gains and biases are negligible and left out."""
    attention = 2 * (config.n_head + config.n_kv_head) * config.head_dim  # q, k, v and c_proj
    mlp = (3 if config.mlp == 'swiglu' else 2) * config.n_hidden
    tables = (1 if config.tied_head else 2) * config.vocab_size
    tables += config.block_size if config.positions == 'learned' else 0
    return config.n_embd * (config.n_layer * (attention + mlp) + tables)


def activations(config: GPTConfig, tokens: int) -> int:
    """Numbers that a forward pass over `tokens` keeps for backward, at least: the results of matrix
    products and of attention. A compiler may compute the rest again (norms, RoPE, relu2's square);
    eager code keeps it too, which makes it about twice as much.
    """
    attention = 2 * (config.n_head + config.n_kv_head) * config.head_dim  # q, k, v and the result
    mlp = (2 if config.mlp == 'swiglu' else 1) * config.n_hidden
    logits = min(tokens * config.vocab_size, LOGITS_BYTES // 4)
    return tokens * config.n_layer * (2 * config.n_embd + attention + mlp) + logits


def cpu_rows(config: GPTConfig) -> int:
    """Rows of a micro-batch on a CPU: an even number, so that the pairs of dpo stay together."""
    row_bytes = 4 * activations(config, config.block_size)
    rows = max(ACTIVATION_BYTES // row_bytes, MICRO_BATCH_TOKENS // config.block_size)
    return max(2, rows - rows % 2)


def micro_batch_rows(config: GPTConfig, settings: dict, device: str) -> int:
    """Rows of a micro-batch, at most: batch_size, and on a CPU fewer where the model is large."""
    if device != 'cpu':
        return settings['batch_size']
    return min(settings['batch_size'], settings['cpu_micro_batch_size'] or cpu_rows(config))


def check_memory(config: GPTConfig, settings: dict, device: str, dtype: str, ranks: runtime.Ranks) -> None:
    """Refuse what certainly does not fit into the memory of the device. settings are train.py's.

    A lower bound: what is counted is in memory at one moment of a step, and much else is too
    (temporaries, torch itself). So a run that passes may still run out of memory.
    """
    has = runtime.memory(device)
    if has is None:
        return
    has //= ranks.local_world_size if device == 'cpu' else 1
    size = 8 if dtype == 'float64' else 4
    training = not settings.get('eval_only')

    # 1) Rows of a step on one rank, rows of a micro-batch, tokens of a row: no fewer than these
    step_rows = settings['gradient_accumulation_steps'] * settings['batch_size'] // ranks.world_size
    micro_batches = -(-step_rows // micro_batch_rows(config, settings, device))
    rows = step_rows // micro_batches if training and step_rows else 1
    tokens = config.block_size
    if settings.get('stage') in ('dpo', 'rl'):
        tokens = min(tokens, 64)  # their rows are as long as the longest text, rounded up to 64

    # 2) Bytes. Gradients are in their parameters and in a bucket of the optimizer at once, but only
    # when the activations of the last micro-batch are gone: the larger of the two counts
    numbers = size * weights(config)
    table = size * config.block_size * config.head_dim if config.positions == 'rope' else 0
    masks = rows * tokens**2 if config.bos >= 0 else 0
    moments = gradients = kept = ids = 0
    if training:
        moments = (2 if settings['optimizer'] == 'adamw' else 1) * numbers // ranks.world_size
        gradients = numbers + numbers // ranks.world_size
        half = dtype in ('bfloat16', 'float16')
        kept = (2 if half else size) * activations(config, rows * tokens)
        ids = 8 * step_rows * tokens  # all micro-batches of a step are prepared at once
    model = ('n_layer', 'n_embd', 'n_hidden', 'n_head', 'head_dim', 'vocab_size')
    batch = ('batch_size', 'block_size', *(('isolate',) if masks > kept else model))
    parts = [  # and the settings that each follows from
        (numbers + moments + gradients, model),
        (table, ('block_size', 'head_dim')),
        (ids, ('gradient_accumulation_steps', 'batch_size', 'block_size')),
        (max(0, kept + masks - gradients), batch),
    ]

    # 3) Compare
    needs = sum(part for part, _ in parts)
    if needs > has:
        values = {**settings, **vars(config)}
        largest = ', '.join(f'{name} = {values[name]}' for name in max(parts)[1])
        raise SystemExit(
            f'this takes at least {needs / 2**30:,.1f} GiB and {device} has {has / 2**30:,.1f} GiB '
            f'of memory; most of it follows from {largest}: lower one of them'
        )
