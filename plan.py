"""
What settings imply, by arithmetic: no model is built.

1. The dial (`derive`, `set_rates`): a preset and a depth set everything that the user has not set.

    python train.py --preset=llama     # a family of models: see PRESETS in model.py
    python train.py --depth=20         # one dial for the size of everything, as nanochat's d20

2. The horizon (`horizon`): how many steps a run has.
3. Memory (`cpu_rows`, `check_memory`): how many rows a CPU processes at a time, and whether a run
   can fit at all.
"""

import runtime
from configurator import Settings, check_ranges
from model import LOGITS_BYTES, PRESETS, GPTConfig

# -----------------------------------------------------------------------------
# 1. the dial. The idea is nanochat's: the user sets the depth; width, heads, batch, horizon and
# rates follow. Measured at depths 1 to 3 (docs/dial.md, LOG.md); deeper, only that the rates come
# near nanochat's at depth 20


def derive(settings: dict, explicit: frozenset) -> dict[str, tuple]:
    """{name: (value, source)} that settings['preset'] and settings['depth'] imply. SystemExit if
    one of them is out of range."""
    check_ranges(settings, choices=dict(preset=PRESETS), least=dict(depth=0))  # depth 0: no dial
    preset = settings['preset']
    depth = settings['depth']
    derived = {name: (value, f'preset {preset}') for name, value in PRESETS[preset].items()}
    if depth:
        for name, value in dial(depth, settings, explicit).items():
            derived[name] = (value, f'depth {depth}')
    return derived


def dial(depth: int, settings: dict, explicit: frozenset) -> dict:
    """{setting: value} for a model of `depth` layers. settings: batch_size and block_size, for the
    number of rows in a step."""
    implied = {}

    # 1) Size: a width of 64 * depth, rounded up to whole heads
    n_embd = 64 * depth
    head_dim = 64 if n_embd < 512 else 128
    n_head = -(-n_embd // head_dim)
    implied['n_layer'] = depth
    implied['n_head'] = n_head
    implied['n_embd'] = n_head * head_dim

    # 2) Horizon: 20 tokens per parameter in use (Hoffmann et al., 2022, Chinchilla)
    if not explicit & {'max_iters', 'epochs', 'target_param_data_ratio'}:
        implied['target_param_data_ratio'] = 20.0

    # 3) Batch: the best one grows as tokens^0.4 (Bergsma et al., 2025, arXiv 2505.13738), and
    # tokens grow as depth^3. 2^19 tokens at depth 12 are nanochat's
    if 'gradient_accumulation_steps' not in explicit:
        tokens_per_step = 2**19 * (depth / 12) ** 1.2
        micro_batch_tokens = settings['batch_size'] * settings['block_size']
        implied['gradient_accumulation_steps'] = max(1, round(tokens_per_step / micro_batch_tokens))

    # 4) AdamW's first moment, as nanochat's: 0.9 is 0.016 and 0.022 nats worse at depths 1 and 2
    implied['beta1'] = 0.8

    # 5) No decay, as nanochat's. Decays of 0.1 to 0.6 show no trend at depths 1 to 3 (LOG.md)
    implied['weight_decay'] = 0.0
    return implied


def rates(model: GPTConfig, steps: int, tokens_per_step: int) -> dict[str, float]:
    """{setting: value}, to three digits, that the dial implies for a run of `steps` steps. The
    constants and exponents are fitted to the best rates in docs/dial.md."""
    tokens = max(1, steps) * tokens_per_step

    # 1) Matrices: by the width as nanochat, up with the batch, down with the length of the run
    rate = 0.13 * model.n_embd**-0.5 * tokens_per_step**0.75 * tokens**-0.43

    # 2) Embedding: nanochat's 0.2 at width 768, whatever the batch and the length. Less where there
    # are few ids, since every step sees each of them often. A table without a norm after it starts
    # at init_std, which is small, and moves as the matrices do
    embedding = rate
    if model.embed_norm:
        embedding = 0.2 * (model.n_embd / 768) ** -0.5 * min(1.0, model.vocab_size / 2048)
    implied = dict(learning_rate=rate, embedding_rate=embedding / rate)
    return {name: float(f'{value:.3g}') for name, value in implied.items()}


def set_rates(
    settings: Settings, model: GPTConfig, steps: int, tokens_per_step: int
) -> dict[str, float]:
    """Set the dial's rates where they are not given, once the length of the run is known. Returns
    them. SystemExit if min_lr exceeds the learning rate."""
    source = f'depth {settings["depth"]}'
    implied = rates(model, steps, tokens_per_step)
    for name in implied.keys() & settings.explicit:
        del implied[name]
    for name, value in implied.items():
        settings.assign(name, value, source, where=source, explicit=False)
    if settings['min_lr'] > settings['learning_rate']:
        limit = f'learning_rate = {settings["learning_rate"]}'
        raise SystemExit(f'min_lr is {settings["min_lr"]}, expected at most {limit}')
    return implied


# -----------------------------------------------------------------------------
# 2. the horizon


def horizon(
    config: Settings, explicit: frozenset, steps_per_epoch: int, num_params: int,
    tokens_per_step: int,
) -> tuple[int, str]:  # fmt: skip
    """
    (steps of the run, why).

    One of three settings decides: the explicit one, where the command line replaces a config file;
    else target_param_data_ratio or epochs if not 0, which happens on resume; else max_iters.
    SystemExit if two are explicit, or one is negative.
    """
    # 1) Choose. 0 means not used, except for max_iters
    names = ('target_param_data_ratio', 'epochs', 'max_iters')
    given = [name for name in names if name in explicit and (config[name] or name == 'max_iters')]
    if len(given) > 1:
        typed = [name for name in given if config.sources[name] == 'command line']
        for name in given if typed else ():
            if name not in typed:  # it must not reach the checkpoint: a resume would follow it
                config.assign(name, config.defaults[name], 'plan.py', where='', explicit=False)
        given = typed or given
    if len(given) > 1:
        raise SystemExit(
            f'{" and ".join(given)} are both given, expected one of them: '
            'each says how long the run is'
        )
    in_use = given or [name for name in names if config[name]] or ['max_iters']
    name = in_use[0]
    check_ranges(config, least={name: 0})

    # 2) Convert into steps
    number = config[name]
    if name == 'target_param_data_ratio':
        steps = round(number * num_params / tokens_per_step)
        return steps, f'{number:g} tokens for each of {num_params:,} parameters'
    if name == 'epochs':
        steps = round(number * steps_per_epoch)
        return steps, f'{number:g} epochs of {steps_per_epoch:,} steps'
    return number, 'max_iters'


# -----------------------------------------------------------------------------
# 3. memory

# The size of a micro-batch on a CPU. Malloc does not keep the activations of a large one: in every
# step the kernel hands out and clears their pages again. A small one makes narrow matrix products,
# and passes over all gradients for few tokens. The bounds do not depend on the caches of the
# machine, because how rows are split decides the last bits of a gradient.
ACTIVATION_BYTES = 2**26  # at most, in float32, as activations() counts them
MICRO_BATCH_TOKENS = 1024  # at least, even if their activations take more


def weights(config: GPTConfig) -> int:
    """Numbers in the weight matrices of a model. Gains and biases are negligible and left out."""
    attention = 2 * (config.n_head + config.n_kv_head) * config.head_dim  # q, k, v and c_proj
    mlp = (3 if config.mlp == 'swiglu' else 2) * config.n_hidden
    if config.n_expert:  # and the router
        mlp = mlp * (config.n_expert + config.n_expert_shared) + config.n_expert
    tables = (1 if config.tied_head else 2) * config.vocab_size
    tables += config.block_size if config.positions == 'learned' else 0
    values = len(config.value_layers) * config.vocab_size * config.n_kv_head * config.head_dim
    return config.n_embd * (config.n_layer * (attention + mlp) + tables) + values


def activations(config: GPTConfig, tokens: int) -> int:
    """Numbers that a forward pass over `tokens` keeps for backward, at least: the results of matrix
    products and of attention. A compiler may compute the rest again (norms, RoPE, relu2's square);
    eager code keeps it too, which makes it about twice as much.
    """
    attention = 2 * (config.n_head + config.n_kv_head) * config.head_dim  # q, k, v and the result
    mlp = (2 if config.mlp == 'swiglu' else 1) * config.n_hidden
    if config.n_expert:
        mlp *= config.n_expert_active + config.n_expert_shared
    values = len(config.value_layers) * config.n_kv_head * config.head_dim  # rows of their tables
    logits = min(tokens * config.vocab_size, LOGITS_BYTES // 4)
    return tokens * (config.n_layer * (2 * config.n_embd + attention + mlp) + values) + logits


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


def step_memory(
    config: GPTConfig, settings: dict, device: str, dtype: str, world_size: int
) -> list[tuple[int, tuple]]:
    """
    [(bytes, the settings they follow from)]: what is in memory at one moment of a step.

    A lower bound on what the run needs: temporaries and torch itself, among others, are left out.
    """
    size = 8 if dtype == 'float64' else 4  # bytes of a parameter
    training = not settings.get('eval_only')

    # 1) Rows of a step on one rank, rows of a micro-batch, tokens of a row: at least these
    step_rows = settings['gradient_accumulation_steps'] * settings['batch_size'] // world_size
    micro_batches = -(-step_rows // micro_batch_rows(config, settings, device))
    rows = step_rows // micro_batches if training and step_rows else 1
    tokens = config.block_size
    if settings.get('stage') in ('dpo', 'rl'):
        tokens = min(tokens, 64)  # rows are as long as the longest text, rounded up to 64

    # 2) Parameters, moments, gradients. A gradient is in its parameter and in a bucket of the
    # optimizer at once, but only after the activations of the last micro-batch were freed: the
    # larger of the two counts
    parameters = size * weights(config)
    moments = gradients = kept = ids = 0
    if training:
        moments = (2 if settings['optimizer'] == 'adamw' else 1) * parameters // world_size
        gradients = parameters + parameters // world_size
        activation_size = 2 if dtype in ('bfloat16', 'float16') else size
        kept = activation_size * activations(config, rows * tokens)
        kept = int(kept * settings.get('activation_memory_budget', 1.0))
        ids = 8 * step_rows * tokens  # all micro-batches of a step are prepared at once

    # 3) Tables of RoPE and masks of attention
    table = size * config.block_size * config.head_dim if config.positions == 'rope' else 0
    masks = rows * tokens**2 if config.bos >= 0 else 0

    model = ('n_layer', 'n_embd', 'n_hidden', 'n_head', 'head_dim', 'vocab_size')
    model += ('n_expert',) if config.n_expert else ()
    batch = ('batch_size', 'block_size', *(('isolate',) if masks > kept else model))
    return [
        (parameters + moments + gradients, model),
        (table, ('block_size', 'head_dim')),
        (ids, ('gradient_accumulation_steps', 'batch_size', 'block_size')),
        (max(0, kept + masks - gradients), batch),
    ]


class TooLarge(SystemExit):
    """A run that does not fit into the memory of its device."""


def check_memory(
    config: GPTConfig, settings: dict, device: str, dtype: str, ranks: runtime.Ranks
) -> None:
    """TooLarge if the run certainly does not fit into the memory of the device. A run that passes
    may still run out of memory. settings are train.py's."""
    has = runtime.memory(device)
    if has is None:
        return
    if device == 'cpu':
        has //= ranks.local_world_size
    parts = step_memory(config, settings, device, dtype, ranks.world_size)
    needs = sum(part for part, _ in parts)
    if needs > has:
        values = {**settings, **vars(config)}
        largest = ', '.join(f'{name} = {values[name]}' for name in max(parts)[1])
        raise TooLarge(
            f'this takes at least {needs / 2**30:,.1f} GiB and {device} has {has / 2**30:,.1f} GiB '
            f'of memory; most of it follows from {largest}: lower one of them'
        )
