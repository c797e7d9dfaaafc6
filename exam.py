"""
How a model answers problems, and what its answers score.

    questions = read(engine, problems)               # the problems of tasks.py, encoded
    attempts = attempt(engine, questions, How(256))  # this rank's answers, with their grades
    tally(attempts)                                  # of all ranks: accuracy, its error, pass@k
    Skills(engine, problems, 256)()                  # {skill: accuracy, …}, what training logs

The engine generates an answer, which is graded. If a problem has choices and answers are greedy, no
text is generated: the likeliest choice is graded. Answers may be kept in a file, so that a killed
evaluation continues there.

evaluate.py prints the scores of a checkpoint as a table. core.py scores base models.
"""

import glob
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import console
import disk
import runlog
import runtime
import tasks
from engine import PREFILL_TOKENS, Engine, Sample, Sampling, evaluating
from model import GPT

# -----------------------------------------------------------------------------
# questions


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


# -----------------------------------------------------------------------------
# answers


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
    wanted = []  # (index among the logits, id) of each token of each candidate
    for row, (_, candidates) in enumerate(rows):
        for candidate in candidates:
            for position, token in enumerate(candidate.ids, start=candidate.start):
                index = places.setdefault((row, position), len(places))
                wanted.append((index, token))
    row, position = torch.tensor(list(places), device=device).T
    logp = model.logits(hidden[row, position]).float().log_softmax(-1)  # (places, vocab_size)
    index, token = torch.tensor(wanted, device=device).T
    nats = iter(logp[index, token].tolist())

    # 3) Sums over the tokens of each candidate
    scored = []
    for _, candidates in rows:
        for candidate in candidates:
            scored.append((candidate, sum(next(nats) for _ in candidate.ids)))
    return scored


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


# -----------------------------------------------------------------------------
# answers that are kept

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
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

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


# -----------------------------------------------------------------------------
# answers and their grades


class Attempt(NamedTuple):
    """The answers to one problem and their grades."""

    problem: dict
    answers: list[str]  # as the model wrote them, a call of the calculator as <<3+4=7>>
    grades: list[float]
    ended: list[bool]  # whether each ended by itself; [] if the answer was chosen, not generated


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
    rank, world_size = runtime.rank_and_world_size()
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

    # 3) Grade all texts in one call. Grades are not kept: a grader may change
    problems = []  # of each text
    texts = []
    for question in mine:
        answered = responses[question.number]['texts']
        problems += [question.problem] * len(answered)
        texts += answered
    grades = iter(grade(problems, texts))
    attempts = []
    for question in mine:
        response = responses[question.number]
        given = [next(grades) for _ in response['texts']]
        attempts.append(Attempt(question.problem, response['answers'], given, response['ended']))
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
