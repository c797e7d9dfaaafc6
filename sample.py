"""
Complete a prompt with a trained model.

    $ python sample.py                                             # the newest checkpoint under out/ or out-*/
    $ python sample.py --out_dir=out-shakespeare-char --start="To be" --num_samples=5
    $ python sample.py --start=FILE:prompt.txt --temperature=0     # the likeliest continuation, no chance

Texts go to stdout, remarks to stderr. The samples are made in one batch; the first is shown as it comes.
"""

import codecs
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import checkpoint
import runtime
from configurator import configure
from engine import Engine, Sampling
from model import GPT, GPTConfig
from tokenizer import Tokenizer, from_dict

# What to complete, and with which model
init_from = 'resume'  # resume: a checkpoint of this project's; the only choice so far
out_dir = ''  # the folder of ckpt.pt, or of best.pt where there is one; '' is the newest under out/ and out-*/
start = '\n'  # the prompt, plain text whatever it spells; FILE:prompt.txt reads it from a file
num_samples = 3  # continuations, each from a random stream of its own
max_new_tokens = 500  # tokens of each, if the model does not end its text before; may exceed the model's context

# How a token is drawn
temperature = 0.8  # below 1 bolder, above 1 wilder, 0 always the likeliest token
top_k = 200  # only the k likeliest tokens; 0 is all
top_p = 1.0  # only the likeliest tokens that together reach this probability; 1 is all
seed = 1337  # the same seed gives the same samples

# The machine
device = 'auto'  # auto, cpu, cuda, cuda:1, mps
dtype = 'auto'  # auto, float32, bfloat16, float16, float64
compile = False  # torch.compile the model: pays for long texts on a GPU only
config = configure(globals())


def load_engine(device: str, dtype: str) -> Engine:
    """The model of a checkpoint, said by name, and its tokenizer."""
    if init_from != 'resume':
        raise SystemExit(f"init_from is '{init_from}', expected 'resume'; a trained model's folder is --out_dir=FOLDER")
    path = Path(out_dir) / 'ckpt.pt' if out_dir else checkpoint.newest()
    if path is None:
        raise SystemExit('there is no checkpoint under out/ or out-*/; one is made by: python train.py')
    best = path.with_name('best.pt')
    path = best if best.exists() else path
    state = checkpoint.load(path)
    print(f'{path}: stage {state["stage"]}, step {state["step"]}; on {device}, {dtype}', file=sys.stderr)
    model = GPT(GPTConfig(**state['model_config']))
    model.load_state_dict(state['model'])
    model.to(device, torch.float64 if dtype == 'float64' else torch.float32)
    compiled, why = runtime.choose_compile(compile, device)
    if compiled:
        model.compile(dynamic=True)  # the number of rows and the cache's width change all the time
    elif compile:
        print(f'not compiled: {why}', file=sys.stderr)
    return Engine(model, from_dict(state['tokenizer'], path))


def read_prompt(tokenizer: Tokenizer) -> list[int]:
    """The ids of `start`, which begins a document where the tokenizer has a <|bos|>."""
    text = start
    if start.startswith('FILE:'):
        try:
            text = Path(start.removeprefix('FILE:')).read_text(encoding='utf-8')
        except (OSError, ValueError) as error:
            raise SystemExit(f'--start={start}: the prompt cannot be read ({error})') from error
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise SystemExit(f'--start={start}: {error}') from error
    if tokenizer.bos is not None:
        return [tokenizer.bos, *ids]
    if not ids:
        raise SystemExit('start is empty, expected at least one character: this tokenizer has no <|bos|> to begin with')
    return ids


def complete(engine: Engine, prompt: list[int], sampling: Sampling) -> Iterator[tuple[int, str, bool]]:
    """Yield (sample, what its text grew by, whether that was all), the samples in turns.

    A text that fills the model's context goes on from the last half of it. (nanoGPT moves its window by one token each
    time; with a cache every token would then cost a whole context.)
    """
    context = engine.model.config.block_size
    half = max(1, context // 2)
    made = [[] for _ in range(num_samples)]  # new ids
    decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in made]  # a character may span two contexts
    running = {}

    def ask(sample: int, ids: list[int]):
        done = len(made[sample])
        fresh = replace(sampling, seed=(seed, done))  # else every context would draw the same numbers again
        running[engine.submit(ids, max_new_tokens - done, fresh, number=sample)] = sample

    if len(prompt) > context:
        print(f'the prompt has {len(prompt)} tokens: the model sees the last {half} of them', file=sys.stderr)
    for sample in range(num_samples):
        ask(sample, prompt if len(prompt) <= context else prompt[-half:])
    said = False
    while running:
        for event in engine.step():
            sample = running[event.request]
            made[sample] += event.ids
            if event.finish_reason:
                del running[event.request]
            if event.finish_reason == 'context':
                ask(sample, (prompt + made[sample])[-half:])
                if not said:
                    print(f'the context of {context} tokens is full: going on from the last {half}', file=sys.stderr)
                said = True
            ended = event.finish_reason in ('stop', 'length')
            yield sample, decoders[sample].decode(engine.tokenizer.decode_bytes(event.ids), final=ended), ended


def show(beginning: str, pieces: Iterator[tuple[int, str, bool]]):
    """Print the samples one after the other, the first that is not complete as it grows."""
    unshown = [beginning] * num_samples
    over = [False] * num_samples
    current = 0
    for sample, text, ended in pieces:
        unshown[sample] += text
        over[sample] = ended
        while current < num_samples:
            print(unshown[current], end='', flush=True)
            unshown[current] = ''
            if not over[current]:
                break
            print('\n---------------')
            current += 1


def main():
    sys.stdout.reconfigure(errors='replace')  # a terminal that lacks a character shows '?' in its place
    if num_samples < 1 or max_new_tokens < 1:
        raise SystemExit(f'num_samples is {num_samples}, max_new_tokens is {max_new_tokens}, expected at least 1 each')
    try:
        sampling = Sampling(temperature, top_k, top_p, seed)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    where = runtime.choose_device(device)
    number_type, _ = runtime.choose_dtype(dtype, where)
    runtime.set_up(where, runtime.Ranks(), deterministic=False)
    engine = load_engine(where, number_type)
    prompt = read_prompt(engine.tokenizer)
    with runtime.autocast(number_type, where):
        show(engine.tokenizer.decode(prompt), complete(engine, prompt, sampling))


if __name__ == '__main__':
    main()
