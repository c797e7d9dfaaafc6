"""
What a model scores: the total of a loss over a reader, and how well it answers problems.

A validation reader is a reader whose one step holds all evaluation rows, so the step's loss is the validation loss:
the same number for any micro-batch size and any number of ranks. Problems are those of tasks.py: answered by the engine
and graded, or, where there are choices, the likeliest of them is graded.

$ python evaluate.py                                                   # the newest checkpoint, a line for each skill
$ python evaluate.py --out_dir=out/tinyworld/rl --skills=facts,one_step --show=3
$ python evaluate.py --num_samples=16 --temperature=1                  # pass@1, 2, 4, 8 and 16
$ python evaluate.py --data=data/tinyworld/pretrain                    # validation loss and bits per byte too
$ torchrun --standalone --nproc_per_node=8 evaluate.py                 # the same numbers from eight GPUs

Left out on purpose: problems whose answer is a program, which would have to run (see tools.py).
"""

import math
import sys
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import checkpoint
import disk
import plan
import runtime
import tasks
from batches import Reader, Shape, Stream
from engine import Engine, Sample, Sampling
from model import GPT
from shards import Data, another_tokenizer, mixture
from utf8 import valid_text

# -----------------------------------------------------------------------------
# losses


@torch.no_grad()
def total(model: Callable, loss_fn: Callable, reader: Reader, device: str) -> dict[str, float]:
    """{'loss': nats, …}: loss and metrics of the reader's first step, added up over micro-batches and ranks."""
    shares: dict[str, list] = {'loss': []}
    for batch in reader[0]:
        loss, metrics = loss_fn(model, batch.to(device))
        for name, x in {'loss': loss, **metrics}.items():
            shares.setdefault(name, []).append(torch.as_tensor(x))
    sums = [float(torch.stack(s).cpu().double().sum()) for s in shares.values()]  # the only wait for the device
    return dict(zip(shares, runtime.add_up(sums)))


def bytes_per_target(reader: Reader, bytes_per_id: np.ndarray) -> float:
    """UTF-8 bytes that a target of the reader's first step stands for, on average (special tokens stand for none)."""
    table = torch.from_numpy(bytes_per_id)
    seen = [(int((batch.weights > 0).sum()), int(table[batch.targets[batch.weights > 0]].sum())) for batch in reader[0]]
    targets, size = runtime.add_up([float(sum(column)) for column in zip(*seen)])
    return size / targets


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss that does not depend on the tokenizer: bits needed for each byte of text."""
    return nats_per_token / math.log(2) / bytes_per_token


class Text:
    """Evaluation of a reader of text, called as often as one likes: {'val': nats per token, 'perplexity': tokens among
    which the model is as unsure as among so many equally likely ones, 'bits_per_byte': …}."""

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, data: Data, device: str):
        self.arguments = model, loss_fn, reader, device
        # files of nanoGPT's come without a tokenizer, so nobody knows the bytes
        self.bytes_per_token = bytes_per_target(reader, data.tokenizer.bytes_per_id) if data.meta else None

    def __call__(self) -> dict[str, float]:
        nats = total(*self.arguments)['loss']
        more = {'bits_per_byte': bits_per_byte(nats, self.bytes_per_token)} if self.bytes_per_token else {}
        return {'val': nats, 'perplexity': math.exp(min(nats, 700)), **more}  # beyond 709 it would be no float


class Total:
    """Evaluation by a stage's own loss: {'val': its loss, and its metrics by their names}."""

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, device: str):
        self.arguments = model, loss_fn, reader, device

    def __call__(self) -> dict[str, float]:
        numbers = total(*self.arguments)
        return {'val': numbers.pop('loss'), **numbers}


@torch.no_grad()
def log_probabilities(model: Callable, reader: Reader, device: str) -> list[float]:
    """The log-probability in nats of all that the assistant says in row r of a Pairs reader, for every r in order.

    DPO's reference. Rows go through the model in the batches' own shape, so that a model like its reference gets the
    reference's numbers.
    """
    shape, B = reader.shape, reader.micro_batch_rows
    mine, logps = list(range(shape.rank, reader.num_rows, shape.world_size)), [0.0] * reader.num_rows
    for start in range(0, len(mine), B):
        rows = mine[start : start + B]
        batch = reader.batch(rows, 1).to(device)
        logp = -(batch.weights * model(batch.inputs, batch.targets)).sum(dim=1)
        for r, nats in zip(rows, logp.tolist()):
            logps[r] = nats
    return runtime.add_up(logps)


# -----------------------------------------------------------------------------
# answers


class Attempt(NamedTuple):
    """What came of a problem: the grade of each answer, and, where it was generated, whether it ended by itself."""

    problem: dict
    answers: list[str]  # as the model gave them, a call of the calculator as <<3+4=7>>
    grades: list[float]
    ended: list[bool]


def prompts(engine: Engine, chat, problems: Sequence[dict]) -> list[list[int]]:
    """Each problem's ids. One that the model cannot read as a whole is named, for its score would mean nothing."""
    made = [chat.prompt(problem['messages']) for problem in problems]
    for problem, ids in zip(problems, made):
        tokens = len(ids) + max([len(answer) - 1 for answer in answer_ids(engine, problem)], default=0)
        if tokens > engine.context:
            question = text_of(problem['messages'][-1]['content'])[:60]
            have = f'a problem of {problem["skill"]!r} takes {tokens} tokens ({question!r})'
            raise SystemExit(f"{have}, expected at most the {engine.context} of the model's context; leave it out")
    return made


def answer_ids(engine: Engine, problem: dict) -> list[list[int]]:
    """The ids of each answer that a multiple-choice problem allows; of any other problem, none."""
    try:
        return [engine.tokenizer.encode(text) for text in tasks.answers(problem)]
    except ValueError as error:
        raise SystemExit(f'a choice of {problem["skill"]!r} cannot be asked for: {error}') from None


def text_of(content: str | list[dict]) -> str:
    return content if isinstance(content, str) else ''.join(part['text'] for part in content)


def answer(
    engine: Engine, chat, problems: Sequence[dict], max_tokens: int, samples: int = 1, temperature: float = 0.0,
    seed: int = 0, numbers: Sequence[int] | None = None,
) -> list[list[Sample]]:  # fmt: skip
    """samples answers to each problem. Those to problem i are drawn by (seed, numbers[i]), or (seed, i)."""
    sampling = Sampling(temperature, seed=seed)
    made = engine.generate(prompts(engine, chat, problems), max_tokens, sampling, samples, numbers)
    return [made[i : i + samples] for i in range(0, len(made), samples)]


@torch.inference_mode()
def likelihoods(engine: Engine, chat, problems: Sequence[dict]) -> list[list[float]]:
    """The log-probability in nats of each answer that a multiple-choice problem allows, in the order of its choices.

    Many rows at once, no cache, nothing sampled. Answers that differ in their last token alone, as letters do, share a
    row; the tokens of longer ones are added up.
    """
    model, training, rows = engine.model, engine.model.training, {}
    asked = [answer_ids(engine, problem) for problem in problems]
    scores, device = [[0.0] * len(answers) for answers in asked], model.transformer.wte.weight.device
    for prompt, answers, own in zip(prompts(engine, chat, problems), asked, scores):
        for i, ids in enumerate(answers):
            rows.setdefault((*prompt, *ids[:-1]), []).append((own, i, len(prompt) - 1, ids))
    todo = list(rows.items())
    model.eval()
    try:
        for start in range(0, len(todo), engine.max_rows):
            chunk = todo[start : start + engine.max_rows]
            longest = max(len(row) for row, _ in chunk)  # padding on the right is what nothing before it looks at
            x = model.hidden(torch.tensor([row + (0,) * (longest - len(row)) for row, _ in chunk], device=device))
            for r, (_, answers) in enumerate(chunk):
                for own, i, place, ids in answers:
                    logp = model.logits(x[r, place : place + len(ids)]).float().log_softmax(-1)  # (tokens, ids)
                    own[i] = float(logp[range(len(ids)), ids].sum())
    finally:
        model.train(training)
    return scores


def attempt(
    engine: Engine, chat, problems: Sequence[dict], max_tokens: int, samples: int = 1, temperature: float = 0.0,
    seed: int = 0,
) -> list[Attempt]:  # fmt: skip
    """This rank's share of the problems, answered and graded: rank r has problems r, r + world_size, and so on.

    Problems with choices are answered by likelihood, first of all, unless a temperature or several samples are given.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = range(rank, len(problems), world_size)
    likeliest = samples == 1 and temperature == 0
    choices = [i for i in mine if likeliest and 'choices' in problems[i]]
    free = [i for i in mine if i not in set(choices)]
    by_letter, asked = [problems[i] for i in choices], [problems[i] for i in free]
    done = []
    for problem, scores in zip(by_letter, likelihoods(engine, chat, by_letter)):
        letter = tasks.LETTERS[scores.index(max(scores))]
        done.append(Attempt(problem, [letter], [tasks.grade(problem, letter)], []))
    for problem, said in zip(asked, answer(engine, chat, asked, max_tokens, samples, temperature, seed, free)):
        texts, ended = [chat.transcript(s.ids) for s in said], [s.finish_reason == 'stop' for s in said]
        done.append(Attempt(problem, texts, [tasks.grade(problem, s.text) for s in said], ended))
    return done


# -----------------------------------------------------------------------------
# scores


class Score(NamedTuple):
    problems: int
    accuracy: float  # mean grade
    error: float  # two standard errors of it
    baseline: float  # what guessing scores
    ended: float | None  # share of the answers that ended by themselves; None where none was generated
    passed: dict[int, float] = {}  # {k: share of the problems that at least one of k answers solves}


def pass_at(samples: int, right: int, k: int) -> float:
    """Chance that one of k is right, k drawn from these answers without putting back (Chen et al., 2021: no bias)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def tally(attempts: Sequence[Attempt], samples: int = 1) -> Score:
    """The score of one skill from the attempts of all ranks, the same on every rank. pass@k: for k = 1, 2, 4, … and
    the number of samples, if there are several."""
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples}) if samples > 1 else []
    grades = [sum(made.grades) / len(made.grades) for made in attempts]
    ended = [end for made in attempts for end in made.ended]
    right = [sum(grade == 1 for grade in made.grades) for made in attempts]
    passed = [sum(pass_at(samples, count, k) for count in right) for k in ks]
    baselines = [tasks.baseline(made.problem) for made in attempts]
    sums = [len(grades), sum(grades), sum(x * x for x in grades), sum(baselines), len(ended), sum(ended), *passed]
    count, total, squares, chance, answers, stopped, *passed = runtime.add_up([float(x) for x in sums])
    accuracy = total / count
    error = 2 * math.sqrt(max(0.0, squares / count - accuracy**2) / count)
    share = stopped / answers if answers else None
    return Score(int(count), accuracy, error, chance / count, share, {k: x / count for k, x in zip(ks, passed)})


def by_skill(problems: Sequence[dict]) -> dict[str, list[dict]]:
    found = {}
    for problem in problems:
        found.setdefault(problem['skill'], []).append(problem)
    return found


def mean(scores: dict[str, Score]) -> float:
    """One number for all skills: the mean of their accuracies, each on a scale where guessing is 0 and perfect is 1.
    The idea of CORE (Li et al., 2024) and of nanochat's ChatCORE."""
    return sum(tasks.centred(score.accuracy, score.baseline) for score in scores.values()) / len(scores)


RESERVED = {  # log.jsonl's own
    'mean', 'step', 'seconds', 'loss', 'lr', 'norm', 'skipped', 'perplexity', 'bits_per_byte', 'evaluation_seconds',
    'tokens_per_second', 'tokens_per_step', 'prompt', 'text', 'supervised', 'accuracy', 'margin', 'logp_chosen',
    'logp_rejected', 'reward', 'no_signal', 'truncated', 'length',
}  # fmt: skip


class Skills:
    """Evaluation by problems, greedily answered, called as often as one likes: {skill: accuracy, …, 'mean': mean()}, or
    {} without problems."""

    def __init__(self, engine: Engine, chat, problems: Sequence[dict], max_tokens: int):
        self.engine, self.chat, self.skills, self.max_tokens = engine, chat, by_skill(problems), max_tokens
        for name in self.skills:
            if name in RESERVED or name.startswith('val'):
                raise SystemExit(f'a skill is named {name!r}, as is another number of the log; give it another name')
        prompts(engine, chat, problems)  # those that are too long are named now

    def __call__(self) -> dict[str, float]:
        together = [problem for problems in self.skills.values() for problem in problems]  # fuller batches
        attempts = attempt(self.engine, self.chat, together, self.max_tokens)
        scores = {name: tally([made for made in attempts if made.problem['skill'] == name]) for name in self.skills}
        more = {'mean': mean(scores)} if scores else {}
        return {**{name: score.accuracy for name, score in scores.items()}, **more}


# -----------------------------------------------------------------------------
# a checkpoint's table


def problems_beside(dataset: str) -> Path:
    """The problems.jsonl of the data that a checkpoint was trained on, in its folder or one above, else tinyworld's."""
    root = Path(__file__).resolve().parent / 'data'
    folders = [root / name for name, _ in mixture(dataset)] if dataset else []
    places = [place / 'problems.jsonl' for folder in folders for place in (folder, folder.parent)]
    return next((place for place in places if place.is_file()), root / 'tinyworld' / 'problems.jsonl')


def text_numbers(model: GPT, data: Data, split: str, rows: int, device: str, ranks: runtime.Ranks) -> dict[str, float]:
    """Text's numbers over all tokens of a split, in rows as long as the model's context."""
    dtype = model.transformer.wte.weight.dtype
    if device == 'cpu':
        rows = min(rows, plan.cpu_rows(model.config))  # as in training
    shape = Shape(0, rows, model.config.block_size, ranks.rank, ranks.world_size, dtype=dtype)
    reader = Stream(data.split(split), shape, shuffle=False)
    nll = lambda model, batch: ((batch.weights * model(batch.inputs, batch.targets)).sum(), {})
    return Text(model, nll, reader, data, device)()


def percent(share: float | None) -> str:
    return f'{"-":>10}' if share is None else f'{100 * share:>9.1f}%'


def line(name: str, score: Score) -> str:
    numbers = [score.accuracy, score.error, score.ended, *score.passed.values()]
    return f'{name:<20}{score.problems:>9}' + ''.join(map(percent, numbers))


def header(score: Score) -> str:
    names = ['accuracy', '+- 2 s.e.', 'ended', *(f'pass@{k}' for k in score.passed)]
    return f'{"skill":<20}{"problems":>9}' + ''.join(f'{name:>10}' for name in names)


def verbatim(made: Attempt) -> str:
    """A problem with its answers and verdicts."""
    problem = made.problem
    asked = '\n'.join(f'{message["role"]}: {text_of(message["content"])}' for message in problem['messages'])
    answers = [f'assistant: {text}\n-> {grade:g}' for text, grade in zip(made.answers, made.grades)]
    wanted = f' (the answer: {problem["answer"]})' if problem.get('answer') not in (None, '') else ''  # but 0 is one
    return '\n'.join([f'--- {problem["skill"]}', asked, *answers]) + wanted + '\n'


if __name__ == '__main__':
    import console
    from configurator import configure
    from console import printable
    from conversation import Chat
    from tools import calculate

    # what to measure
    out_dir = ''  # the run's folder, or a .pt file; '' is the newest under out/ and out-*/
    problems = ''  # the problems, a .jsonl file; '' is problems.jsonl beside the data the run has learned from
    split = 'val'  # of the problems and of the data: val | train
    skills = ''  # which of the problems' skills, separated by commas; '' is all
    limit = 500  # problems of each skill, the first ones; 0 is all
    data = ''  # a data folder, whose loss, perplexity and bits per byte are wanted too; '' is none
    # how problems are answered
    num_samples = 1  # answers to each; several show pass@k, and need a temperature
    temperature = 0.0  # 0: always the likeliest token
    max_new_tokens = 256  # longest answer
    seed = 0  # of the answers, where the temperature is above 0
    batch_size = 64  # rows at once, at most; out of memory: lower it
    # what is shown
    show = 0  # questions of each skill that are printed with their answers
    json = ''  # a file for the numbers; '' is none
    # the machine
    device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
    dtype = 'auto'  # auto | float32 | bfloat16 | float16 | float64

    console.set_up(must_finish=True)
    ranks = runtime.join()

    def say(*texts: str, **how) -> None:
        if ranks.rank == 0:
            print(*map(printable, texts), **how)  # they may quote a model

    with runtime.errors_once(ranks):
        config = configure(globals())
        # Without a file the printed numbers are all there is; a rank must not leave the others
        console.set_up(must_finish=bool(json) or ranks.world_size > 1)
        lowest = dict(limit=0, num_samples=1, temperature=0, max_new_tokens=1, seed=0)
        lowest |= dict(batch_size=1, show=0)
        for name, least in lowest.items():
            if config[name] < least:
                raise SystemExit(f'{name} is {config[name]}, expected at least {least}')
        if num_samples > 1 and temperature == 0:
            raise SystemExit(f'num_samples is {num_samples} at temperature 0, where all are alike; add --temperature=1')
        if json and ranks.rank == 0:
            disk.try_writing(json)
        device = runtime.choose_device(device, ranks)
        dtype, why_dtype = runtime.choose_dtype(dtype, device)
        runtime.set_up(device, ranks, deterministic=False)
        if device == 'cpu':
            runtime.keep_freed_memory()
        runtime.explain_out_of_memory('lower --batch_size')
        path = checkpoint.find(out_dir)
        model, tokenizer, state = checkpoint.open_model(path, device, dtype)
        folder = Data(data) if data else None
        if folder and folder.tokenizer.hash != tokenizer.hash:
            raise another_tokenizer(data, path)
        source = Path(problems) if problems else problems_beside(state['config'].get('dataset', ''))
        asked = []
        try:
            chat = Chat(tokenizer)
            engine = Engine(model, tokenizer, chat, calculate, max_rows=batch_size)
            asked = tasks.load(source, split, [name for name in skills.split(',') if name], limit)
            prompts(engine, chat, asked)  # those that are too long are named now
        except SystemExit as error:
            if problems or skills or not data:
                raise
            say(f'no problems: {error}', file=sys.stderr)
    say(f'{path}: stage {state["stage"]}, step {state["step"]}; {source}, split {split}; on {device}, {dtype}')
    scores, numbers = {}, {}
    with runtime.errors_once(ranks), runtime.autocast(dtype, device):
        if folder:
            numbers = text_numbers(model, folder, split, batch_size, device, ranks)
            say(f'{data}, split {split}: ' + ', '.join(f'{name} {x:.4f}' for name, x in numbers.items()), flush=True)
        for name, of_skill in by_skill(asked).items():
            attempts = attempt(engine, chat, of_skill, max_new_tokens, num_samples, temperature, seed)
            scores[name] = tally(attempts, num_samples)
            if len(scores) == 1:
                say(header(scores[name]))
            say(line(name, scores[name]), flush=True)
            say(*map(verbatim, attempts[:show]), sep='\n', end='')
    if scores:
        numbers['mean'] = mean(scores)
        say(f'mean of the skills, guessing being 0 and perfect 100: {100 * numbers["mean"]:.1f}')
    if json and ranks.rank == 0:
        about = dict(checkpoint=str(path), stage=state['stage'], step=state['step'], source=str(source), **config)
        numbers['skills'] = {name: score._asdict() for name, score in scores.items()}
        with disk.replacing(json) as file:
            found = valid_text({**about, **numbers})  # the name of a file may be no UTF-8
            file.write(dumps(found, indent=1, ensure_ascii=False).encode())
    runtime.leave()
