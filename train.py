"""
Train a language model, any stage of its life, with one loop.

$ python train.py                                                              # the embedded data, on what this machine has
$ python train.py config/shakespeare_char_cpu.py --seed=1                      # a config file, and one setting more
$ torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py       # eight GPUs, the same result
$ torchrun --nnodes=2 --node_rank=0 --master_addr=10.0.0.1 --nproc_per_node=8 train.py config/train_gpt2.py   # on two nodes
$ python train.py --init_from=resume --out_dir=out/pretrain                    # go on where it stopped

Reading order: the settings, the losses, the stages, and the five lines of "one step" near the end. The rest is bookkeeping.
"""

import dataclasses
import functools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import batches
import checkpoint
import evaluate
import plan
import runtime
import tokenizer as tokenizers
from configurator import configure
from engine import Engine, Sampling
from model import GPT, GPTConfig
from optim import Optimizer

# -----------------------------------------------------------------------------
# settings: config files and --name=value arguments override them. Where nanoGPT has one, it has nanoGPT's name
# what to run, and on what
stage = 'pretrain'  # one of the functions under "stages" below
init_from = 'scratch'  # scratch | resume (from out_dir) | the out_dir of an earlier run, for its weights and tokenizer
auto_resume = False  # go on if out_dir holds a checkpoint of this stage, else do as init_from says
out_dir = 'out/pretrain'  # where ckpt.pt and log.jsonl go
dataset = 'source'  # a folder under data/ (or any path), as its prepare.py left it
eval_only = False  # measure once and leave
seed = 1337  # of the weights, the order of the data and dropout
device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'  # auto | float32 | bfloat16 | float16 (scales the loss) | float64 (tests)
compile = None  # torch.compile: None is yes on CUDA and no elsewhere, where it takes longer than short runs win back
deterministic = False  # same bits each time on CUDA too, slower (a CPU always is)
backend = 'auto'  # of gradients among ranks: auto is nccl on CUDA, gloo elsewhere
# the model
preset = 'nano'  # nano | gpt2 | llama | qwen3: sets the switches below that are not given, see PRESETS in model.py
depth = 0  # the dial: layers, and by them width, heads, rates, batch and horizon, see plan.py; 0 is off
n_layer = 4  # blocks
n_head = 4  # attention heads
n_kv_head = 0  # heads of keys and values; 0 is n_head, fewer make the cache smaller (GQA)
n_embd = 128  # width
head_dim = 0  # 0 is n_embd / n_head
n_hidden = 0  # width of the MLP; 0 is 4 * n_embd, 8/3 * n_embd for swiglu
block_size = 128  # tokens of a row, and the longest context
dropout = 0.0  # for many epochs over little data: 0.1 to 0.2
bias = False  # biases in linear layers and LayerNorm, as in OpenAI's GPT-2
norm = 'rms'  # rms | rms_gain | layer
norm_eps = 1e-6  # added to the mean square
positions = 'rope'  # rope | learned
rope_theta = 10000.0  # slowest turn of RoPE; more for long contexts
qk_norm = 'rms'  # none | rms | rms_gain: of queries and keys
mlp = 'relu2'  # relu2 | gelu | swiglu
tied_head = False  # the head is the embedding table
embed_norm = True  # a norm right after the embedding
softcap = 15.0  # logits stay within (-softcap, softcap); 0 is off
init_std = 0.0  # of the first weights; 0 is 1 / sqrt(fan-in)
zero_init = True  # output projections and an untied head start at zero
# a step, and what it changes
batch_size = 16  # rows of a micro-batch, at most: lower it when memory runs out
gradient_accumulation_steps = 1  # a step is gradient_accumulation_steps * batch_size rows, over all ranks
optimizer = 'muon'  # muon (for the matrices inside the layers, AdamW for the rest) | adamw
learning_rate = 2e-3  # AdamW's, and Muon's update is scaled to match it
embedding_rate = 1.0  # the embeddings' rate, in learning rates
head_rate = 1.0  # the head's rate (a tied table's too), in learning rates
weight_decay = 0.1  # of everything two-dimensional
beta1 = 0.9  # AdamW's memory of the gradient
beta2 = 0.95  # AdamW's memory of its square; 0.99 where a step has few tokens
grad_clip = 1.0  # longest gradient, the rest is cut off; 0 is off
max_skips = 10  # a step whose gradient is not finite is skipped; so many in a row end the run
# how long, and how fast when
max_iters = 1000  # steps; or give one of the next two
epochs = 0.0  # passes over the data
target_param_data_ratio = 0.0  # tokens per parameter: 20 is Chinchilla's
time_limit = 0.0  # seconds of training; where set, the schedule follows the clock if that is faster than the steps
schedule = 'warmdown'  # warmdown (constant, then linear to min_lr) | cosine
decay_lr = True  # False: constant after warm-up
warmup_iters = 0  # steps of linear warm-up
warmdown = 0.5  # share of the run that the linear warm-down takes
lr_decay_iters = 0  # steps until min_lr is reached; 0 is the end of the run
min_lr = 0.0  # where the decay ends
# what to see of it
eval_interval = 250  # steps between evaluations; there is one before the first step and one after the last
eval_iters = -1  # evaluate on the first eval_iters * batch_size rows of the validation data; -1 is all of it
log_interval = 10  # steps between lines
save_interval = 0  # steps between checkpoints; 0 is eval_interval
always_save_checkpoint = True  # False: keep the best validation loss as best.pt too
sample_interval = 0  # steps between samples in the log; 0 is off
sample_prompts = 'The |I '  # what they continue, separated by |
wandb_log = False  # log to Weights & Biases too
wandb_project = 'flatgpt'  # its project
wandb_run_name = ''  # its name there; '' is out_dir

# -----------------------------------------------------------------------------
# losses: (model, batch) -> this micro-batch's share of the step's loss, {name: share of a number for the log}
# model(inputs, targets) is the negative log-likelihood of every target, (B, T)


def weighted_nll(model, batch):
    """All stages that learn from tokens: the batch says how much each counts, and the weights of a step's targets are their shares of it."""
    return (batch.weights * model(batch.inputs, batch.targets)).sum(), batch.metrics


# -----------------------------------------------------------------------------
# stages. Each takes what the run has built and returns (steps, loss, measure); the loop below never asks which one it is running:
#   steps    a sequence: steps[i] yields the micro-batches of step i
#   loss     one of the losses above
#   measure  () -> {name: number}, the evaluation; 'val' is the number to keep small


def pretrain(run):
    """Text, every token of it."""
    steps = batches.Stream(run.data.split('train'), run.shape, bos=run.data.tokenizer.bos)
    val = batches.Stream(run.data.split('val'), run.shape._replace(rows_per_step=0), shuffle=False, limit=run.val_rows)
    bytes_per_token = evaluate.bytes_per_target(val, run.data.tokenizer.bytes_per_id) if run.data.meta else None

    def measure():
        nats = evaluate.total(run.model, weighted_nll, val, run.device)['loss']
        return {'val': nats} | ({'bits_per_byte': evaluate.bits_per_byte(nats, bytes_per_token)} if bytes_per_token else {})

    return steps, weighted_nll, measure


STAGES = {f.__name__: f for f in (pretrain,)}  # a new stage is one more function, and its name here

# -----------------------------------------------------------------------------
# settings that nobody gave come from the checkpoint the run starts from, else from the preset and the depth
read_checkpoint = functools.cache(checkpoint.load)


def origin(settings):
    """(path of the checkpoint to start from or None, whether this is a resume)."""
    here = Path(settings['out_dir'], 'ckpt.pt')
    found = settings['auto_resume'] and here.exists() and read_checkpoint(here)['stage'] == settings['stage']
    if found or settings['init_from'] == 'resume':
        return here, True
    return (None if settings['init_from'] == 'scratch' else Path(settings['init_from'], 'ckpt.pt')), False


def derive(settings, explicit):
    path, resume = origin(settings)
    if path is None:
        return plan.derive(settings, explicit)
    return checkpoint.inherit(read_checkpoint(path), path, settings, explicit, resume)


def check(config):
    """Everything that can be known to be wrong from the settings alone, said at once."""
    one_of = {'stage': tuple(STAGES), 'schedule': ('warmdown', 'cosine'), 'optimizer': ('muon', 'adamw'), 'backend': ('auto', 'gloo', 'nccl')}
    least = dict(batch_size=1, gradient_accumulation_steps=1, eval_interval=1, log_interval=1, max_skips=1, warmdown=0, warmup_iters=0)
    wrong = [f"{n} is '{config[n]}', expected one of {', '.join(ok)}" for n, ok in one_of.items() if config[n] not in ok]
    wrong += [f'{n} is {config[n]}, expected at least {low}' for n, low in least.items() if config[n] < low]
    if config['eval_iters'] == 0 or config['eval_iters'] < -1:
        wrong += [f'eval_iters is {config["eval_iters"]}, expected 1 or more, or -1 for all validation rows']
    if wrong:
        raise SystemExit('; '.join(wrong))


# -----------------------------------------------------------------------------
# the machine and the data; what can go wrong goes wrong here, before the model is built
EMBEDDED = ('source',)  # data made from what the repository holds: prepared without asking
ranks = runtime.join()
with runtime.one_voice(ranks):
    config = configure(globals(), derive=derive)
    check(config)
    device = runtime.choose_device(device, ranks)
    dtype, why_dtype = runtime.choose_dtype(dtype, device)
    compile, why_compile = runtime.choose_compile(compile, device)
    runtime.set_up(device, ranks, deterministic)
    folder = Path(__file__).parent / 'data' / dataset
    if dataset in EMBEDDED and ranks.local_rank == 0 and not (folder / 'meta.json').exists():
        print(f'preparing the embedded data with {folder / "prepare.py"}', flush=True)
        if subprocess.run([sys.executable, folder / 'prepare.py']).returncode:
            raise SystemExit(f'{folder / "prepare.py"} failed')
with runtime.one_voice(ranks):
    path, resume = origin(config)
    start = read_checkpoint(path) if path else {}
    data = batches.Data(folder)
    if start and tokenizers.from_dict(start['tokenizer']).hash != data.tokenizer.hash:
        raise SystemExit(f'{folder} was made with another tokenizer than {path}: use the data it was trained on')
    fields = {field.name: config[field.name] for field in dataclasses.fields(GPTConfig) if field.name in config}
    model_config = GPTConfig(vocab_size=data.tokenizer.vocab_size, **fields)
    number = torch.float64 if dtype == 'float64' else torch.float32
    rows_per_step = gradient_accumulation_steps * batch_size
    run = SimpleNamespace(
        data=data, device=device, kept=start['kept'] if resume else {}, val_rows=max(0, eval_iters * batch_size),
        shape=batches.Shape(rows_per_step, batch_size, block_size, ranks.rank, ranks.world_size, seed, number),
    )  # fmt: skip
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f'out_dir {out_dir} cannot be made ({error.strerror}); take another --out_dir') from None
master = ranks.rank == 0  # prints, and writes files

# -----------------------------------------------------------------------------
# model, optimizer, stage
torch.manual_seed(seed)
raw_model = GPT(model_config)  # made on the CPU, so that every device and rank starts from the same weights
if start:
    raw_model.load_state_dict(start['model'])
raw_model.to(device, number)
compiled_model = torch.compile(raw_model, dynamic=False) if compile else raw_model


def run_model(inputs, targets):
    with runtime.autocast(dtype, device):
        return compiled_model(inputs, targets)


run.model = run_model
with runtime.one_voice(ranks):
    steps, loss_fn, measure = STAGES[stage](run)
    tokens_per_step = rows_per_step * block_size
    num_params = raw_model.num_params()
    horizon, why_horizon = plan.horizon(config, config.explicit, len(steps), num_params, tokens_per_step)
    optimizer = Optimizer(
        raw_model, optimizer, (beta1, beta2), weight_decay, embedding_rate, head_rate, ranks.rank, ranks.world_size,
        group=runtime.device_group(backend, device, ranks), fp16=dtype == 'float16', compile=compile and device.startswith('cuda'),
    )  # fmt: skip
    if resume:
        optimizer.load_state_dict(start['optimizer'])
first_step, seconds_before, run.best = (start['step'], start['seconds'], start['best']) if resume else (0, 0.0, math.inf)
parent = start.get('parent') if resume else checkpoint.identity(path) if path else None
del start
read_checkpoint.cache_clear()  # its tensors are copied


def rate(step, progress):
    """Learning rate: linear warm-up, then a cosine, or constant and linear in the last `warmdown` of the run, down to min_lr."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    left = max(0.0, 1.0 - progress)
    if schedule == 'cosine':
        height = 0.5 - 0.5 * math.cos(math.pi * left / max(1.0 - warmup_iters / decay_steps, 1e-9))
    else:
        height = min(1.0, left / warmdown) if warmdown else 1.0
    return min_lr + height * (learning_rate - min_lr)


# -----------------------------------------------------------------------------
# log, checkpoints, evaluation, samples
log_path, checkpoint_path = Path(out_dir, 'log.jsonl'), Path(out_dir, 'ckpt.pt')
prompts = {text: data.tokenizer.encode(text) for text in sample_prompts.split('|')} if sample_interval and master else {}
wandb_run = runtime.start_wandb(wandb_project, wandb_run_name or out_dir, dict(config)) if wandb_log and master else None


def log(line, /, **row):
    """One line for the reader, one for log.jsonl, one point for wandb."""
    print(line, flush=True)
    with open(log_path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
    if wandb_run:
        wandb_run.log(row, step=row['step'])


def save(path, step, seconds, optimizer_state):
    """The state after `step` steps."""
    state = dict(
        model=raw_model.state_dict(), model_config=dataclasses.asdict(model_config), tokenizer=data.tokenizer.to_dict(),
        optimizer=optimizer_state, stage=stage, step=step, seconds=seconds, best=run.best, config=dict(config), parent=parent, kept=run.kept,
    )  # fmt: skip
    with runtime.one_voice(ranks):
        if master:
            checkpoint.save(path, state)


def evaluate_model(step, seconds):
    """Measure and log; keep the weights as best.pt if that is asked for and they are the best so far."""
    raw_model.eval()
    numbers = measure()
    raw_model.train()
    if master:
        log(f'step {step:,} | ' + ' | '.join(f'{k} {x:.4f}' for k, x in numbers.items()), step=step, seconds=seconds, **numbers)
    if not (always_save_checkpoint or eval_only) and step and numbers['val'] < run.best:
        run.best = numbers['val']
        save(Path(out_dir, 'best.pt'), step, seconds, None)


def sample(step, seconds):
    """What the model makes of a few fixed prompts."""
    engine = Engine(raw_model, data.tokenizer)
    for text, ids in prompts.items():
        ids = [data.tokenizer.bos] * (data.tokenizer.bos is not None) + ids
        answer = engine.generate([ids], min(100, block_size - len(ids)), Sampling(temperature=0.8, seed=seed))[0]
        answer = data.tokenizer.decode(answer.ids)
        log(f'sample | {text}{answer}', step=step, seconds=seconds, prompt=text, text=answer)


def report(step, seconds, sums, norm, lr, tokens_per_second):
    """One line about a step: its loss over all ranks, and how long the rest will take."""
    totals = dict(zip(sums, runtime.add_up(list(sums.values()))))
    numbers = dict(**totals, lr=lr, norm=norm, skipped=int(optimizer.counters['skipped']), tokens_per_second=round(tokens_per_second))
    left = (horizon - step - 1) * tokens_per_step / tokens_per_second
    left = min(left, time_limit - seconds) if time_limit else left
    peak = runtime.peak_flops(device)
    mfu = f'{raw_model.flops_per_token() * tokens_per_second / peak / ranks.world_size:.1%}' if peak else 'n/a'
    if master:
        shown = ' | '.join(f'{name} {x:.4f}' for name, x in totals.items())
        skipped = f' | {numbers["skipped"]} skipped' if numbers['skipped'] else ''
        log(f'step {step:,}/{horizon:,} | {shown} | norm {norm:.3f} | lr {lr:.2e} | {tokens_per_second:,.0f} tokens/s '
            f'| MFU {mfu} | {runtime.clock(left)} left{skipped}', step=step, seconds=seconds, **numbers)  # fmt: skip


def give_up_if_stuck(step):
    """Where the last max_skips gradients were not finite, what is on the disk is better than what is in memory."""
    if optimizer.counters['skipped_in_a_row'] >= max_skips:
        raise SystemExit(f'step {step}: the gradient was not finite {max_skips} times in a row; {checkpoint_path} is from before; '
                         'lower --learning_rate, or look at the data')  # fmt: skip


asked_to_stop = []


def ask_to_stop(number, frame):
    """Ctrl-C or SIGTERM: the step is finished and the state saved. A second Ctrl-C ends at once."""
    if number == signal.SIGINT and number in asked_to_stop:
        raise KeyboardInterrupt
    asked_to_stop.append(number)


signal.signal(signal.SIGINT, ask_to_stop)
signal.signal(signal.SIGTERM, ask_to_stop)

# -----------------------------------------------------------------------------
# training loop
if resume and not eval_only and first_step >= horizon and checkpoint.was_measured(log_path, first_step):
    if master:
        print(f'{checkpoint_path} is at step {first_step:,} of {horizon:,}: nothing is left to do')
    runtime.leave()
    raise SystemExit(0)
if master:
    checkpoint.start_log(log_path, dict(config), first_step if resume else None)
    attention = 'Flash Attention' if device.startswith('cuda') and dtype in ('bfloat16', 'float16') else "torch's attention"
    print(config.describe())
    print(f'{device} with {torch.get_num_threads()} threads, {dtype} ({why_dtype}), {"compiled" if compile else "eager"} ({why_compile}), '
          f'{attention}')  # fmt: skip
    print(f'{num_params:,} parameters, {horizon:,} steps ({why_horizon}) of {tokens_per_step:,} tokens, {ranks.world_size} rank(s)', flush=True)
    if data.meta is None:
        print(f"{folder} has no meta.json: GPT-2's encoding is assumed, and bits per byte are not known")
    if time_limit:
        print('time_limit: the schedule follows the clock, so this run cannot be repeated to the bit')

steps = batches.Ahead(steps, device)
decay_steps = lr_decay_iters or horizon
step, started, clock, logged = first_step, time.time() - seconds_before, time.time(), first_step
while True:
    # what the ranks must agree on: whether somebody asked to stop, and rank 0's clock
    asked, seconds = runtime.add_up([len(asked_to_stop), (time.time() - started) * master])
    over = eval_only or step >= horizon or (time_limit and seconds >= time_limit)
    pause = time.time()
    if not eval_only and step > first_step and (over or asked or step % (save_interval or eval_interval) == 0):
        give_up_if_stuck(step)
        save(checkpoint_path, step, seconds, optimizer.state_dict())  # first of all: evaluation may fail
    if not asked and (over or step % eval_interval == 0):
        evaluate_model(step, seconds)
    if not asked and prompts and (over or step % sample_interval == 0):
        sample(step, seconds)
    clock += time.time() - pause
    if over or asked:
        break

    # ---- one step: all the learning happens in these lines ----------------------
    runtime.seed_step(seed, step, ranks.rank)
    lr = rate(step, max(step / decay_steps, seconds / time_limit if time_limit else 0.0))
    sums = {}
    for batch in steps[step]:
        loss, metrics = loss_fn(run.model, batch)
        (loss * optimizer.loss_scale).backward()
        for name, x in {'loss': loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0) + x
    optimizer.reduce()
    norm = optimizer.norm()
    optimizer.step(lr, norm, grad_clip)
    # -----------------------------------------------------------------------------

    if step % log_interval == 0:
        give_up_if_stuck(step)
        sums = {name: float(x) for name, x in sums.items()}  # here the host waits for the device
        report(step, seconds, sums, float(norm), lr, tokens_per_step * (step + 1 - logged) / (time.time() - clock))
        clock, logged = time.time(), step + 1
    step += 1

if master and asked:
    print(f'stopped at step {step:,} as asked; go on with: python train.py --init_from=resume --out_dir={out_dir}')
runtime.leave()
