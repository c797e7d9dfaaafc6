"""
What a model scores: its loss over held-out data, and how well it answers problems.

    $ python evaluate.py                                     # the newest run, one row per skill
    $ python evaluate.py --out_dir=out/tinyworld/rl --skills=facts,one_step --show=3
    $ python evaluate.py --num_samples=16 --temperature=1    # pass@1, 2, 4, 8 and 16
    $ python evaluate.py --data=data/tinyworld/pretrain      # validation loss and bits per byte too
    $ python evaluate.py --core=data/core/eval_bundle        # CORE: 22 tasks for base models
    $ torchrun --standalone --nproc_per_node=8 evaluate.py   # the same numbers from eight GPUs

A validation reader is a reader whose first step holds all evaluation rows. The loss of that step is
the validation loss, the same number for any micro-batch size and any number of ranks.

Problems are those of tasks.py. The engine generates an answer, which is graded. If a problem has
choices and answers are greedy, no text is generated: the likeliest choice is graded.

Left out on purpose: problems whose answer is a program, which would have to run (see tools.py).
"""

import math
import sys
from collections.abc import Callable, Sequence
from json import dumps  # `json` is a setting below
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import checkpoint
import console
import disk
import plan
import runlog
import runtime
import tasks
from batches import Reader, Shape, Stream
from conversation import Chat
from core import Core, core_numbers, load_bundle  # `core` is a setting below
from engine import Engine, Sample, Sampling, evaluating
from model import GPT
from shards import Data, check_tokenizer, mixture
from tools import calculate
from utf8 import valid_text

# -----------------------------------------------------------------------------
# losses


@torch.no_grad()
def total(model: Callable, loss_fn: Callable, reader: Reader, device: str) -> dict[str, float]:
    """
    {'loss': nats, …}: loss and metrics of the reader's first step, summed over micro-batches and
    ranks. loss_fn(model, batch) returns (share of the loss, {name: share of a metric}).
    """
    shares: dict[str, list] = {'loss': []}  # name -> one number per micro-batch
    for batch in reader[0]:
        loss, metrics = loss_fn(model, batch.to(device))
        for name, share in {'loss': loss, **metrics}.items():
            shares.setdefault(name, []).append(torch.as_tensor(share))
    # Summed in float64: a float32 sum drops small shares. cpu() is the only wait for the device
    sums = [float(torch.stack(of_name).cpu().double().sum()) for of_name in shares.values()]
    return dict(zip(shares, runtime.add_up(sums)))


def bytes_per_target(reader: Reader, bytes_per_id: np.ndarray) -> float:
    """UTF-8 bytes per target, on average over the reader's first step and all ranks. Special tokens
    count as targets of 0 bytes. bytes_per_id: (vocab_size,)."""
    table = torch.from_numpy(bytes_per_id)
    targets = 0
    size = 0
    for batch in reader[0]:
        counted = batch.weights > 0  # (B, T)
        targets += int(counted.sum())
        size += int(table[batch.targets[counted]].sum())
    targets, size = runtime.add_up([float(targets), float(size)])
    return size / targets


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """A loss in bits per byte of text: comparable between models with different tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token


class Text:
    """
    Evaluation on a reader of text. Call it, as often as you like, to get

        val              nats per token
        perplexity       exp(val): as unsure as a uniform choice among this many tokens
        bits_per_byte    see above; left out for data of nanoGPT, which has no tokenizer
    """

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, data: Data, device: str):
        self.arguments = (model, loss_fn, reader, device)
        self.bytes_per_token = None
        if data.meta:
            self.bytes_per_token = bytes_per_target(reader, data.tokenizer.bytes_per_id)

    def __call__(self) -> dict[str, float]:
        nats = total(*self.arguments)['loss']
        numbers = {'val': nats, 'perplexity': math.exp(min(nats, 700))}  # exp(710) overflows
        if self.bytes_per_token:
            numbers['bits_per_byte'] = bits_per_byte(nats, self.bytes_per_token)
        return numbers


class Total:
    """Evaluation by a stage's own loss. Call it to get {'val': loss, …} with the loss's metrics."""

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, device: str):
        self.arguments = (model, loss_fn, reader, device)

    def __call__(self) -> dict[str, float]:
        numbers = total(*self.arguments)
        return {'val': numbers.pop('loss'), **numbers}


@torch.no_grad()
def log_probabilities(model: Callable, reader: Reader, device: str) -> list[float]:
    """
    For each row of a Pairs reader, in order: the log-probability in nats of what the assistant
    says. It is DPO's reference.

    Rows go through the model in batches of the reader's own shape. So a model equal to its
    reference gets exactly the reference's numbers.
    """
    shape = reader.shape
    B = reader.micro_batch_rows
    mine = list(range(shape.rank, reader.num_rows, shape.world_size))
    logps = [0.0] * reader.num_rows  # 0 for the rows of other ranks
    for start in range(0, len(mine), B):
        rows = mine[start : start + B]
        batch = reader.batch(rows, 1).to(device)
        logp = -(batch.weights * model(batch.inputs, batch.targets)).sum(dim=1)  # (B,)
        for row, nats in zip(rows, logp.tolist()):
            logps[row] = nats
    return runtime.add_up(logps)


# -----------------------------------------------------------------------------
# answers


class Attempt(NamedTuple):
    """The answers to one problem and their grades."""

    problem: dict
    answers: list[str]  # as the model wrote them, a call of the calculator as <<3+4=7>>
    grades: list[float]
    ended: list[bool]  # whether each ended by itself; [] if the answer was chosen, not generated


def prompts(engine: Engine, chat: Chat, problems: Sequence[dict]) -> list[list[int]]:
    """The ids of each problem's prompt. SystemExit for a problem that the context cannot hold: its
    score would mean nothing."""
    found = []
    for problem in problems:
        ids = chat.prompt(problem['messages'])
        # The last token of an answer is predicted, not read
        longest = max([len(answer) - 1 for answer in answer_ids(engine, problem)], default=0)
        tokens = len(ids) + longest
        if tokens > engine.context:
            question = text_of(problem['messages'][-1]['content'])[:60]
            raise SystemExit(
                f'a problem of {problem["skill"]!r} takes {tokens} tokens ({question!r}), '
                f"expected at most the {engine.context} of the model's context; leave it out"
            )
        found.append(ids)
    return found


def answer_ids(engine: Engine, problem: dict) -> list[list[int]]:
    """The ids of each answer that a multiple-choice problem allows; [] for any other problem.
    SystemExit if the tokenizer cannot encode one."""
    try:
        return [engine.tokenizer.encode(text) for text in tasks.answers(problem)]
    except ValueError as error:
        raise SystemExit(f'a choice of {problem["skill"]!r} cannot be encoded: {error}') from None


def text_of(content: str | list[dict]) -> str:
    """The text of a message: of all its parts, if it has parts."""
    return content if isinstance(content, str) else ''.join(part['text'] for part in content)


def answer(
    engine: Engine, chat: Chat, problems: Sequence[dict], max_tokens: int, samples: int = 1,
    temperature: float = 0.0, seed: int = 0, numbers: Sequence[int] | None = None,
) -> list[list[Sample]]:  # fmt: skip
    """`samples` samples for each problem. Those of problem i are drawn from the random streams
    (seed, numbers[i], j), or (seed, i, j) without numbers."""
    sampling = Sampling(temperature, seed=seed)
    ids = prompts(engine, chat, problems)
    flat = engine.generate(ids, max_tokens, sampling, samples, numbers)
    return [flat[i : i + samples] for i in range(0, len(flat), samples)]


class Candidate(NamedTuple):
    """An answer whose log-probability is wanted."""

    scores: list[float]  # one per answer to its problem; set_scores() sets scores[index]
    index: int
    start: int  # the position in its row whose logits predict its first token
    ids: list[int]


@torch.no_grad()
def likelihoods(engine: Engine, chat: Chat, problems: Sequence[dict]) -> list[list[float]]:
    """
    The log-probability in nats of each answer that a multiple-choice problem allows, in the order
    of its choices: the sum over the answer's tokens.

    No cache, nothing sampled. Answers that differ only in their last token, as letters do, share a
    row of the forward pass.
    """
    # 1) Rows: a prompt and all tokens of an answer but the last
    asked = [answer_ids(engine, problem) for problem in problems]
    scores = [[0.0] * len(answers) for answers in asked]
    rows = {}  # ids of a row -> its candidates
    for prompt, answers, own in zip(prompts(engine, chat, problems), asked, scores):
        for i, ids in enumerate(answers):
            row = (*prompt, *ids[:-1])
            rows.setdefault(row, []).append(Candidate(own, i, len(prompt) - 1, ids))

    # 2) Forward passes, of at most max_rows rows
    listed = list(rows.items())
    with evaluating(engine.model), runtime.any_shape(engine.device):
        for start in range(0, len(listed), engine.max_rows):
            set_scores(engine.model, listed[start : start + engine.max_rows])
    return scores


def set_scores(model: GPT, rows: list[tuple[tuple, list[Candidate]]]) -> None:
    """Set the scores of the rows' candidates by one forward pass."""
    # Padding on the right, where no earlier position attends to it
    longest = max(len(ids) for ids, _ in rows)
    padded = [ids + (0,) * (longest - len(ids)) for ids, _ in rows]
    x = torch.tensor(padded, device=model.transformer.wte.weight.device)  # (rows, T)
    hidden = model.hidden(x)  # (rows, T, C)
    for r, (_, candidates) in enumerate(rows):
        for candidate in candidates:
            length = len(candidate.ids)
            x = hidden[r, candidate.start : candidate.start + length]
            logp = model.logits(x).float().log_softmax(-1)  # (length, vocab_size)
            candidate.scores[candidate.index] = float(logp[range(length), candidate.ids].sum())


def rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def attempt(
    engine: Engine, chat: Chat, problems: Sequence[dict], max_tokens: int, samples: int = 1,
    temperature: float = 0.0, seed: int = 0,
) -> list[Attempt]:  # fmt: skip
    """
    Answer and grade this rank's share of the problems: rank r has r, r + world_size, and so on.

    A problem with choices is answered by likelihood, unless a temperature or several samples are
    asked for. Problems answered by likelihood come first in the result.
    """
    # 1) This rank's problems: those to answer by likelihood, and the others
    rank, world_size = rank_and_world_size()
    greedy = samples == 1 and temperature == 0
    chosen = []  # indices
    generated = []
    for i in range(rank, len(problems), world_size):
        if greedy and 'choices' in problems[i]:
            chosen.append(i)
        else:
            generated.append(i)

    # 2) Choices
    attempts = []
    asked = [problems[i] for i in chosen]
    for problem, scores in zip(asked, likelihoods(engine, chat, asked)):
        letter = tasks.LETTERS[scores.index(max(scores))]
        attempts.append(Attempt(problem, [letter], [tasks.grade(problem, letter)], []))

    # 3) Text. A problem's number is its index among all, so its samples are the same on any rank
    asked = [problems[i] for i in generated]
    made = answer(engine, chat, asked, max_tokens, samples, temperature, seed, generated)
    for problem, of_problem in zip(asked, made):
        texts = [chat.transcript(sample.ids) for sample in of_problem]
        grades = [tasks.grade(problem, sample.text) for sample in of_problem]
        ended = [sample.finish_reason == 'stop' for sample in of_problem]
        attempts.append(Attempt(problem, texts, grades, ended))
    return attempts


# -----------------------------------------------------------------------------
# scores


class Score(NamedTuple):
    problems: int
    accuracy: float  # mean grade
    error: float  # two standard errors of it
    baseline: float  # what guessing scores
    ended: float | None  # share of generated answers that ended by themselves; None without any
    passed: dict[int, float] = {}  # {k: share of problems that at least one of k answers solves}


def pass_at(samples: int, right: int, k: int) -> float:
    """The chance that at least one of k answers is right, k drawn without replacement from
    `samples` of which `right` are right (Chen et al., 2021, arXiv:2107.03374: without bias)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def tally(attempts: Sequence[Attempt], samples: int = 1) -> Score:
    """The score of one skill from the attempts of all ranks, equal on every rank. With several
    samples it has pass@k for k = 1, 2, 4, … and `samples`."""
    # 1) Sums over this rank's problems
    grades = [sum(made.grades) / len(made.grades) for made in attempts]
    baselines = [tasks.baseline(made.problem) for made in attempts]
    ended = [end for made in attempts for end in made.ended]
    right = [sum(grade == 1 for grade in made.grades) for made in attempts]
    ks = []
    if samples > 1:
        ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
    passed = [sum(pass_at(samples, count, k) for count in right) for k in ks]
    squares = sum(grade * grade for grade in grades)
    sums = [len(grades), sum(grades), squares, sum(baselines), len(ended), sum(ended), *passed]

    # 2) Sums over all ranks
    sums = runtime.add_up([float(x) for x in sums])
    count, points, squares, chance, answers, stopped, *passed = sums

    # 3) Means. The variance of the grades is mean(grade^2) - mean(grade)^2
    accuracy = points / count
    variance = max(0.0, squares / count - accuracy**2)
    return Score(
        problems=int(count),
        accuracy=accuracy,
        error=2 * math.sqrt(variance / count),
        baseline=chance / count,
        ended=stopped / answers if answers else None,
        passed={k: x / count for k, x in zip(ks, passed)},
    )


def by_skill(problems: Sequence[dict]) -> dict[str, list[dict]]:
    """{skill: its problems}, in the order in which skills first occur."""
    found = {}
    for problem in problems:
        found.setdefault(problem['skill'], []).append(problem)
    return found


def mean(scores: dict[str, Score]) -> float:
    """One number for all skills: the mean of their accuracies, each on a scale where guessing is 0
    and perfect is 1. The idea of CORE (Li et al., 2024) and of nanochat's ChatCORE."""
    centred = [tasks.centred(score.accuracy, score.baseline) for score in scores.values()]
    return sum(centred) / len(scores)


class Skills:
    """
    Evaluation by problems, answered greedily. Call it, as often as you like, to get
    {skill: accuracy, …, 'mean': see mean()}, or {} without problems.

    SystemExit if a skill has the name of another number in the log, or a problem is too long.
    """

    def __init__(self, engine: Engine, chat: Chat, problems: Sequence[dict], max_tokens: int):
        self.engine = engine
        self.chat = chat
        self.max_tokens = max_tokens
        self.skills = by_skill(problems)
        for name in self.skills:
            if name in runlog.RESERVED or name.startswith(('val', 'core')):
                raise SystemExit(
                    f'a skill is named {name!r}, which names another number in the log; '
                    'give it another name'
                )
        prompts(engine, chat, problems)  # report a problem that is too long now

    def __call__(self) -> dict[str, float]:
        # All skills in one call, which makes fuller batches
        together = [problem for problems in self.skills.values() for problem in problems]
        attempts = attempt(self.engine, self.chat, together, self.max_tokens)
        scores = {
            name: tally([made for made in attempts if made.problem['skill'] == name])
            for name in self.skills
        }
        numbers = {name: score.accuracy for name, score in scores.items()}
        if scores:
            numbers['mean'] = mean(scores)
        return numbers


# -----------------------------------------------------------------------------
# the program: a table of one checkpoint's scores


def check(settings: SimpleNamespace, ranks: runtime.Ranks) -> None:
    """SystemExit for a setting out of range, or a --json file that cannot be written."""
    least = dict(
        limit=0, num_samples=1, temperature=0, max_new_tokens=1, seed=0, batch_size=1, show=0,
        core_limit=0,
    )  # fmt: skip
    for name, low in least.items():
        value = getattr(settings, name)
        if value < low:
            raise SystemExit(f'{name} is {value}, expected at least {low}')
    if settings.num_samples > 1 and settings.temperature == 0:
        raise SystemExit(
            f'num_samples is {settings.num_samples} at temperature 0, where all answers are alike; '
            'add --temperature=1'
        )
    if settings.json and ranks.rank == 0:
        disk.try_writing(settings.json)


def choose_machine(settings: SimpleNamespace, ranks: runtime.Ranks) -> tuple[str, str]:
    """(device, dtype), set up."""
    device = runtime.choose_device(settings.device, ranks)
    dtype, _ = runtime.choose_dtype(settings.dtype, device)
    runtime.set_up(device, ranks, deterministic=False)
    if device == 'cpu':
        runtime.keep_freed_memory()
    runtime.explain_out_of_memory('lower --batch_size')
    return device, dtype


def problems_beside(dataset: str) -> Path:
    """The problems.jsonl of the data that a checkpoint was trained on, in its folder or the one
    above. Without one, tinyworld's."""
    root = Path(__file__).resolve().parent / 'data'
    folders = [root / name for name, _ in mixture(dataset)] if dataset else []
    for folder in folders:
        for place in (folder / 'problems.jsonl', folder.parent / 'problems.jsonl'):
            if place.is_file():
                return place
    return root / 'tinyworld' / 'problems.jsonl'


def open_problems(
    settings: SimpleNamespace, source: Path, model: GPT, tokenizer
) -> tuple[Engine | None, list[dict]]:
    """
    (engine that can chat, problems to ask).

    If the model cannot chat or the problems cannot be used: (None, []) and a line that says so if
    only --data or --core was given, else SystemExit.
    """
    try:
        chat = Chat(tokenizer)
        engine = Engine(model, tokenizer, chat, calculate, max_rows=settings.batch_size)
        names = [name for name in settings.skills.split(',') if name]
        problems = tasks.load(source, settings.split, names, settings.limit)
        prompts(engine, chat, problems)  # report a problem that is too long now
    except SystemExit as error:
        if settings.problems or settings.skills or not (settings.data or settings.core):
            raise
        say(f'no problems: {error}', file=sys.stderr)
        return None, []
    return engine, problems


def say(*texts: str, **how) -> None:
    """print() on rank 0. Texts may quote a model, so control characters are left out."""
    rank, _ = rank_and_world_size()
    if rank == 0:
        print(*map(console.printable, texts), **how)


def text_numbers(
    model: GPT, data: Data, split: str, rows: int, device: str, ranks: runtime.Ranks
) -> dict[str, float]:
    """Text's numbers over all tokens of a split. Rows are as long as the model's context; `rows` of
    them go through the model at once, at most."""
    dtype = model.transformer.wte.weight.dtype
    if device == 'cpu':
        rows = min(rows, plan.cpu_rows(model.config))  # as in training
    shape = Shape(0, rows, model.config.block_size, ranks.rank, ranks.world_size, dtype=dtype)
    reader = Stream(data.split(split), shape, shuffle=False)

    def weighted_nll(model, batch):
        return (batch.weights * model(batch.inputs, batch.targets)).sum(), {}

    return Text(model, weighted_nll, reader, data, device)()


def score_skills(
    settings: SimpleNamespace, engine: Engine, problems: list[dict]
) -> dict[str, Score]:
    """{skill: score}. Each row of the table is printed as soon as it is known, followed by the
    first answers with --show."""
    scores = {}
    for name, of_skill in by_skill(problems).items():
        attempts = attempt(
            engine, engine.chat, of_skill, settings.max_new_tokens, settings.num_samples,
            settings.temperature, settings.seed,
        )  # fmt: skip
        score = tally(attempts, settings.num_samples)
        if not scores:
            say(header(score))
        scores[name] = score
        say(line(name, score), flush=True)
        say(*map(verbatim, attempts[: settings.show]), sep='\n', end='')
    return scores


def header(score: Score) -> str:
    """The first row of the table."""
    names = ['accuracy', '+- 2 s.e.', 'ended', *(f'pass@{k}' for k in score.passed)]
    return f'{"skill":<20}{"problems":>9}' + ''.join(f'{name:>10}' for name in names)


def line(name: str, score: Score) -> str:
    """A skill's row of the table."""
    shares = [score.accuracy, score.error, score.ended, *score.passed.values()]
    return f'{name:<20}{score.problems:>9}' + ''.join(map(percent, shares))


def percent(share: float | None) -> str:
    return f'{"-":>10}' if share is None else f'{100 * share:>9.1f}%'


def verbatim(made: Attempt) -> str:
    """A problem with its answers and their grades."""
    problem = made.problem
    parts = [f'--- {problem["skill"]}']
    for message in problem['messages']:
        parts.append(f'{message["role"]}: {text_of(message["content"])}')
    for text, grade in zip(made.answers, made.grades):
        parts.append(f'assistant: {text}\n-> {grade:g}')
    expected = problem.get('answer')
    if expected not in (None, ''):  # 0 is an answer
        parts[-1] += f' (the answer: {expected})'
    return '\n'.join(parts) + '\n'


def write_numbers(path: str, facts: dict) -> None:
    """Write the facts as JSON. The name of a file in them may not be UTF-8."""
    with disk.replacing(path) as file:
        file.write(dumps(valid_text(facts), indent=1, ensure_ascii=False).encode())


def main(config: dict, ranks: runtime.Ranks) -> None:
    """Load, measure, print. config: the settings below, by name."""
    # 1) Whatever can fail, fails before the first forward pass
    settings = SimpleNamespace(**config)
    with runtime.errors_once(ranks):
        check(settings, ranks)
        device, dtype = choose_machine(settings, ranks)
        path = checkpoint.find(settings.out_dir)
        model, tokenizer, state = checkpoint.open_model(path, device, dtype)
        data = Data(settings.data) if settings.data else None
        if data:
            check_tokenizer(data, tokenizer.hash, path)
        core = None
        if settings.core:
            bundle = load_bundle(settings.core, settings.core_limit)
            core = Core(model, tokenizer, bundle, settings.batch_size, ranks.rank, ranks.world_size)
        source = Path(settings.problems)
        if not settings.problems:
            source = problems_beside(state['config'].get('dataset', ''))
        engine, problems = open_problems(settings, source, model, tokenizer)
    stage, step, split = state['stage'], state['step'], settings.split
    say(f'{path}: stage {stage}, step {step}; {source}, split {split}; on {device}, {dtype}')

    # 2) Measure
    numbers = {}
    with runtime.errors_once(ranks), runtime.autocast(dtype, device):
        if data:
            numbers = text_numbers(model, data, split, settings.batch_size, device, ranks)
            listed = ', '.join(f'{name} {x:.4f}' for name, x in numbers.items())
            say(f'{settings.data}, split {split}: {listed}', flush=True)
        results = core.run() if core else []
        numbers |= core_numbers(results)
        scores = score_skills(settings, engine, problems)
    if scores:
        numbers['mean'] = mean(scores)
        say(f'mean of the skills (0: guessing, 100: perfect): {100 * numbers["mean"]:.1f}')

    # 3) Write
    if settings.json and ranks.rank == 0:
        about = dict(checkpoint=str(path), stage=stage, step=step, source=str(source))
        skills = {name: score._asdict() for name, score in scores.items()}
        core_tasks = {result.name: result._asdict() for result in results}
        details = dict(skills=skills, core_bundle=settings.core, core_tasks=core_tasks)
        write_numbers(settings.json, {**about, **config, **numbers, **details})
    runtime.leave()


if __name__ == '__main__':
    from configurator import configure

    # what to measure
    out_dir = ''  # a run's folder, or a .pt file; '' is the newest under out/ and out-*/
    problems = ''  # a .jsonl file of problems; '' is problems.jsonl beside the run's own data
    split = 'val'  # which problems, and which part of the data: val | train
    skills = ''  # which skills, separated by commas; '' is all
    limit = 500  # problems of each skill, the first ones; 0 is all
    data = ''  # a data folder: measure loss, perplexity and bits per byte on it too; '' is none
    core = ''  # the bundle of CORE, data/core/eval_bundle: measure it too; '' is none
    core_limit = 0  # examples of each of its tasks; 0 is all
    # how problems are answered
    num_samples = 1  # answers to each problem; several show pass@k, and need a temperature
    temperature = 0.0  # 0: always the likeliest token
    max_new_tokens = 256  # longest answer
    seed = 0  # the same seed gives the same answers; used if the temperature is above 0
    batch_size = 64  # rows at once, at most; if memory runs out, lower it
    # what is shown
    show = 0  # print this many problems of each skill with their answers
    json = ''  # a file for the numbers; '' is none
    # the machine
    device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
    dtype = 'auto'  # auto | float32 | bfloat16 | float16 | float64

    console.set_up(must_finish=True)
    ranks = runtime.join()
    with runtime.errors_once(ranks):
        config = configure(globals())
    # Without a file the program only prints, and may end early; a rank must not leave the others
    console.set_up(must_finish=bool(json) or ranks.world_size > 1)
    main(config, ranks)
