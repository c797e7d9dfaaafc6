"""
Train a language model: one loop for every stage.

$ python train.py                                            # pretraining on tinyworld
$ python train.py config/tinyworld_sft.py --seed=1           # a config file, and one more setting
$ torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py    # on eight GPUs
$ python train.py --init_from=resume --out_dir=out/pretrain  # continue where it stopped

On two nodes, N is 0 on the first, whose address is A, and 1 on the other:
$ torchrun --nnodes=2 --node_rank=N --master_addr=A --nproc_per_node=8 train.py config/train_gpt2.py

Read settings, losses, stages, set-up and loop; bookkeeping follows.
"""

import dataclasses
import functools
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import batches
import checkpoint
import console
import costs
import exam
import moe
import plan as planner
import rewards
import runlog
import runtime
import shards
import tasks
import tokenizer as tokenizers
import validation
from configurator import Settings, check_ranges, configure
from conversation import Chat
from core import BUNDLE, Core, core_numbers, load_bundle
from engine import Engine, Sampling
from model import GPT, GPTConfig
from optim import Optimizer
from tools import calculate
from utf8 import valid_text

# -----------------------------------------------------------------------------
# settings, named as in nanoGPT where it has them; configure() overrides these globals

# what to run, and on what
stage = 'pretrain'  # pretrain | mid | sft | dpo | rl
init_from = 'scratch'  # scratch | resume | a .pt, an earlier out_dir | gpt2 … gpt2-xl | hf:FOLDER
init_optimizer = False  # also the optimizer's moments
auto_resume = False  # resume if out_dir has this stage's checkpoint
out_dir = 'out/pretrain'  # for ckpt.pt and log.jsonl
dataset = 'tinyworld/pretrain'  # a folder in data/, a path, or a mixture: 'smoltalk,mmlu:3'
eval_only = False  # measure once and exit
plan = False  # print what a run takes on plan_gpus; exit
plan_gpus = '8xH100'  # number x card
plan_mfu = 0.48  # of their peak
seed = 1337  # of weights, data order and dropout
device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'  # auto | float32 | bfloat16 | float16 (scales the loss) | float64 (tests)
compile = None  # torch.compile; None: on CUDA only
activation_memory_budget = 1.0  # compiled: below 1 less memory, more time (docs/gpu.md)
deterministic = False  # same bits on CUDA too; slower
backend = 'auto'  # auto | nccl | gloo, for gradients; auto: nccl on CUDA
# the model
preset = 'plus'  # plus | nano | gpt2 | llama | qwen3: sets switches not given
depth = 0  # the dial: sets sizes, rates, batch and horizon; 0: off
n_layer = 4  # blocks
n_head = 4  # attention heads
n_kv_head = 0  # heads of keys and values (GQA); 0: n_head
n_embd = 128  # width
head_dim = 0  # 0: n_embd / n_head
n_hidden = 0  # width of an MLP; 0: 4 * n_embd (swiglu: 8/3)
n_expert = 0  # experts per layer (moe.py); 0: an MLP
n_expert_active = 2  # of them, per token
n_expert_shared = 0  # more, for all tokens
expert_balance = 0.01  # weight of balance loss
block_size = 128  # tokens per row, and the longest context
dropout = 0.0  # 0.1-0.2 for many epochs
bias = False  # in linear layers and LayerNorm (GPT-2)
norm = 'rms'  # rms | rms_gain | layer
norm_eps = 1e-6  # added to the mean square
positions = 'rope'  # rope | learned
rope_theta = 10000.0  # larger for long contexts
qk_norm = 'rms'  # none | rms | rms_gain
mlp = 'relu2'  # relu2 | gelu | swiglu
tied_head = False  # the head is the embedding table
embed_norm = True  # a norm right after the embedding
softcap = 15.0  # logits stay within (-softcap, softcap); 0: off
init_std = 0.0  # of initial weights; 0: 1 / sqrt(fan-in)
zero_init = True  # output projections and untied head start at zero
value_embeds = True  # this and the next: see extras.py
smear = True  # add the previous token
# a step
batch_size = 16  # rows of a micro-batch, at most
gradient_accumulation_steps = 1  # a step has this * batch_size rows, over all ranks
cpu_micro_batch_size = 0  # rows on a CPU, at most; 0: by size
isolate = False  # attention stays within a document; slower on CUDA
optimizer = 'muon'  # muon (layers' matrices; AdamW elsewhere) | adamw
muon_iterations = 5  # 5 | 3 (cheaper, as good in small models)
learning_rate = 4e-3  # of AdamW; Muon's updates match it
embedding_rate = 1.0  # multiple of learning_rate for embeddings
head_rate = 1.0  # likewise for the head (or tied table)
value_rate = 0.5  # multiple of embedding_rate for value_embeds
weight_decay = 0.1  # of everything two-dimensional
beta1 = 0.9  # AdamW's first moment
beta2 = 0.95  # its second; 0.99 where a step has few tokens
adam_eps = 1e-8  # added to its denominator
grad_clip = 1.0  # largest norm of the gradient; 0: off
dpo_beta = 0.1  # dpo: weight of log-probability differences
rl_skills = ''  # rl: skills, separated by commas; '' is all
reward = ''  # rl: FILE.py:function (rewards.py); '': graders
rl_samples = 16  # rl: answers per question
rl_tokens = 96  # rl: longest answer
rl_rows = 0  # rl: answers written at once; 0: max(rl_samples, batch_size)
max_skips = 10  # non-finite gradients in a row, at most
# length and schedule
max_iters = 1000  # steps; or one of the next two
epochs = 0.0  # passes over the data
target_param_data_ratio = 0.0  # tokens per parameter: 20 is Chinchilla's
time_limit = 0.0  # seconds, 0: off; the schedule follows the clock if ahead
schedule = 'warmdown'  # warmdown (constant, then linear to min_lr) | cosine
decay_lr = True  # False: constant after warm-up
warmup_iters = 0  # steps of linear warm-up
warmdown = 0.5  # share of linear warm-down
lr_decay_iters = 0  # steps until min_lr; 0: all
min_lr = 0.0  # where the decay ends
# evaluation and log
eval_interval = 250  # steps between evaluations, from step 0; 0: only at the end
eval_iters = -1  # on eval_iters * batch_size validation rows; -1: all
core_interval = 0  # steps between measurements of CORE, also at the end; 0: off
core_limit = 500  # examples per task; 0: all
log_interval = 10  # steps between lines
save_interval = 0  # steps between checkpoints; 0: eval_interval
always_save_checkpoint = True  # False: also keep the best validation loss as best.pt
eval_problems = 50  # held-out problems per skill of a chat; 0: off
max_new_tokens = 160  # longest answer or sample
allow_unsafe_code = False  # run answers that sandbox.py cannot confine
sample_prompts = 'Who are you?|What is 12 + 7?|Tell me a story about Mia.'  # '' is off; \| is a |
wandb_log = False  # log to Weights & Biases
wandb_project = 'flatgpt'  # its project
wandb_run_name = ''  # '': out_dir

# On resume every setting comes from the checkpoint. Only these may change
MAY_CHANGE = {
    'max_iters', 'epochs', 'target_param_data_ratio', 'time_limit', 'lr_decay_iters',
    'eval_interval', 'eval_iters', 'core_interval', 'core_limit', 'log_interval', 'save_interval',
    'always_save_checkpoint', 'eval_problems', 'max_new_tokens', 'sample_prompts', 'max_skips',
    'wandb_log', 'wandb_project', 'wandb_run_name', 'device', 'dtype', 'compile', 'backend',
    'deterministic', 'batch_size', 'gradient_accumulation_steps', 'cpu_micro_batch_size',
    'activation_memory_budget', 'allow_unsafe_code', 'plan', 'plan_gpus', 'plan_mfu',
}  # fmt: skip
# A later stage takes these from the one before, unless given
RECIPE = {
    'isolate', 'optimizer', 'muon_iterations', 'learning_rate', 'embedding_rate', 'value_rate',
    'head_rate', 'weight_decay', 'beta1', 'beta2', 'adam_eps', 'grad_clip', 'expert_balance',
}  # fmt: skip

# -----------------------------------------------------------------------------
# losses: (model, batch) -> (its share of the step's loss, {name: share} to log)
# model(inputs, targets) returns the negative log-likelihood of every target, (B, T), in nats


def weighted_nll(model, batch):
    """For all stages but dpo. A target's weight is its share of the step: equal in pretraining, 0
    where the user speaks in sft, times the advantage in rl (REINFORCE)."""
    return (batch.weights * model(batch.inputs, batch.targets)).sum(), batch.metrics


def preference_loss(model, batch):
    """DPO (Rafailov et al., 2023). Rows alternate chosen, rejected. It starts at ln 2 = 0.6931:
    the model equals its reference."""
    logp = -(batch.weights * model(batch.inputs, batch.targets)).sum(dim=1)  # (B,) of whole answers
    chosen, rejected = (dpo_beta * (logp - batch.reference)).view(-1, 2).unbind(dim=1)
    share = batch.share[::2]  # (B / 2,) of each pair
    logp_chosen, logp_rejected = (batch.share * logp.detach()).view(-1, 2).sum(dim=0)
    return (share * -F.logsigmoid(chosen - rejected)).sum(), dict(
        accuracy=(share * (chosen > rejected)).sum(),
        margin=(share * (chosen - rejected)).sum().detach(),
        logp_chosen=logp_chosen,
        logp_rejected=logp_rejected,
    )


# -----------------------------------------------------------------------------
# stages. Each returns (steps, loss, measure); the loop never asks which
#   steps    steps[i] yields the micro-batches of step i, for any i; len(steps) is one epoch
#   loss     one of the losses above
#   measure  () -> {name: number}, the evaluation; 'val' is the validation loss


@dataclass
class Run:
    """Built by main(). Stages set engine, chat and writer."""

    config: Settings
    ranks: runtime.Ranks
    machine: runtime.Machine
    data: shards.Data
    raw_model: GPT
    model: Callable  # (inputs, targets) -> (B, T) nats; compiled, in mixed precision
    shape: batches.Shape  # of a step
    engine: Engine  # writes samples and answers
    about: dict  # for the chat: what the model knows
    parent: dict | None = None  # where the weights came from
    chat: Chat | None = None
    writer: Engine | None = None  # for rl
    reward: Callable | None = None
    # the stage
    steps: Sequence | None = None
    loss: Callable | None = None
    measure: Callable | None = None
    core: Core | None = None
    kept: dict = field(default_factory=dict)  # across a resume
    notes: list[dict] = field(default_factory=list)  # texts for the log
    # training
    optimizer: Optimizer | None = None
    first_step: int = 0
    num_steps: int = 0
    why_num_steps: str = ''
    decay_iters: int = 0  # steps until min_lr
    best: float = math.inf  # lowest validation loss
    # the log
    log: runlog.RunLog | None = None
    clock: runlog.Clock | None = None
    prompts: dict[str, list[int]] = field(default_factory=dict)  # to sample from
    signals: list[int] = field(default_factory=list)  # caught

    @property
    def master(self) -> bool:
        """Whether this rank prints and writes files."""
        return self.ranks.rank == 0

    @property
    def tokens_per_step(self) -> int:
        return self.shape.rows_per_step * self.shape.block_size

    def validation(self, reader, *arguments):
        """The held-out rows, at most eval_iters * batch_size, in one step."""
        shape = self.shape._replace(rows_per_step=0)
        limit = max(0, eval_iters * batch_size)
        return reader(self.data.split('val'), *arguments, shape, shuffle=False, limit=limit)

    def ahead(self, reader):
        """The reader's steps on the device, prepared ahead by a thread."""
        return batches.Ahead(reader, self.machine.device)

    def autocast(self):
        return runtime.autocast(self.machine.dtype, self.machine.device)


def pretrain(run):
    """Text: every token counts."""
    steps = batches.Stream(run.data.split('train'), run.shape, bos=run.data.tokenizer.bos)
    val = run.validation(batches.Stream)
    measure = validation.Text(run.model, weighted_nll, val, run.data, run.machine.device)
    return run.ahead(steps), weighted_nll, measure


def mid(run):
    """The conversation format, tools, multiple choice: as sft, other data."""
    return sft(run)


def sft(run):
    """Conversations: only what the assistant says counts."""
    skills = converse(run)
    steps = batches.Packed(run.data.split('train'), run.chat, run.shape)
    text = assistant_text(run)
    return run.ahead(steps), weighted_nll, lambda: {**text(), **skills()}


def dpo(run):
    """Pairs of answers, the first is better. The reference is the starting model; only its
    log-probability of each answer is kept."""
    skills = converse(run)
    steps = batches.Pairs(run.data.split('train'), run.chat, run.shape)
    val_shape = run.shape._replace(rows_per_step=0)
    all_val = batches.Pairs(run.data.split('val'), run.chat, val_shape, shuffle=False)
    run.raw_model.eval()  # without dropout
    for name, reader in dict(train=steps, val=all_val).items():
        if name not in run.kept:
            logps = validation.log_probabilities(run.model, reader, run.machine.device)
            run.kept[name] = torch.tensor(logps, dtype=torch.float64)
        reader.reference = run.kept[name].numpy()
    run.raw_model.train()
    val = run.validation(batches.Pairs, run.chat)
    val.reference = all_val.reference[: val.num_rows]  # a resume may evaluate more
    measure = validation.Total(run.model, preference_loss, val, run.machine.device)
    return run.ahead(steps), preference_loss, lambda: {**measure(), **skills()}


def rl(run):
    """Ask each question several times, do more of what beats the mean."""
    skills = converse(run)
    names = [name for name in rl_skills.split(',') if name]
    problems = read_problems(run, 'train', names)

    def generate(prompts, numbers, n, seed):  # see Rollouts
        with run.autocast():
            return run.writer.generate(prompts, rl_tokens, Sampling(seed=seed), n, numbers)

    # short answers: batch_size rows on a CPU too
    shape = run.shape._replace(batch_size=batch_size)
    steps = batches.Rollouts(
        generate, run.reward or tasks.grader(problems, allow_unsafe_code), problems, run.chat,
        shape, rl_samples, rl_tokens, runtime.add_up, run.notes.append, run.machine.device,
    )  # fmt: skip
    # one shape of all passes: same answers, bit for bit
    run.writer = Engine(
        run.raw_model, run.data.tokenizer, run.chat, calculate,
        rows=rl_rows or max(batch_size, rl_samples), slots=steps.shape.block_size,
    )  # fmt: skip
    text = assistant_text(run)
    return steps, weighted_nll, lambda: {**text(), **skills()}


def converse(run):
    """The chat format and held-out problems, for stages after pretraining."""
    run.chat = Chat(run.data.tokenizer)
    run.engine = Engine(run.raw_model, run.data.tokenizer, run.chat, calculate)
    problems = []
    if run.data.problems and eval_problems:
        problems = read_problems(run, 'val', limit=eval_problems)
    return exam.Skills(run.engine, problems, max_new_tokens, allow_unsafe_code, run.reward)


def assistant_text(run):
    """The loss of what the assistant says in held-out conversations."""
    if shards.kind_of(run.data) == 'prompts':
        return dict  # {}: there are no answers
    val = run.validation(batches.Packed, run.chat)
    return validation.Text(run.model, weighted_nll, val, run.data, run.machine.device)


STAGES = {f.__name__: f for f in (pretrain, mid, sft, dpo, rl)}  # to add a stage, add it here

# -----------------------------------------------------------------------------
# set-up: all checks come before the model


def main():
    console.set_up(must_finish=True)
    ranks = runtime.join()
    # 1) Settings and machine
    with runtime.errors_once(ranks):
        config = configure(globals(), derive=derive)
        check(config)
    if plan:
        return costs.show_plan(config, DATA, ranks)
    with runtime.errors_once(ranks):
        machine = runtime.choose_machine(device, dtype, compile, ranks)
        runtime.set_up(machine.device, ranks, deterministic, activation_memory_budget)
        if machine.device == 'cpu':
            runtime.keep_freed_memory()
        if ranks.local_rank == 0:
            prepare_embedded_data()
    # 2) Checkpoint, data, architecture, model
    table = costs.of_this_machine(config, DATA, machine, ranks)
    with runtime.errors_once(ranks):  # every rank has left the first: the data exists
        own_reward = rewards.load(reward, ranks)
        path, resume = origin(config)
        start = read_checkpoint(path) if path else {}
        with costs.shown_if_refused(table):
            data = open_data(start, path, resume, ranks)
            model_config = architecture(config, data, machine, ranks)
        if ranks.rank == 0 and not eval_only:
            runtime.undo_at_end(checkpoint.claim(out_dir).release)  # no other run may write there
    hint = 'halve --batch_size and double --gradient_accumulation_steps'
    runtime.explain_out_of_memory(hint, table)
    run = build_model(config, ranks, machine, data, model_config, start, path)
    run.reward = own_reward
    # 3) Progress of a resumed run, stage, optimizer
    if resume:
        run.first_step = start['step']
        run.kept = {name: t.clone() for name, t in start['kept'].items()}
        run.best = min(start['best'], checkpoint.best_of(out_dir))
        run.parent = start['parent']
    elif run.master:
        run.parent = checkpoint.identity(path)
    with runtime.errors_once(ranks):
        run.steps, run.loss, run.measure = STAGES[stage](run)
        set_length(run)
        if depth and not start:
            sizes = model_config, run.num_steps, run.tokens_per_step
            globals().update(planner.set_rates(config, *sizes))  # as configure() does
        run.core = open_core(run)
        run.optimizer = build_optimizer(run)
        if resume or init_optimizer and start:
            run.optimizer.load_state_dict(start['optimizer'])
            run.optimizer.forget_skips()
    seconds_before = start['seconds'] if resume else 0.0
    del start
    read_checkpoint.cache_clear()
    # 4) Train
    if begin_log(run, resume, seconds_before):
        train(run)
    runtime.leave()
    return run


def set_length(run):
    """The steps of the run, and of its falling rate."""
    run.num_steps, run.why_num_steps = planner.horizon(
        run.config, run.config.explicit, len(run.steps), run.raw_model.num_params(active=True),
        run.tokens_per_step,
    )  # fmt: skip
    run.decay_iters = lr_decay_iters or run.num_steps


def build_model(config, ranks, machine, data, model_config, start, path):
    """A Run with its model. Weights come from the checkpoint `start` at `path`, or are drawn on the
    CPU: the same for every device and rank."""
    param_dtype = torch.float64 if machine.dtype == 'float64' else torch.float32
    torch.manual_seed(seed)
    raw_model = GPT(model_config).to(param_dtype)
    if start:
        checkpoint.restore(raw_model, start, path)
    raw_model.to(machine.device)
    compiled_model = torch.compile(raw_model, dynamic=False) if machine.compile else raw_model

    def model(inputs, targets):
        with runtime.autocast(machine.dtype, machine.device):
            return compiled_model(inputs, targets)

    about = {name: x for name, x in (data.meta or {}).items() if name in ('about', 'prompts')}
    shape = batches.Shape(
        gradient_accumulation_steps * batch_size,
        planner.micro_batch_rows(model_config, config, machine.device),
        block_size, ranks.rank, ranks.world_size, seed, param_dtype,
    )  # fmt: skip
    return Run(
        config, ranks, machine, data, raw_model, model, shape,
        engine=Engine(raw_model, data.tokenizer),
        about=about or start.get('about', {}),
    )  # fmt: skip


# -----------------------------------------------------------------------------
# the loop


def train(run):
    step = run.first_step
    while True:
        stop, seconds = between_steps(run, step)  # save, evaluate, sample where due
        if stop:
            break

        # ---- one step: all the learning happens in these lines ------------------
        runtime.seed_step(seed, step, run.ranks.rank)
        lr = rate(step, progress(run, step, seconds), run.decay_iters)
        sums = {}  # loss and metrics of this rank, added up over micro-batches
        for batch in run.steps[step]:
            loss, metrics = run.loss(run.model, batch)
            (loss * run.optimizer.loss_scale).backward()
            for name, x in {'loss': loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, 0) + x
            run.clock.lap_tokens += batch.inputs.numel()
        run.optimizer.reduce()  # SUM over ranks
        norm = run.optimizer.norm()
        run.optimizer.step(lr, norm, grad_clip)  # nothing moves where norm is not finite
        # -------------------------------------------------------------------------

        if step % log_interval == 0:
            log_step(run, step, seconds, sums, norm, lr)
        step += 1
    if stop == 'asked' and run.master and not eval_only:
        again = f' --reward={reward}' if reward else ''
        print(
            f'stopped after {step:,} steps as asked; '
            f'continue with: python train.py --init_from=resume --out_dir={out_dir}{again}'
        )


def rate(step, progress, decay_iters):
    """The learning rate: linear warm-up; then a cosine, or constant until progress 1 - warmdown and
    linear from there; min_lr at progress 1."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    left = max(0.0, 1.0 - progress)
    if schedule == 'cosine':
        remaining = min(1.0, left / max(1e-9, 1.0 - warmup_iters / decay_iters))
        height = 0.5 - 0.5 * math.cos(math.pi * remaining)
    else:
        height = min(1.0, left / warmdown) if warmdown else 1.0
    return min_lr + height * (learning_rate - min_lr)


def progress(run, step, seconds):
    """The share of the schedule that is over: by steps, or by time_limit where that is more."""
    by_clock = seconds / time_limit if time_limit else 0.0
    return max(step / run.decay_iters, by_clock)


# -----------------------------------------------------------------------------
# settings: where they come from, and what they may be


def origin(settings):
    """(the checkpoint to start from or None, whether this is a resume)."""
    here = Path(settings['out_dir'], 'ckpt.pt')
    same_stage = (
        settings['auto_resume']
        and here.exists()
        and read_checkpoint(here)['stage'] == settings['stage']
    )
    if same_stage or settings['init_from'] == 'resume':
        return here, True
    if settings['init_from'] == 'scratch':
        return None, False
    earlier = settings['init_from']
    return checkpoint.named(earlier) or checkpoint.latest_of(earlier), False


# Mapped: a rank reads the weights, and of the optimizer's state its share. No tensor of it may be
# kept: on Windows, the run could not replace the file
read_checkpoint = functools.cache(functools.partial(checkpoint.load, mmap=True))


def derive(settings, explicit):
    """Settings that are not given follow from the checkpoint, or else from preset and depth."""
    path, resume = origin(settings)
    if path is None:
        return planner.derive(settings, explicit)
    rules = checkpoint.Rules(MAY_CHANGE, RECIPE)
    return checkpoint.inherit(read_checkpoint(path), path, settings, explicit, resume, rules)


def check(settings):
    """Report everything wrong with the settings at once."""
    choices = dict(
        stage=tuple(STAGES), optimizer=('muon', 'adamw'), schedule=('warmdown', 'cosine'),
        backend=('auto', 'gloo', 'nccl'),
    )  # fmt: skip
    least = dict(
        batch_size=1, gradient_accumulation_steps=1, cpu_micro_batch_size=0, eval_interval=0,
        eval_iters=-1, core_interval=0, core_limit=0, log_interval=1, save_interval=0, max_skips=1,
        seed=0, learning_rate=0, min_lr=0, embedding_rate=0, value_rate=0, head_rate=0,
        weight_decay=0, grad_clip=0, beta1=0, beta2=0, warmup_iters=0, warmdown=0, lr_decay_iters=0,
        time_limit=0, eval_problems=0, max_new_tokens=1, dpo_beta=0, rl_samples=2,
        rl_tokens=1, rl_rows=0, activation_memory_budget=0,
        adam_eps=1e-20,  # below it, the square of a gradient may be 0 where its moment is not
    )  # fmt: skip
    most = dict(warmdown=1, seed=2**63 - 1, activation_memory_budget=1)
    wrong = []
    dialled = settings['depth'] and settings['init_from'] == 'scratch'  # its rate follows later
    if not dialled and settings['min_lr'] > settings['learning_rate']:
        limit = f'learning_rate = {settings["learning_rate"]}'
        wrong.append(f'min_lr is {settings["min_lr"]}, expected at most {limit}')
    if settings['eval_iters'] == 0:
        wrong.append('eval_iters is 0, expected 1 or more, or -1 for all validation rows')
    later_stage = settings['stage'] in STAGES and settings['stage'] != 'pretrain'
    if later_stage and settings['init_from'] == 'scratch' and not settings['eval_only']:
        hint = 'give its out_dir as --init_from'
        wrong.append(f'stage {settings["stage"]} starts from an earlier stage; {hint}')
    if settings['reward'] and settings['stage'] != 'rl':
        wrong.append(f'reward is {settings["reward"]!r} and stage is not rl; leave it out')
    if settings['wandb_log'] and not importlib.util.find_spec('wandb'):
        wrong.append('wandb_log is True and wandb is not installed; run: pip install wandb')
    check_ranges(settings, choices, least, most, below=dict(beta1=1, beta2=1), wrong=wrong)


# -----------------------------------------------------------------------------
# data, architecture, optimizer

DATA = Path(__file__).resolve().parent / 'data'
EMBEDDED = {'tinyworld': 'problems.jsonl'}  # {data a program makes: file it writes last}


def prepare_embedded_data():
    """Write the data in EMBEDDED if it is missing. Data to download is never prepared unasked."""
    for name, _ in shards.mixture(dataset):
        program = DATA / name.split('/')[0] / 'prepare.py'
        last = EMBEDDED.get(program.parent.name)
        if last and not program.with_name(last).exists():
            print(f'preparing the embedded data: python {program}', flush=True)
            if subprocess.run([sys.executable, program]).returncode:
                raise SystemExit(f'{program} failed')


def open_data(start, path, resume, ranks):
    """The data set, if it fits the stage and the checkpoint `start` at `path`."""
    if start and (resume or init_optimizer) and not start.get('optimizer'):
        hint = 'leave --init_optimizer out'
        if resume:
            hint = f'start from it: --init_from={path} and another --out_dir'
        raise SystemExit(f"{path} holds no optimizer's state; {hint}")
    data = shards.open_data(DATA, dataset)
    if start:
        shards.check_tokenizer(data, tokenizers.from_dict(start['tokenizer']).hash, path)
    if resume and ranks.rank == 0:
        checkpoint.compare_data(start, path, dataset, data.hash)
    shards.check_kind(data, stage)
    if shards.kind_of(data) == 'prompts' and not always_save_checkpoint:
        raise SystemExit(
            f'{dataset} holds prompts without answers, which have no validation loss for best.pt; '
            'leave --always_save_checkpoint=False out'
        )
    if isolate:
        shards.check_isolate(data)
    for split in ('train', 'val'):
        ids = data.split(split)
        if stage == 'pretrain':
            batches.count_rows(ids, block_size)  # the other stages pad their rows
    return data


def read_problems(run, split, skills=(), limit=0):
    """The data set's problems. With a reward they need no graders."""
    if not run.data.problems:
        raise SystemExit(
            f'{dataset} and the folder above it have no problems.jsonl, questions to '
            'learn from; take a --dataset with one, such as tinyworld/sft'
        )
    return tasks.load(run.data.problems, split, skills, limit, graded=not reward)


def architecture(config, data, machine, ranks):
    """The model's config. SystemExit if training certainly exceeds the memory."""
    names = [f.name for f in dataclasses.fields(GPTConfig) if f.name in config]
    model_config = GPTConfig(
        vocab_size=data.tokenizer.vocab_size,
        bos=data.tokenizer.bos if isolate else -1,
        **{name: config[name] for name in names},
    )
    if machine.device == 'cpu' and not cpu_micro_batch_size:
        # stored in the checkpoint, so that a resume gives the same bits
        rows = planner.cpu_rows(model_config)
        config.assign('cpu_micro_batch_size', rows, 'plan.py', where='', explicit=False)
    planner.check_memory(model_config, config, machine.device, machine.dtype, ranks)
    return model_config


def open_core(run):
    """The evaluation by CORE. None if it is off."""
    if not core_interval:
        return None
    bundle = load_bundle(BUNDLE, core_limit)
    rows = run.shape.batch_size  # as many as fit into memory in training
    ranks = run.ranks
    return Core(run.raw_model, run.data.tokenizer, bundle, rows, ranks.rank, ranks.world_size)


def build_optimizer(run):
    return Optimizer(
        run.raw_model, optimizer, (beta1, beta2), weight_decay, embedding_rate, head_rate,
        muon_iterations, run.ranks.rank, run.ranks.world_size, eps=adam_eps,
        value_rate=value_rate,
        group=runtime.device_group(backend, run.machine.device, run.ranks),
        fp16=run.machine.dtype == 'float16',
        compile=run.machine.compile and run.machine.device != 'cpu',
    )  # fmt: skip


# -----------------------------------------------------------------------------
# between two steps


def between_steps(run, step):
    """Save, evaluate and sample if due. Returns ('' or why to stop: 'over', 'asked'; seconds)."""
    # 1) What all ranks must agree on: whether a signal came, and rank 0's clock
    asked, seconds = runtime.add_up([len(run.signals), run.clock.seconds() * run.master])
    out_of_time = time_limit and seconds >= time_limit
    over = eval_only or step >= run.num_steps or out_of_time
    saving_step = step % (save_interval or eval_interval or math.inf) == 0
    due = step > run.first_step and saving_step
    saves = not eval_only and (over or asked or due)
    measures_core = core_interval and not asked and (over or step and step % core_interval == 0)
    eval_due = eval_interval and step % eval_interval == 0
    evaluates = not asked and (over or eval_due or measures_core)

    # 2) Wait for the device: its last steps are not part of the pause
    if saves or evaluates:
        stop_if_stuck(run, step)

    # 3) Save first: evaluation may fail
    with run.clock.paused(evaluates):
        if saves:
            save(run, 'ckpt.pt', step, seconds, run.optimizer.state_dict())
        if evaluates:
            evaluate_model(run, step, seconds, measures_core)
        if evaluates and run.prompts:
            log_samples(run, step, seconds)
    if asked:
        return 'asked', seconds
    return 'over' if over else '', seconds


def save(run, name, step, seconds, optimizer_state=None):
    """The weights after `step` steps; with the optimizer's state, all that a resume needs."""
    with runtime.errors_once(run.ranks):
        if run.master:
            checkpoint.save(Path(out_dir, name), dict(
                model=run.raw_model.state_dict(),
                model_config=dataclasses.asdict(run.raw_model.config),
                optimizer=optimizer_state, tokenizer=run.data.tokenizer.to_dict(), stage=stage,
                step=step, seconds=seconds, config=dict(run.config), best=run.best, kept=run.kept,
                parent=run.parent, about=run.about, data=run.data.hash,
            ))  # fmt: skip


def evaluate_model(run, step, seconds, measures_core):
    """Evaluate and log. Save best.pt if always_save_checkpoint is False and val is the lowest."""
    run.raw_model.eval()
    began = perf_counter()
    with run.autocast():
        numbers = run.measure()
        if measures_core:
            numbers |= core_numbers(run.core.run())
    spent = round(perf_counter() - began, 3)
    run.raw_model.train()
    keeps_best = not (always_save_checkpoint or eval_only)
    if keeps_best and step and numbers['val'] < run.best:
        run.best = numbers['val']
        save(run, 'best.pt', step, seconds)
    # last: a resume does not repeat an evaluation that is in the log
    if run.master:
        # run.core has printed its tasks
        shown = [f'{name} {x:.4f}' for name, x in numbers.items() if not name.startswith('core/')]
        line = f'step {step:,}/{run.num_steps:,} | {" | ".join(shown)}'
        run.log.write(line, step=step, seconds=seconds, **numbers, evaluation_seconds=spent)


def log_samples(run, step, seconds):
    """What the model makes of a few fixed prompts."""
    sampling = Sampling(temperature=0.0 if run.chat else 0.8, seed=seed)
    with run.autocast():
        samples = run.engine.generate(list(run.prompts.values()), max_new_tokens, sampling)
    for prompt, answer in zip(run.prompts, samples):
        text = run.chat.transcript(answer.ids) if run.chat else answer.text
        line = f'sample | {prompt} | {text}'
        run.log.write(line, step=step, seconds=seconds, prompt=prompt, text=text)


def log_step(run, step, seconds, sums, norm, lr):
    """One line: the step's loss over all ranks, the speed, and how long the rest will take."""
    stop_if_stuck(run, step)
    # 1) Numbers. Reading them waits for the device
    sums = {name: float(x) for name, x in sums.items()}
    norm = float(norm)
    tokens, speed = run.clock.lap(step + 1)
    with run.clock.paused(evaluating=False):
        totals = dict(zip(sums, runtime.add_up(list(sums.values()))))
        load = expert_load(run)
        skipped = int(run.optimizer.counters['skipped'])
        tokens_per_second = tokens * run.ranks.world_size * speed
        numbers = dict(
            lr=lr, norm=norm, skipped=skipped, tokens_per_second=round(tokens_per_second),
            tokens_per_step=round(tokens * run.ranks.world_size), **load,
        )  # fmt: skip

        # 2) The rest of the run, and the share of the card's peak
        left = (run.num_steps - step - 1) / speed
        left += run.clock.pause * math.ceil((run.num_steps - step) / (eval_interval or math.inf))
        left = min(left, time_limit - seconds) if time_limit else left
        peak = runtime.peak_flops(run.machine.device)
        mfu = 'n/a'
        if peak:
            flops = run.raw_model.flops_per_token() * tokens_per_second / run.ranks.world_size
            mfu = f'{flops / peak:.1%}'

        # 3) The line, and a text of the stage
        if run.master:
            shown = ' | '.join(f'{name} {x:.4f}' for name, x in totals.items())
            if load:
                every = [x for of_layer in load['load'] for x in of_layer]
                shown += f' | load {min(every):.2f} to {max(every):.2f}'
            shown += f' | {skipped} skipped' if skipped else ''
            line = (
                f'step {step:,}/{run.num_steps:,} | {shown} | norm {norm:.3f} | lr {lr:.2e} | '
                f'{tokens_per_second:,.0f} tokens/s | MFU {mfu} | {runlog.duration(left)} left'
            )
            run.log.write(line, step=step, seconds=seconds, **totals, **numbers)
            for note in run.notes[-1:]:
                line = f'sample | {note["prompt"]} | {note["text"]} | {round(note["reward"], 4)}'
                run.log.write(line, step=step, seconds=seconds, **note)
        run.notes.clear()


def expert_load(run):
    """{'load': for each layer, the tokens of each routed expert over all ranks since the last call,
    where 1 is an even share}. {} without experts, and where no token counted."""
    if not run.raw_model.config.n_expert:
        return {}
    load = moe.take_load(run.raw_model)  # (n_layer, n_expert)
    total = runtime.add_up(load.flatten().tolist())
    load = torch.tensor(total, dtype=torch.float64).view(load.shape)
    if not load.any():  # in rl, where no answer taught anything
        return {}
    return {'load': [[round(x, 4) for x in row] for row in (load / load.mean()).tolist()]}


def stop_if_stuck(run, step):
    """SystemExit after max_skips steps in a row without a finite gradient. Called before saving:
    the checkpoint on the disk is better than the weights in memory."""
    if run.optimizer.counters['most_in_a_row'] < max_skips:
        return
    hint = 'look at the data'
    saved = Path(out_dir, 'ckpt.pt')
    if saved.exists():
        hint = f'{saved} is older: use --init_from={out_dir} with another --out_dir'
    with runtime.errors_once(run.ranks):
        raise SystemExit(
            f'step {step}: the gradient was not finite {max_skips} times in a row; {hint}, or a '
            'lower --learning_rate'
        )


# -----------------------------------------------------------------------------
# the beginning of the log


def begin_log(run, resume, seconds_before):
    """Print what will run and start the log. False if a resumed run has nothing left to do."""
    run.log = runlog.RunLog(Path(out_dir, 'log.jsonl'), to_file=not eval_only)
    if run.master:
        run.prompts = usable_prompts(run)
    # 1) Finished before?
    finished = run.first_step >= run.num_steps or time_limit and seconds_before >= time_limit
    if resume and not eval_only and finished:
        measured = run.master and runlog.was_measured(
            run.log.path, run.first_step, len(run.prompts)
        )
        if runtime.add_up([measured])[0]:
            if run.master:
                where = f'step {run.first_step:,} of {run.num_steps:,}'
                print(f'{Path(out_dir, "ckpt.pt")} is at {where}: nothing is left to do')
            return False

    # 2) What will run, and the first line of the log
    parts = []
    if run.master:
        parts = run.data.shares() if isinstance(run.data, shards.Mixture) else []
        introduce(run, parts)
    if run.master and not eval_only:
        if not resume:
            runlog.set_aside(out_dir)
        facts = dict(
            config=dict(run.config), sources=run.config.sources, command=valid_text(sys.argv[1:]),
            machine=runtime.machine_facts(run.machine.device),
        )  # fmt: skip
        if parts:
            facts['mixture'] = parts
        runlog.start_log(run.log.path, facts, run.first_step if resume else None)
        if wandb_log:
            run.log.start_wandb(wandb_project, wandb_run_name or out_dir, dict(run.config))
    run.signals = runtime.catch_signals()
    run.clock = runlog.Clock(seconds_before, run.first_step)
    return True


def usable_prompts(run):
    """{prompt: ids} of sample_prompts, without those that the model cannot continue."""
    if sample_prompts and run.data.meta is None and run.ranks.world_size > 1:
        # encoding may have to download GPT-2's table, for which the other ranks would wait
        print('sample_prompts is left out: the data has no tokenizer')
        return {}
    usable = {}
    for text in re.split(r'(?<!\\)\|', sample_prompts) if sample_prompts else []:
        text = text.replace('\\|', '|')
        try:
            if run.chat:
                ids = run.chat.prompt([{'role': 'user', 'content': text}])
            else:
                bos = run.data.tokenizer.bos
                ids = ([] if bos is None else [bos]) + run.data.tokenizer.encode(text)
            if not 0 < len(ids) <= block_size:
                expected = f'1 to block_size = {block_size}'
                raise ValueError(f'it has {len(ids)} tokens, expected {expected}')
            usable[text] = ids
        except (ValueError, SystemExit) as error:  # SystemExit: GPT-2's table is missing
            print(f'sample_prompts: {text!r} is left out: {error}')
    return usable


def attention_kernel(run):
    """(name of the CUDA kernel that computes attention, why), found on a row of the run's shape."""
    c = run.raw_model.config
    fast = dict(dtype=getattr(torch, run.machine.dtype), device=run.machine.device)
    q = torch.empty(1, c.n_head, c.block_size, c.head_dim, **fast, requires_grad=True)
    k = torch.empty(1, c.n_kv_head, c.block_size, c.head_dim, **fast, requires_grad=True)
    mask = None
    if isolate:
        mask = torch.empty(1, 1, c.block_size, c.block_size, dtype=torch.bool, device=q.device)
    return runtime.attention_kernel(q, k, k, mask, c.dropout)


def introduce(run, parts):
    """What will run, on what, and why. parts: those of a mixture, with their shares."""
    # 1) Settings and machine
    machine = run.machine
    attention = "torch's attention"
    if machine.device.startswith('cuda'):
        attention = '{} ({})'.format(*attention_kernel(run))
    how = 'compiled' if machine.compile else 'eager'
    print(run.config.describe())
    print(
        f'{machine.device} x {run.ranks.world_size}, {machine.dtype} ({machine.why_dtype}), '
        f'{how} ({machine.why_compile}), {attention}, {torch.get_num_threads()} threads'
    )
    # 2) Size and data
    parameters = f'{run.raw_model.num_params():,} parameters'
    active = run.raw_model.num_params(active=True)
    if active < run.raw_model.num_params():
        parameters += f' ({active:,} active)'
    print(
        f'{parameters}, {run.num_steps:,} steps '
        f'({run.why_num_steps}) of {run.tokens_per_step:,} tokens'
    )
    for part in parts:
        print(
            f'{part["name"]} x {part["repeats"]}: {part["documents"]:.1%} of the documents, '
            f'{part["tokens"]:.1%} of the tokens'
        )
    # 3) What may surprise
    if activation_memory_budget < 1 and not machine.compile:
        print('activation_memory_budget has no effect: the model is not compiled')
    if run.data.meta is None:
        print(f"{dataset} has no meta.json: GPT-2's encoding is assumed, bits per byte are unknown")
    if time_limit:
        print('time_limit is set: the schedule may follow the clock, so runs differ in their bits')
    # 4) What the samples in the log are
    if run.prompts:
        how = 'answers' if run.chat else 'continues'
        print(f'sample | PROMPT | TEXT: how the model {how} a prompt of sample_prompts')


if __name__ == '__main__':
    run = main()
