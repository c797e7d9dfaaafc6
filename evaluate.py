"""
What a model scores: its loss over held-out data, and how well it answers problems.

    $ python evaluate.py                                     # the newest run, one row per skill
    $ python evaluate.py --out_dir=out/tinyworld/rl --skills=facts,one_step --show=3
    $ python evaluate.py --num_samples=16 --temperature=1    # pass@1, 2, 4, 8 and 16
    $ python evaluate.py --data=data/tinyworld/pretrain      # validation loss and bits per byte too
    $ python evaluate.py --problems=arc,mmlu,gsm8k,humaneval # benchmarks: see docs/benchmarks.md
    $ python evaluate.py --core=data/core/eval_bundle        # CORE: 22 tasks for base models
    $ torchrun --standalone --nproc_per_node=8 evaluate.py   # the same numbers from eight GPUs

A validation reader is a reader whose first step holds all evaluation rows. The loss of that step is
the validation loss, the same number for any micro-batch size and any number of ranks.

Problems are those of tasks.py. The engine generates an answer, which is graded. If a problem has
choices and answers are greedy, no text is generated: the likeliest choice is graded.
If an answer is a program, sandbox.py runs it; where programs cannot be confined, a line says why
the skill was not run.

Each answer is appended to answers.jsonl beside the checkpoint as soon as it is complete. After a
kill the same command continues there, on any number of ranks. The scores are appended to
scores.jsonl, from which report.py makes its table.
"""

import glob
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from json import dumps  # `json` is a setting below
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

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
from engine import PREFILL_TOKENS, Engine, Sample, Sampling, evaluating
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


class How(NamedTuple):
    """How problems are answered."""

    max_tokens: int  # of an answer
    samples: int = 1  # answers to each problem
    temperature: float = 0.0
    seed: int = 0


class Question(NamedTuple):
    """A problem as the model reads it."""

    problem: dict
    number: int  # its index among all, so that its random streams are the same on any rank
    prompt: list[int]
    choices: list[list[int]]  # the ids of each answer that multiple choice allows; [] otherwise

    @property
    def tokens(self) -> int:
        """Of its longest row. The last token of an answer is predicted, not read."""
        return len(self.prompt) + max([len(ids) - 1 for ids in self.choices], default=0)

    def is_choice(self, how: How) -> bool:
        """Whether its likeliest choice is the answer, so that no text is generated."""
        return bool(self.choices) and how.samples == 1 and how.temperature == 0


def read(engine: Engine, problems: Sequence[dict]) -> list[Question]:
    """The problems, encoded. SystemExit if the tokenizer cannot encode a choice."""
    questions = []
    for number, problem in enumerate(problems):
        prompt = engine.chat.prompt(problem['messages'])
        try:
            choices = [engine.tokenizer.encode(text) for text in tasks.answers(problem)]
        except ValueError as error:
            raise SystemExit(
                f'a choice of {problem["skill"]!r} cannot be encoded: {error}'
            ) from None
        questions.append(Question(problem, number, prompt, choices))
    return questions


def text_of(content: str | list[dict]) -> str:
    """The text of a message: of all its parts, if it has parts."""
    return content if isinstance(content, str) else ''.join(part['text'] for part in content)


def generated(
    engine: Engine, questions: Sequence[Question], how: How
) -> Iterator[tuple[Question, list[Sample]]]:
    """Each question with its samples, in the order in which they are complete. They are drawn from
    the random streams (seed, number of the question, number of the sample)."""
    sampling = Sampling(how.temperature, seed=how.seed)
    running = {}  # request -> its question
    for question in questions:
        request = engine.submit(
            question.prompt, how.max_tokens, sampling, how.samples, question.number
        )
        running[request] = question
    with evaluating(engine.model):
        while running:
            for event in engine.step():
                if event.request.done and event.request in running:
                    yield running.pop(event.request), event.request.samples


class Candidate(NamedTuple):
    """A choice whose log-probability is wanted."""

    number: int  # of its question, in the list of all
    index: int  # of the choice
    start: int  # the position in its row whose logits predict its first token
    ids: list[int]


@torch.no_grad()
def likelihoods(
    engine: Engine, questions: Sequence[Question]
) -> Iterator[tuple[Question, list[float]]]:
    """
    Each question with the log-probability in nats of each of its choices, the sum over the choice's
    tokens. Questions come in the order in which they are complete: the longest first.

    No cache, nothing sampled. Choices that differ only in their last token, as letters do, share a
    row of the forward pass.
    """
    # 1) Rows: a prompt and all tokens of a choice but the last. The longest come first: rows of
    # one pass have similar lengths, and if memory runs out, it does so at once
    rows = {}  # ids of a row -> its candidates
    for number, question in enumerate(questions):
        for i, ids in enumerate(question.choices):
            candidate = Candidate(number, i, len(question.prompt) - 1, ids)
            rows.setdefault((*question.prompt, *ids[:-1]), []).append(candidate)
    listed = sorted(rows.items(), key=lambda row: len(row[0]), reverse=True)

    # 2) Forward passes, of at most max_rows rows and PREFILL_TOKENS tokens
    found = [{} for _ in questions]  # index of a choice -> its log-probability
    while listed:
        count = max(1, min(engine.max_rows, PREFILL_TOKENS // len(listed[0][0])))
        with evaluating(engine.model), runtime.any_shape(engine.device):
            scored = score_rows(engine.model, listed[:count])
        listed = listed[count:]
        # 3) Questions whose last choice was among them
        for candidate, logp in scored:
            scores = found[candidate.number]
            scores[candidate.index] = logp
            question = questions[candidate.number]
            if len(scores) == len(question.choices):
                yield question, [scores[i] for i in range(len(scores))]


def score_rows(
    model: GPT, rows: list[tuple[tuple, list[Candidate]]]
) -> list[tuple[Candidate, float]]:
    """The rows' candidates with their log-probabilities, by one forward pass."""
    # 1) Padding on the right, where no earlier position attends to it
    longest = max(len(ids) for ids, _ in rows)
    padded = [ids + (0,) * (longest - len(ids)) for ids, _ in rows]
    device = model.transformer.wte.weight.device
    hidden = model.hidden(torch.tensor(padded, device=device))  # (rows, T, C)

    # 2) Logits at the positions that predict a candidate's token, each position once
    places = {}  # (row, position) -> its index among the logits
    wanted = []  # (index among the logits, id)
    for r, (_, candidates) in enumerate(rows):
        for candidate in candidates:
            for t, token in enumerate(candidate.ids, start=candidate.start):
                wanted.append((places.setdefault((r, t), len(places)), token))
    r, t = torch.tensor(list(places), device=device).T
    logp = model.logits(hidden[r, t]).float().log_softmax(-1)  # (positions, vocab_size)
    place, token = torch.tensor(wanted, device=device).T
    nats = iter(logp[place, token].tolist())

    # 3) Sums over the tokens of each candidate
    return [
        (candidate, sum(next(nats) for _ in candidate.ids))
        for _, candidates in rows
        for candidate in candidates
    ]


def respond(
    engine: Engine, questions: Sequence[Question], how: How
) -> Iterator[tuple[Question, dict]]:
    """
    Each question with what was answered, as soon as it is complete:

        answers    as the model wrote them
        texts      what is graded: without the calls of the calculator
        ended      see Attempt
    """
    chosen = [question for question in questions if question.is_choice(how)]
    for question, scores in likelihoods(engine, chosen):
        letter = tasks.LETTERS[scores.index(max(scores))]
        yield question, dict(answers=[letter], texts=[letter], ended=[])
    others = [question for question in questions if not question.is_choice(how)]
    for question, samples in generated(engine, others, how):
        response = dict(
            answers=[engine.chat.transcript(sample.ids) for sample in samples],
            texts=[sample.text for sample in samples],
            ended=[sample.finish_reason == 'stop' for sample in samples],
        )
        yield question, response


def rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


RESPONSE = ('answers', 'texts', 'ended')  # see respond()
BEGINNING = b'{"checkpoint"'  # of each line of a file of answers


class Kept:
    """
    Answers in a file, a line of JSON for each problem, so that a killed evaluation continues.

    A line is found by the hash of all that its answers depend on: checkpoint, machine, prompt,
    choices or settings of sampling. Therefore no line is ever outdated or replaced. Each rank
    appends to a file of its own (answers.jsonl, answers.1.jsonl, …) and reads those of all.
    """

    def __init__(self, path: Path, about: Sequence[str], rank: int = 0):
        """about: what all answers depend on, the checkpoint's hash first."""
        self.path = path if rank == 0 else path.with_name(f'{path.stem}.{rank}{path.suffix}')
        self.about = list(about)
        self.works = True  # False: the file cannot be written
        others = path.parent.glob(f'{glob.escape(path.stem)}.[0-9]*{path.suffix}')
        self.rows = {}
        for file in (path, *others):
            for row in disk.read_lines(file):
                if row.get('checkpoint') == about[0] and {'key', *RESPONSE} <= row.keys():
                    self.rows[row['key']] = row

    def key(self, question: Question, how: How) -> str:
        facts = [*self.about, question.prompt]
        if question.is_choice(how):
            facts += [question.choices]
        else:
            facts += [how.max_tokens, how.samples, how.temperature]
            facts += [how.seed, question.number] if how.temperature else []
        return hashlib.sha256(dumps(facts).encode()).hexdigest()

    def get(self, question: Question, how: How) -> dict | None:
        return self.rows.get(self.key(question, how))

    def put(self, question: Question, how: How, response: dict) -> None:
        """Append an answer. If that is impossible, the evaluation goes on without it."""
        if not self.works:
            return
        problem = question.problem
        row = dict(checkpoint=self.about[0], key=self.key(question, how), skill=problem['skill'])
        row['question'] = text_of(problem['messages'][-1]['content'])
        try:
            disk.append_line(self.path, row | response)
        except OSError as error:
            self.works = False
            print(
                f'{self.path} cannot be written ({error.strerror}): answers are not kept, a killed '
                'evaluation will start over',
                file=sys.stderr,
            )


def attempt(
    engine: Engine, questions: Sequence[Question], how: How, kept: Kept | None = None,
    title: str = '', grade: Callable = tasks.grade_all,
) -> list[Attempt]:  # fmt: skip
    """
    Answer and grade this rank's share of the questions: rank r has r, r + world_size, and so on.

    A problem with choices is answered by likelihood, unless a temperature or several samples are
    asked for. A question longer than the model's context gets the grade 0. kept: where answers are
    looked up and written. title: of a progress bar on rank 0; '': none. grade: see tasks.grader.
    """
    # 1) This rank's questions, sorted into those with and without an answer
    rank, world_size = rank_and_world_size()
    mine = questions[rank::world_size]
    responses = {}  # number of a question -> what was answered
    waiting = []
    for question in mine:
        known = kept.get(question, how) if kept else None
        if question.tokens > engine.context:
            nothing = [''] * how.samples
            known = dict(answers=nothing, texts=nothing, ended=[])
        if known:
            responses[question.number] = known
        else:
            waiting.append(question)

    # 2) Answer the others. The bar's estimate comes from the mean rate of this run
    shown = title and rank == 0
    bar = tqdm(
        respond(engine, waiting, how), console.printable(title), len(mine), initial=len(responses),
        unit=' problems', smoothing=0, leave=False, disable=None if shown else True,
    )  # fmt: skip
    for question, response in bar:
        if kept:
            kept.put(question, how, response)
        responses[question.number] = response

    # 3) Grade. Grades are not kept: a grader may change
    answered = [(question.problem, responses[question.number]) for question in mine]
    pairs = [(problem, text) for problem, response in answered for text in response['texts']]
    grades = iter(grade([problem for problem, _ in pairs], [text for _, text in pairs]))
    return [
        Attempt(problem, response['answers'], [next(grades) for _ in response['texts']],
                response['ended'])
        for problem, response in answered
    ]  # fmt: skip


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


# The skills of nanochat's ChatCORE: what it takes for the score of guessing, and our data folder
CHATCORE = {
    'arc_easy': (0.25, 'arc'),
    'arc_challenge': (0.25, 'arc'),
    'mmlu': (0.25, 'mmlu'),
    'gsm8k': (0.0, 'gsm8k'),
    'humaneval': (0.0, 'humaneval'),
    'counting': (0.0, 'spelling'),  # nanochat: SpellingBee
}


def chatcore(scores: dict[str, Score]) -> dict[str, float]:
    """
    {'ChatCORE': mean of the centred accuracies} if all its skills are there, else {}.

    Also 'ChatCORE without counting', over the five skills that it had at first: the number that is
    published for nanochat's d20.
    """
    found = {
        name: tasks.centred(scores[name].accuracy, chance)
        for name, (chance, _) in CHATCORE.items()
        if name in scores
    }
    numbers = {}
    if len(found) == len(CHATCORE):
        numbers['ChatCORE'] = sum(found.values()) / len(found)
    found.pop('counting', None)
    if len(found) == len(CHATCORE) - 1:
        numbers['ChatCORE without counting'] = sum(found.values()) / len(found)
    return numbers


class Skills:
    """
    Evaluation by problems, answered greedily. Call it, as often as you like, to get
    {skill: accuracy, …, 'mean': see mean()}, or {} without problems. Prompts, which have no grader,
    give {'reward': their mean reward}.

    SystemExit if a skill has the name of another number in the log, a problem is too long, or
    answers cannot be graded here.
    """

    def __init__(
        self, engine: Engine, problems: Sequence[dict], max_tokens: int,
        allow_unsafe_code: bool = False, reward: Callable | None = None,
    ):  # fmt: skip
        self.engine = engine
        self.how = How(max_tokens)
        self.reward = reward
        graded = [problem for problem in problems if 'grader' in problem]
        self.grade = tasks.grader(graded, allow_unsafe_code)
        self.names = list(by_skill(graded))
        for name in self.names:
            if name in runlog.RESERVED or name.startswith(('val', 'core')):
                raise SystemExit(
                    f'a skill is named {name!r}, which names another number in the log; '
                    'give it another name'
                )
        self.questions = read(engine, problems)
        for question in self.questions:
            if question.tokens > engine.context:
                text = text_of(question.problem['messages'][-1]['content'])[:60]
                raise SystemExit(
                    f'a problem of {question.problem["skill"]!r} takes {question.tokens} tokens '
                    f"({text!r}), expected at most the {engine.context} of the model's context; "
                    'leave it out'
                )

    def __call__(self) -> dict[str, float]:
        # 1) All skills in one call, which makes fuller batches
        graded = [question for question in self.questions if 'grader' in question.problem]
        attempts = attempt(self.engine, graded, self.how, grade=self.grade)
        scores = {
            name: tally([made for made in attempts if made.problem['skill'] == name])
            for name in self.names
        }
        numbers = {name: score.accuracy for name, score in scores.items()}
        if scores:
            numbers['mean'] = mean(scores)

        # 2) Prompts
        prompts = [question for question in self.questions if 'grader' not in question.problem]
        if prompts:
            attempts = attempt(self.engine, prompts, self.how, grade=self.reward)
            numbers['reward'] = tally(attempts).accuracy
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
    for path in filter(None, (settings.json, settings.answers)):
        if ranks.rank == 0:
            disk.try_writing(path)


def choose_machine(settings: SimpleNamespace, ranks: runtime.Ranks) -> tuple[str, str]:
    """(device, dtype), set up."""
    device = runtime.choose_device(settings.device, ranks)
    dtype, _ = runtime.choose_dtype(settings.dtype, device)
    runtime.set_up(device, ranks, deterministic=False)
    if device == 'cpu':
        runtime.keep_freed_memory()
    runtime.explain_out_of_memory('lower --batch_size')
    return device, dtype


def root() -> Path:
    """The folder of all data sets."""
    return Path(__file__).resolve().parent / 'data'


def problems_in(name: str) -> Path | None:
    """The problems.jsonl of a data set, in its folder or the one above."""
    folder = root() / name
    places = (folder / 'problems.jsonl', folder.parent / 'problems.jsonl')
    return next((place for place in places if place.is_file()), None)


def problems_beside(dataset: str) -> Path:
    """The problems.jsonl of the data that a checkpoint was trained on. Without one, tinyworld's."""
    names = [name for name, _ in mixture(dataset)] if dataset else []
    found = list(filter(None, map(problems_in, names)))
    return found[0] if found else root() / 'tinyworld' / 'problems.jsonl'


def find_problems(names: str) -> tuple[list[Path], dict[str, str]]:
    """
    (files of problems, {name: why there is none}) for a list of names with commas. A name is a data
    set, such as arc, or a file, such as mine.jsonl. SystemExit for any other name, and if there is
    no file at all.
    """
    files = []
    missing = {}
    for name in filter(None, map(str.strip, names.split(','))):
        if name.endswith('.jsonl') or Path(name).is_file():
            files.append(Path(name))  # tasks.load says if there is none
        elif found := problems_in(name):
            files.append(found)
        elif (root() / name / 'prepare.py').is_file():
            missing[name] = f'no problems.jsonl yet; run: python data/{name}/prepare.py'
        else:
            raise SystemExit(
                f"problems is '{name}', expected a .jsonl file, or a set of data/ such as "
                f'{", ".join(dict.fromkeys(folder for _, folder in CHATCORE.values()))}'
            )
    if missing and not files:
        raise SystemExit('; '.join(f'{name}: {why}' for name, why in missing.items()))
    return list(dict.fromkeys(files)), missing


def open_problems(
    settings: SimpleNamespace, files: list[Path], model: GPT, tokenizer
) -> tuple[Engine | None, dict[str, list[Question]]]:
    """
    (engine that can chat, {skill: questions to ask}).

    --core asks no problems but those that are given: it is for base models. If the model cannot
    chat or the problems cannot be used: (None, {}) and a line that says so if only --data was
    given, else SystemExit.
    """
    given = settings.problems or settings.skills
    if settings.core and not given:
        return None, {}
    try:
        chat = Chat(tokenizer)
        engine = Engine(model, tokenizer, chat, calculate, max_rows=settings.batch_size)
        names = [name for name in settings.skills.split(',') if name]
        problems = tasks.load(files, settings.split, names, settings.limit)
        questions = {name: read(engine, found) for name, found in by_skill(problems).items()}
    except SystemExit as error:
        if given or not settings.data:
            raise
        say(f'no problems: {error}', file=sys.stderr)
        return None, {}
    return engine, questions


def open_kept(
    settings: SimpleNamespace, path: Path, machine: tuple[str, str], ranks: runtime.Ranks
) -> Kept:
    """The answers that are known from before. machine: (device, dtype); with another one, answers
    may differ."""
    device, dtype = machine
    file = Path(settings.answers or path.parent / 'answers.jsonl')
    if file.is_file():
        with open(file, 'rb') as opened:
            beginning = opened.read(len(BEGINNING))
        if beginning not in (b'', BEGINNING):
            raise SystemExit(
                f'{file} was not written by evaluate.py, which would append to it; '
                'move it away, or give another --answers'
            )
    about = [checkpoint.identity(path)['sha256'], device.partition(':')[0], dtype]
    return Kept(file, about, ranks.rank)


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
    settings: SimpleNamespace, engine: Engine, questions: dict[str, list[Question]], kept: Kept
) -> tuple[dict[str, Score], dict[str, str]]:
    """
    ({skill: score}, {skill: why it was not run}). Each row of the table is printed as soon as it is
    known, followed by the first answers with --show.
    """
    how = How(settings.max_new_tokens, settings.num_samples, settings.temperature, settings.seed)
    say_what_is_known(engine, questions, how, kept)
    scores = {}
    not_run = {}
    for name, of_skill in questions.items():
        # 1) Answer and grade
        problems = [question.problem for question in of_skill]
        why = why_not(problems, settings.allow_unsafe_code)
        if why:
            not_run[name] = why
            continue
        grade = tasks.grader(problems, settings.allow_unsafe_code)
        attempts = attempt(engine, of_skill, how, kept, name, grade)
        score = tally(attempts, how.samples)
        # 2) Show
        if not scores:
            say(header(score))
        scores[name] = score
        say(line(name, score), flush=True)
        say(*map(verbatim, attempts[: settings.show]), sep='\n', end='')
    return scores, not_run


def why_not(problems: list[dict], allow_unsafe_code: bool) -> str:
    """Why a skill cannot be graded here; '' if it can. All ranks get a reason or none does."""
    why = tasks.why_not_graded(problems, allow_unsafe_code)
    [refusing] = runtime.add_up([float(bool(why))])
    return why or ('another rank cannot grade it' if refusing else '')


def say_what_is_known(
    engine: Engine, questions: dict[str, list[Question]], how: How, kept: Kept
) -> None:
    """A line about answers that are taken from the file, and one for each skill with questions that
    the model cannot read."""
    rank, world_size = rank_and_world_size()
    mine = [question for of_skill in questions.values() for question in of_skill[rank::world_size]]
    known = [kept.get(question, how) is not None for question in mine]
    known, total = runtime.add_up([float(sum(known)), float(len(mine))])
    if known:
        say(f'{kept.path}: has {known:,.0f} of {total:,.0f} answers; to answer again, move it away')
    for name, of_skill in questions.items():
        count = sum(question.tokens > engine.context for question in of_skill)
        if count:
            say(
                f'{name}: {count:,} of {len(of_skill):,} problems are longer than the '
                f"{engine.context} tokens of the model's context, and count as wrong"
            )


def header(score: Score) -> str:
    """The first row of the table."""
    names = ['accuracy', '+- 2 s.e.', 'ended', *(f'pass@{k}' for k in score.passed)]
    return f'{"skill":<20}{"problems":>9}' + ''.join(f'{name:>10}' for name in names)


def line(name: str, score: Score) -> str:
    """A skill's row of the table."""
    shares = [score.accuracy, score.error, score.ended, *score.passed.values()]
    return f'{name:<20}{score.problems:>9}' + ''.join(map(percent, shares))


def say_summary(
    scores: dict[str, Score], numbers: dict[str, float], not_run: dict[str, str]
) -> None:
    """What was not run, the mean of the skills, and ChatCORE or what it lacks."""
    for name, why in not_run.items():
        say(f'{name:<20} not run: {why}')
    if 'mean' in numbers:
        say(f'mean of the skills (0: guessing, 100: perfect): {100 * numbers["mean"]:.1f}')
    for name, score in numbers.items():
        if name.startswith('ChatCORE'):
            say(f'{name}: {score:.4f}')
    lacking = [name for name in CHATCORE if name not in scores]
    if lacking and scores.keys() & CHATCORE.keys() - {'counting'}:
        sets = dict.fromkeys(folder for _, folder in CHATCORE.values())
        say(f'ChatCORE also takes {", ".join(lacking)}: --problems={",".join(sets)}')


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


def write_numbers(settings: SimpleNamespace, folder: Path, facts: dict) -> None:
    """Append the facts to the scores.jsonl of the run, and write them to the file of --json."""
    facts = valid_text(facts)  # the name of a file may not be UTF-8
    if settings.json:
        with disk.replacing(settings.json) as file:
            file.write(dumps(facts, indent=1, ensure_ascii=False).encode())
    try:
        disk.append_line(folder / 'scores.jsonl', facts)
    except OSError as error:
        reason = f'cannot be written ({error.strerror})'
        print(f'{folder / "scores.jsonl"} {reason}: no report will show them', file=sys.stderr)


def main(config: dict, ranks: runtime.Ranks) -> None:
    """Load, measure, print. config: the settings below, by name."""
    # 1) Whatever can fail, fails before the first forward pass
    settings = SimpleNamespace(**config)
    with runtime.errors_once(ranks):
        check(settings, ranks)
        files, missing = find_problems(settings.problems)
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
        files = files or [problems_beside(state['config'].get('dataset', ''))]
        engine, questions = open_problems(settings, files, model, tokenizer)
        kept = open_kept(settings, path, (device, dtype), ranks)
    stage, step, split = state['stage'], state['step'], settings.split
    source = ','.join(map(str, files))
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
        scores, not_run = score_skills(settings, engine, questions, kept)
    if scores:
        numbers['mean'] = mean(scores)
        numbers |= chatcore(scores)
    say_summary(scores, numbers, missing | not_run)

    # 3) Write
    if ranks.rank == 0:
        about = dict(checkpoint=str(path), stage=stage, step=step, source=source)
        skills = {name: score._asdict() for name, score in scores.items()}
        core_tasks = {result.name: result._asdict() for result in results}
        details = dict(skills=skills, core_bundle=settings.core, core_tasks=core_tasks)
        facts = {**about, **config, **numbers, **details, 'not_run': missing | not_run}
        write_numbers(settings, path.parent, facts)
    runtime.leave()


if __name__ == '__main__':
    from configurator import configure

    # what to measure
    out_dir = ''  # a run's folder, or a .pt file; '' is the newest under out/ and out-*/
    problems = ''  # data sets or .jsonl files, with commas: arc,mmlu; '' is the run's own data set
    split = 'val'  # which problems, and which part of the data: val | train
    skills = ''  # which skills, separated by commas; '' is all
    limit = 500  # problems of each skill, the first ones; 0 is all
    data = ''  # a data folder: measure loss, perplexity and bits per byte on it too; '' is none
    core = ''  # CORE's bundle, data/core/eval_bundle: measured in place of the problems
    core_limit = 0  # examples of each of its tasks; 0 is all
    # how problems are answered
    num_samples = 1  # answers to each problem; several show pass@k, and need a temperature
    temperature = 0.0  # 0: always the likeliest token
    max_new_tokens = 256  # longest answer
    seed = 0  # the same seed gives the same answers; used if the temperature is above 0
    batch_size = 64  # rows at once, at most; if memory runs out, lower it
    allow_unsafe_code = False  # run a model's programs where they cannot be confined (sandbox.py)
    # what is shown
    show = 0  # print this many problems of each skill with their answers
    json = ''  # a file for the numbers; '' is only a line in scores.jsonl beside the checkpoint
    answers = ''  # the file of all answers; '' is answers.jsonl beside the checkpoint
    # the machine
    device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
    dtype = 'auto'  # auto | float32 | bfloat16 | float16 | float64

    console.set_up(must_finish=True)
    ranks = runtime.join()
    with runtime.errors_once(ranks):
        config = configure(globals())
    try:
        main(config, ranks)
    except KeyboardInterrupt:
        say('stopped; the same command continues', file=sys.stderr)
        raise SystemExit(130) from None
