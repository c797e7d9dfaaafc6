"""
Train a language model with one loop, whatever the stage of its life.

$ python train.py                                                           # the embedded world's first stage
$ python train.py config/tinyworld_sft.py --init_from=out/tinyworld/mid     # a later stage goes on from an earlier one
$ python train.py config/shakespeare_char_cpu.py --seed=1                   # a config file, and one setting more
$ torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py    # eight GPUs, the result of one
$ python train.py --init_from=resume --out_dir=out/pretrain                 # go on where it stopped

On two nodes, with N = 0 on the first, whose address is A, and N = 1 on the second:
$ torchrun --nnodes=2 --node_rank=N --master_addr=A --nproc_per_node=8 train.py config/train_gpt2.py

Read the settings, the losses, the stages, and the few lines of "one step" near the end. The rest is bookkeeping.
"""

import dataclasses
import functools
import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import batches
import checkpoint
import console
import evaluate
import plan
import runtime
import shards
import tasks
import tokenizer as tokenizers
from configurator import configure
from conversation import Chat
from engine import Engine, Sampling
from model import GPT, GPTConfig
from optim import Optimizer
from tools import calculate
from utf8 import valid_text

# -----------------------------------------------------------------------------
# settings: config files and --name=value arguments override them. Where nanoGPT has one, it has nanoGPT's name
# what to run, and on what
stage = 'pretrain'  # one of the functions under "stages" below
init_from = 'scratch'  # scratch | resume (from out_dir) | an earlier run's out_dir, for weights, architecture and rates
init_optimizer = False  # take the optimizer's moments from there too
auto_resume = False  # go on if out_dir holds a checkpoint of this stage, else do as init_from says
out_dir = 'out/pretrain'  # where ckpt.pt and log.jsonl go
dataset = 'tinyworld/pretrain'  # a folder under data/ (or an absolute path); a mixture: 'smoltalk,mmlu:3'
eval_only = False  # measure once and leave
seed = 1337  # of the weights, the order of the data and dropout
device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'  # auto | float32 | bfloat16 | float16 (scales the loss) | float64 (tests)
compile = None  # torch.compile; None: on CUDA only, elsewhere it costs a short run more than it saves
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
batch_size = 16  # rows of a micro-batch, at most; out of memory: lower it and raise the next as much
gradient_accumulation_steps = 1  # a step is gradient_accumulation_steps * batch_size rows, over all ranks
cpu_micro_batch_size = 0  # rows of a micro-batch on a CPU, at most; 0: by the size of the model, see plan.py
isolate = False  # the documents of a row do not see each other; on CUDA that takes a slower attention than Flash
optimizer = 'muon'  # muon (for the matrices inside the layers, AdamW for the rest) | adamw
muon_iterations = 5  # 5 | 3 products that make an update orthogonal; 3 cost less and do as well in small models
learning_rate = 4e-3  # AdamW's, and Muon's update is scaled to match it
embedding_rate = 1.0  # the embeddings' rate, in learning rates
head_rate = 1.0  # the head's rate (a tied table's too), in learning rates
weight_decay = 0.1  # of everything two-dimensional
beta1 = 0.9  # AdamW's memory of the gradient
beta2 = 0.95  # AdamW's memory of its square; 0.99 where a step has few tokens
grad_clip = 1.0  # longest gradient, the rest is cut off; 0 is off
dpo_beta = 0.1  # dpo: how strongly a difference in log-probability counts as a preference
rl_skills = ''  # rl: the skills of problems.jsonl to learn, separated by commas; '' is all it has
rl_samples = 16  # rl: answers to each question, which are compared with each other
rl_tokens = 96  # rl: longest answer
max_skips = 10  # a step whose gradient is not finite is skipped; so many in a row end the run (seen at logs and saves)
# how long, and how fast when
max_iters = 1000  # steps; or give one of the next two
epochs = 0.0  # passes over the data
target_param_data_ratio = 0.0  # tokens per parameter: 20 is Chinchilla's
time_limit = 0.0  # seconds of the run; where set, the schedule follows the clock if that is ahead of the steps
schedule = 'warmdown'  # warmdown (constant, then linear to min_lr) | cosine
decay_lr = True  # False: constant after warm-up
warmup_iters = 0  # steps of linear warm-up
warmdown = 0.5  # share of the run that the linear warm-down takes
lr_decay_iters = 0  # steps until min_lr is reached; 0 is the end of the run
min_lr = 0.0  # where the decay ends
# what to see of it
eval_interval = 250  # steps between evaluations; the first before step 0, the last at the end; 0: only the last
eval_iters = -1  # evaluate on the first eval_iters * batch_size rows of the validation data; -1 is all of it
log_interval = 10  # steps between lines
save_interval = 0  # steps between checkpoints; 0 is eval_interval
always_save_checkpoint = True  # False: keep the best validation loss as best.pt, beside ckpt.pt, the latest
eval_problems = 50  # held-out problems of each skill that are answered at each evaluation of a chat; 0 is off
max_new_tokens = 160  # longest answer to those
sample_prompts = 'Who are you?|What is 12 + 7?|Tell me a story about Mia.'  # at each evaluation; '' is off; \| is a |
wandb_log = False  # log to Weights & Biases too
wandb_project = 'flatgpt'  # its project
wandb_run_name = ''  # its name there; '' is out_dir

# -----------------------------------------------------------------------------
# losses: (model, batch) -> this micro-batch's share of the step's loss, {name: share of a number for the log}
# model(inputs, targets) is the negative log-likelihood of every target, (B, T)


def weighted_nll(model, batch):
    """For all stages that learn from tokens: a target's weight says how much of the whole step's loss it is. Equal in
    pretraining, 0 where the user speaks in sft, the answer's advantage in rl, which makes this REINFORCE."""
    return (batch.weights * model(batch.inputs, batch.targets)).sum(), batch.metrics


def preference_loss(model, batch):
    """DPO (Rafailov et al., 2023): rows alternate chosen, rejected. A model like its reference is at ln 2 = 0.6931."""
    logp = -(batch.weights * model(batch.inputs, batch.targets)).sum(dim=1)  # of the whole answer, in nats
    chosen, rejected = (dpo_beta * (logp - batch.reference)).view(-1, 2).unbind(dim=1)
    share = batch.share[::2]
    of_chosen, of_rejected = (batch.share * logp.detach()).view(-1, 2).sum(dim=0)
    return (share * -F.logsigmoid(chosen - rejected)).sum(), {
        'accuracy': (share * (chosen > rejected)).sum(), 'margin': (share * (chosen - rejected)).sum().detach(),
        'logp_chosen': of_chosen, 'logp_rejected': of_rejected,
    }  # fmt: skip


# -----------------------------------------------------------------------------
# stages. Each takes what the run has built and returns (steps, loss, measure); the loop never asks which one it runs
#   steps    steps[i] yields the micro-batches of step i, for any i; len(steps) is one epoch
#   loss     one of the losses above
#   measure  () -> {name: number}, the evaluation; 'val' is the number to keep small
# run has model (compiled, in mixed precision), raw_model, data, device, shape, val_shape and val_rows (0: all), kept, a
# dict of what the stage wants back on resume, and notes, a list of texts for the log. prompt (text -> ids), engine and
# temperature are for the samples in the log, plain text where the stage does not converse


def pretrain(run):
    """Text, every token of it."""
    bos, train, val = run.data.tokenizer.bos, run.data.split('train'), run.data.split('val')
    steps = batches.Stream(train, run.shape, bos=bos)
    val = batches.Stream(val, run.val_shape, shuffle=False, limit=run.val_rows)
    text = evaluate.Text(run.model, weighted_nll, val, run.data, run.device)
    return batches.Ahead(steps, run.device), weighted_nll, text  # a thread prepares the next step meanwhile


def mid(run):
    """The format of a conversation, the calculator, multiple choice: only the data are others than those of sft."""
    return sft(run)


def sft(run):
    """Conversations, of which only what the assistant says counts."""
    skills = converse(run)
    steps, text = batches.Packed(run.data.split('train'), run.chat, run.shape), answers(run)
    return batches.Ahead(steps, run.device), weighted_nll, lambda: {**text(), **skills()}


def dpo(run):
    """Two answers to one question, of which the first is better. The reference is the model that the run started from:
    its log-probability of each answer is all that is kept of it."""
    skills = converse(run)
    steps = batches.Pairs(run.data.split('train'), run.chat, run.shape)
    all_val = batches.Pairs(run.data.split('val'), run.chat, run.val_shape, shuffle=False)
    run.raw_model.eval()  # without dropout
    for name, reader in dict(train=steps, val=all_val).items():
        if name not in run.kept:
            logps = evaluate.log_probabilities(run.model, reader, run.device)
            run.kept[name] = torch.tensor(logps, dtype=torch.float64)
        reader.reference = run.kept[name].numpy()
    run.raw_model.train()
    val = batches.Pairs(run.data.split('val'), run.chat, run.val_shape, shuffle=False, limit=run.val_rows)
    val.reference = all_val.reference[: val.num_rows]  # of all is kept, since the limit may differ on resume
    measure = evaluate.Total(run.model, preference_loss, val, run.device)
    return batches.Ahead(steps, run.device), preference_loss, lambda: {**measure(), **skills()}


def rl(run):
    """Questions of which only the answer is known: ask several times, and do more of what did better than the mean."""
    skills = converse(run)
    if not run.data.problems:
        what = f'{dataset} has no problems.jsonl, nor has the folder above it, expected the questions to learn from'
        raise SystemExit(f'{what}; take a --dataset with one, such as tinyworld/sft')
    problems = tasks.load(run.data.problems, 'train', [name for name in rl_skills.split(',') if name])
    shape = run.shape._replace(batch_size=batch_size)  # answers are short: whole batches, on a CPU too
    steps = batches.Rollouts(
        functools.partial(generate, run), tasks.grade, problems, run.chat, shape, rl_samples, rl_tokens,
        runtime.add_up, run.notes.append, run.device,
    )  # fmt: skip
    rows, slots = max(shape.batch_size, rl_samples), steps.shape.block_size  # one shape, so the same bits always
    run.writer = Engine(run.raw_model, run.data.tokenizer, run.chat, calculate, rows=rows, slots=slots)
    text = answers(run)
    return steps, weighted_nll, lambda: {**text(), **skills()}


def converse(run):
    """What the stages after pretraining share: a chat format, and held-out problems to answer at each evaluation."""
    run.chat = Chat(run.data.tokenizer)
    run.prompt = lambda text: run.chat.prompt([{'role': 'user', 'content': text}])
    run.temperature = 0.0
    run.engine = Engine(run.raw_model, run.data.tokenizer, run.chat, calculate)
    asked = run.data.problems and eval_problems
    problems = tasks.load(run.data.problems, 'val', limit=eval_problems) if asked else []
    return evaluate.Skills(run.engine, run.chat, problems, max_new_tokens)


def answers(run):
    """The evaluation of conversations: the loss of what the assistant says in those held out."""
    val = batches.Packed(run.data.split('val'), run.chat, run.val_shape, shuffle=False, limit=run.val_rows)
    return evaluate.Text(run.model, weighted_nll, val, run.data, run.device)


def generate(run, prompts, numbers, n, seed):
    """n answers to each prompt from the model as it is now, in batches of one shape: see Rollouts."""
    with runtime.autocast(dtype, device):
        return run.writer.generate(prompts, rl_tokens, Sampling(seed=seed), n, numbers)


STAGES = {f.__name__: f for f in (pretrain, mid, sft, dpo, rl)}  # a new stage is one more function, and its name here

# -----------------------------------------------------------------------------
# settings that nobody gave come from the checkpoint the run starts from, else from the preset and the depth
read_checkpoint = functools.cache(checkpoint.load)


def origin(settings):
    """(path of the checkpoint to start from or None, whether this is a resume)."""
    here = Path(settings['out_dir'], 'ckpt.pt')
    found = settings['auto_resume'] and here.exists() and read_checkpoint(here)['stage'] == settings['stage']
    if found or settings['init_from'] == 'resume':
        return here, True
    if settings['init_from'] == 'scratch':
        return None, False
    path = Path(settings['init_from'])
    return path if path.suffix == '.pt' else path / 'ckpt.pt', False


def derive(settings, explicit):
    path, resume = origin(settings)
    if path is None:
        return plan.derive(settings, explicit)
    return checkpoint.inherit(read_checkpoint(path), path, settings, explicit, resume)


def check(config):
    """Choices and ranges that no other file owns, all that is wrong with them said at once."""
    choices = dict(
        stage=tuple(STAGES), optimizer=('muon', 'adamw'), schedule=('warmdown', 'cosine'),
        backend=('auto', 'gloo', 'nccl'),
    )  # fmt: skip
    least = dict(
        batch_size=1, gradient_accumulation_steps=1, eval_interval=0, log_interval=1, max_skips=1, eval_iters=-1,
        seed=0, learning_rate=0, min_lr=0, weight_decay=0, grad_clip=0, warmup_iters=0, warmdown=0, lr_decay_iters=0,
        time_limit=0, save_interval=0, eval_problems=0, max_new_tokens=1, dpo_beta=0, rl_samples=2, rl_tokens=1,
        embedding_rate=0, head_rate=0, beta1=0, beta2=0, cpu_micro_batch_size=0,
    )  # fmt: skip
    wrong = [
        f"{k} is '{config[k]}', expected one of {', '.join(ok)}" for k, ok in choices.items() if config[k] not in ok
    ]
    wrong += [f'{k} is {config[k]}, expected at least {low}' for k, low in least.items() if config[k] < low]
    wrong += [f'{k} is {config[k]}, expected less than 1' for k in ('beta1', 'beta2') if config[k] >= 1]
    most = dict(warmdown=1, seed=2**63 - 1)
    wrong += [f'{k} is {config[k]}, expected at most {high}' for k, high in most.items() if config[k] > high]
    if config['min_lr'] > config['learning_rate']:
        wrong.append(f'min_lr is {config["min_lr"]}, expected at most learning_rate = {config["learning_rate"]}')
    if config['eval_iters'] == 0:
        wrong.append('eval_iters is 0, expected 1 or more, or -1 for all validation rows')
    later = config['stage'] in STAGES and config['stage'] != 'pretrain'
    if later and config['init_from'] == 'scratch' and not config['eval_only']:
        wrong.append(f"stage {config['stage']} goes on from an earlier one; give that run's out_dir as --init_from")
    if config['wandb_log'] and not importlib.util.find_spec('wandb'):
        wrong.append('wandb_log is True and wandb is not installed; run: pip install wandb')
    if wrong:
        raise SystemExit('; '.join(wrong))


# -----------------------------------------------------------------------------
# the machine, the data and the checkpoint are checked before the model is built. From here on device, dtype and the
# like say what was chosen; config keeps what was asked for
EMBEDDED = {'tinyworld': 'problems.jsonl'}  # made by a program alone, so prepared without asking: its last file
console.set_up(must_finish=True)
ranks = runtime.join()
with runtime.one_voice(ranks):  # an error on any rank is said once and ends all
    config = configure(globals(), derive=derive)
    check(config)
    device = runtime.choose_device(device, ranks)
    dtype, why_dtype = runtime.choose_dtype(dtype, device)
    compile, why_compile = runtime.choose_compile(compile, device)
    runtime.set_up(device, ranks, deterministic)
    if device == 'cpu':
        runtime.keep_freed_memory()
    data_root = Path(__file__).resolve().parent / 'data'
    for name, _ in shards.mixture(dataset) if ranks.local_rank == 0 else ():
        embedded = data_root / name.split('/')[0] / 'prepare.py'
        last = EMBEDDED.get(embedded.parent.name)
        if last and not embedded.with_name(last).exists():
            print(f'preparing the embedded data: python {embedded}', flush=True)
            if subprocess.run([sys.executable, embedded]).returncode:
                raise SystemExit(f'{embedded} failed')
master = ranks.rank == 0  # prints, and writes files
with runtime.one_voice(ranks):  # a second time, for now the embedded data is there
    path, resume = origin(config)
    start = read_checkpoint(path) if path else {}
    if start and (resume or init_optimizer) and not start.get('optimizer'):
        mend = f'start from it: --init_from={path} and another --out_dir' if resume else 'leave --init_optimizer out'
        raise SystemExit(f"{path} holds no optimizer's state; {mend}")
    data = shards.open_data(data_root, dataset)
    if start and tokenizers.from_dict(start['tokenizer']).hash != data.tokenizer.hash:
        raise shards.another_tokenizer(dataset, path)
    if resume and master:
        checkpoint.compare_data(start, path, dataset, data.hash)
    kind = (data.meta or {}).get('kind')
    if kind and (kind == 'preferences') != (stage == 'dpo'):
        raise SystemExit(f'{dataset} holds {kind}; preferences are for --stage=dpo and for no other, stage is {stage}')
    fields = {field.name: config[field.name] for field in dataclasses.fields(GPTConfig) if field.name in config}
    if isolate and data.tokenizer.bos is None:
        raise SystemExit(f'{dataset} has no token that begins a document, so --isolate=True cannot tell them apart')
    fields |= dict(vocab_size=data.tokenizer.vocab_size, bos=data.tokenizer.bos if isolate else -1)
    model_config = GPTConfig(**fields)
    for split in ('train', 'val'):
        ids = data.split(split)
        if stage == 'pretrain':
            batches.count_rows(ids, block_size)  # the later stages fill rows up
    if device == 'cpu' and not cpu_micro_batch_size:  # stored, so that a run resumes with the same bits
        config.assign('cpu_micro_batch_size', plan.cpu_rows(model_config), 'plan.py', where='', explicit=False)
    plan.check_memory(model_config, config, device, dtype, ranks)
    if master and not eval_only:
        runtime.undo_at_end(checkpoint.claim(out_dir).release)  # no other run may write there meanwhile

# -----------------------------------------------------------------------------
# model, stage, optimizer
runtime.explain_out_of_memory('lower --batch_size and raise --gradient_accumulation_steps as much')
param_dtype = torch.float64 if dtype == 'float64' else torch.float32
torch.manual_seed(seed)
raw_model = GPT(model_config).to(param_dtype)  # on the CPU, so that every device and rank starts from the same weights
if start:
    checkpoint.restore(raw_model, start, path)
raw_model.to(device)
compiled_model = torch.compile(raw_model, dynamic=False) if compile else raw_model


def model(inputs, targets):
    with runtime.autocast(dtype, device):
        return compiled_model(inputs, targets)


rows_per_step = gradient_accumulation_steps * batch_size
tokens_per_step = rows_per_step * block_size
micro_batch_size = plan.micro_batch_rows(model_config, config, device)
shape = batches.Shape(rows_per_step, micro_batch_size, block_size, ranks.rank, ranks.world_size, seed, param_dtype)
run = SimpleNamespace(model=model, raw_model=raw_model, data=data, device=device, shape=shape, kept={}, notes=[])
run.val_shape, run.val_rows = shape._replace(rows_per_step=0), max(0, eval_iters * batch_size)
run.prompt = lambda text: [i for i in (data.tokenizer.bos,) if i is not None] + data.tokenizer.encode(text)
run.engine, run.temperature = Engine(raw_model, data.tokenizer), 0.8  # of the samples in the log
run.best, seconds_before, first_step = math.inf, 0.0, 0
if resume:
    run.kept, seconds_before, first_step = start['kept'], start['seconds'], start['step']
    run.best = min(start['best'], checkpoint.best_of(out_dir))
parent = start['parent'] if resume else checkpoint.identity(path)
with runtime.one_voice(ranks):
    steps, loss_fn, measure = STAGES[stage](run)
    sizes = len(steps), raw_model.num_params(), tokens_per_step
    max_iters, why_max_iters = plan.horizon(config, config.explicit, *sizes)
    group = runtime.device_group(backend, device, ranks)
    optimizer = Optimizer(
        raw_model, optimizer, (beta1, beta2), weight_decay, embedding_rate, head_rate, muon_iterations,
        ranks.rank, ranks.world_size, group, fp16=dtype == 'float16', compile=compile and device != 'cpu',
    )  # fmt: skip
    if resume or init_optimizer and start:
        optimizer.load_state_dict(start['optimizer'])
        optimizer.counters['most_in_a_row'].copy_(optimizer.counters['in_a_row'])  # earlier ones were lived through
about = {name: (data.meta or {})[name] for name in ('about', 'prompts') if name in (data.meta or {})}
about = about or start.get('about', {})  # what a chat says of the model
del start
read_checkpoint.cache_clear()  # what was in it has been copied
decay_iters = lr_decay_iters or max_iters


def rate(step, progress):
    """Linear warm-up, then a cosine, or constant and linear from progress 1 - warmdown on; at progress 1 min_lr.

    progress is the share of the run that is over, by steps or by time_limit's clock, whichever is further.
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    left = max(0.0, 1.0 - progress)
    if schedule == 'cosine':
        height = 0.5 - 0.5 * math.cos(math.pi * min(1.0, left / max(1e-9, 1.0 - warmup_iters / decay_iters)))
    else:
        height = min(1.0, left / warmdown) if warmdown else 1.0
    return min_lr + height * (learning_rate - min_lr)


# -----------------------------------------------------------------------------
# log, checkpoints, evaluation, samples
log_path, checkpoint_path = Path(out_dir, 'log.jsonl'), Path(out_dir, 'ckpt.pt')
wandb_run = None  # where it is asked for, it begins with the training loop


def usable_prompts():
    """{prompt: ids} of sample_prompts. One that cannot be continued is named now, not in the middle of the run."""
    usable = {}
    for text in re.split(r'(?<!\\)\|', sample_prompts) if sample_prompts else []:
        text = text.replace('\\|', '|')
        try:
            ids = run.prompt(text)
            if not 0 < len(ids) <= block_size:
                raise ValueError(f'it has {len(ids)} tokens, expected 1 to block_size = {block_size}')
            usable[text] = ids
        except (ValueError, SystemExit) as error:  # the latter where GPT-2's tokenizer cannot be downloaded
            print(f'sample_prompts: {text!r} is left out: {error}')
    return usable


prompts = usable_prompts() if master else {}


def log(line, /, **row):
    """One line for log.jsonl, one point for wandb, and last one line for the reader."""
    if not eval_only:  # it leaves no trace
        checkpoint.append_log(log_path, row)
    if wandb_run:
        wandb_run.log(row, step=row['step'])
    print(console.printable(line), flush=True)  # it may quote a model


def save(path, step, seconds, optimizer_state=None):
    """The weights after `step` steps, and with the optimizer's state all it takes to go on."""
    with runtime.one_voice(ranks):
        if master:
            checkpoint.save(path, dict(
                model=raw_model.state_dict(), model_config=dataclasses.asdict(model_config), optimizer=optimizer_state,
                tokenizer=data.tokenizer.to_dict(), stage=stage, step=step, seconds=seconds, config=dict(config),
                best=run.best, kept=run.kept, parent=parent, about=about, data=data.hash,
            ))  # fmt: skip


def evaluate_model(step, seconds):
    """Measure and log; where best.pt is asked for and this is the best so far, keep it."""
    raw_model.eval()
    began = perf_counter()
    with runtime.autocast(dtype, device):
        numbers = measure()
    raw_model.train()
    spent = dict(evaluation_seconds=round(perf_counter() - began, 3))
    if master:
        shown = ' | '.join(f'{name} {x:.4f}' for name, x in numbers.items())
        log(f'step {step:,}/{max_iters:,} | {shown}', step=step, seconds=seconds, **numbers, **spent)
    if not (always_save_checkpoint or eval_only) and step and numbers['val'] < run.best:
        run.best = numbers['val']
        save(Path(out_dir, 'best.pt'), step, seconds)


def sample(step, seconds):
    """What the model makes of a few fixed prompts."""
    sampling, chat = Sampling(run.temperature, seed=seed), run.engine.chat
    with runtime.autocast(dtype, device):
        samples = run.engine.generate(list(prompts.values()), max_new_tokens, sampling)
    for prompt, answer in zip(prompts, samples):
        text = chat.transcript(answer.ids) if chat else answer.text
        log(f'sample | {prompt} | {text}', step=step, seconds=seconds, prompt=prompt, text=text)


def report(step, seconds, sums, norm, lr, tokens, speed, pause):
    """One line about a step: its loss over all ranks, how fast it went, and how long the rest will take.

    tokens: of a step on this rank, the mean since the last report; speed: of those steps, in steps per second; pause:
    seconds of the last evaluation.
    """
    totals = dict(zip(sums, runtime.add_up(list(sums.values()))))
    skipped = int(optimizer.counters['skipped'])
    tokens_per_second = tokens * ranks.world_size * speed
    left = (max_iters - step - 1) / speed + pause * math.ceil((max_iters - step) / eval_every)
    left = min(left, time_limit - seconds) if time_limit else left
    peak = runtime.peak_flops(device)
    mfu = f'{raw_model.flops_per_token() * tokens_per_second / peak / ranks.world_size:.1%}' if peak else 'n/a'
    shown = ' | '.join([f'{name} {x:.4f}' for name, x in totals.items()] + [f'{skipped} skipped'] * (skipped > 0))
    shown += (
        f' | norm {norm:.3f} | lr {lr:.2e} | {tokens_per_second:,.0f} tokens/s | MFU {mfu} | {runtime.clock(left)} left'
    )
    numbers = dict(lr=lr, norm=norm, skipped=skipped, tokens_per_second=round(tokens_per_second))
    numbers['tokens_per_step'] = round(tokens * ranks.world_size)
    if master:
        log(f'step {step:,}/{max_iters:,} | {shown}', step=step, seconds=seconds, **totals, **numbers)
        for note in run.notes[-1:]:
            log('sample | ' + ' | '.join(map(str, note.values())), step=step, seconds=seconds, **note)
    run.notes.clear()


def give_up_if_stuck(step):
    """Where max_skips gradients in a row were not finite, what is on the disk is better than what is in memory."""
    if optimizer.counters['most_in_a_row'] >= max_skips:
        what, mend = f'step {step}: the gradient was not finite {max_skips} times in a row', 'look at the data'
        if checkpoint_path.exists():
            mend = f'{checkpoint_path} is from before: use --init_from={out_dir} with another --out_dir'
        with runtime.one_voice(ranks):
            raise SystemExit(f'{what}; {mend}, or a lower --learning_rate')


def introduce():
    """What will run, on what, and why."""
    fused = device.startswith('cuda') and dtype in ('bfloat16', 'float16') and not isolate
    attention = 'fused attention' if fused else "torch's attention"
    how = f'{"compiled" if compile else "eager"} ({why_compile}), {attention}, {torch.get_num_threads()} threads'
    print(config.describe())
    print(f'{device} x {ranks.world_size}, {dtype} ({why_dtype}), {how}')
    print(f'{raw_model.num_params():,} parameters, {max_iters:,} steps ({why_max_iters}) of {tokens_per_step:,} tokens')
    if data.meta is None:
        print(f"{dataset} has no meta.json: GPT-2's encoding is assumed, and bits per byte are not known")
    if time_limit:
        print('time_limit is set: the schedule may follow the clock, so this run cannot be repeated to the bit')


# -----------------------------------------------------------------------------
# training loop
finished = first_step >= max_iters or (time_limit and seconds_before >= time_limit)
if resume and not eval_only and finished and checkpoint.was_measured(log_path, first_step):
    if master:
        print(f'{checkpoint_path} is at step {first_step:,} of {max_iters:,}: nothing is left to do')
    runtime.leave()
    raise SystemExit(0)
if master:
    introduce()
    if not resume and not eval_only:
        checkpoint.set_aside(out_dir)  # an earlier run's files get another name
    if not eval_only:
        facts = dict(config=dict(config), command=valid_text(sys.argv[1:]), machine=runtime.machine(device))
        checkpoint.start_log(log_path, facts, first_step if resume else None)
if wandb_log and master and not eval_only:
    wandb_run = runtime.start_wandb(wandb_project, wandb_run_name or out_dir, dict(config))
asked_to_stop = runtime.catch_signals()
step = logged_step = first_step
tokens, pause = 0, 0.0
eval_every = eval_interval or math.inf
logged_at = perf_counter()  # later by each pause, so that the speed is that of the steps alone
started = logged_at - seconds_before  # as if the run had never stopped
while True:
    # what the ranks must agree on: whether somebody asked to stop, and rank 0's clock
    asked, seconds = runtime.add_up([len(asked_to_stop), round(perf_counter() - started, 3) * master])
    over = eval_only or step >= max_iters or (time_limit and seconds >= time_limit)
    due = step > first_step and step % (save_interval or eval_every) == 0
    to_save = not eval_only and (over or asked or due)
    to_evaluate = not asked and (over or eval_interval and step % eval_interval == 0)
    if to_save or to_evaluate:
        give_up_if_stuck(step)  # this waits for the device, so that its last steps are no part of the pause
    paused_at = perf_counter()
    if to_save:
        save(checkpoint_path, step, seconds, optimizer.state_dict())  # first of all: evaluation may fail
    if to_evaluate:
        evaluate_model(step, seconds)
        if prompts:
            sample(step, seconds)
        pause = perf_counter() - paused_at
    logged_at += perf_counter() - paused_at
    if over or asked:
        break

    # ---- one step: all the learning happens in these lines ----------------------
    runtime.seed_step(seed, step, ranks.rank)
    lr = rate(step, max(step / decay_iters, seconds / time_limit if time_limit else 0.0))
    sums = {}
    for batch in steps[step]:
        loss, metrics = loss_fn(model, batch)
        (loss * optimizer.loss_scale).backward()
        for name, x in {'loss': loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0) + x
        tokens += batch.inputs.numel()
    optimizer.reduce()  # SUM over ranks
    norm = optimizer.norm()
    optimizer.step(lr, norm, grad_clip)  # unscale, clip, move, clear; nothing moves where norm is not finite
    # -----------------------------------------------------------------------------

    if step % log_interval == 0:
        give_up_if_stuck(step)
        sums = {name: float(x) for name, x in sums.items()}  # here the host waits for the device
        steps_done, spent = step + 1 - logged_step, perf_counter() - logged_at
        report(step, seconds, sums, float(norm), lr, tokens / steps_done, steps_done / spent, pause)
        logged_at, logged_step, tokens = perf_counter(), step + 1, 0
    step += 1

if master and asked and not eval_only:
    print(f'stopped after {step:,} steps as asked; go on with: python train.py --init_from=resume --out_dir={out_dir}')
runtime.leave()
