"""
What a model scores: its loss over held-out data, and how well it answers problems.

    $ python evaluate.py                                     # the newest run, one row per skill
    $ python evaluate.py --out_dir=out/tinyworld/rl --skills=facts,one_step --show=3
    $ python evaluate.py --num_samples=16 --temperature=1    # pass@1, 2, 4, 8 and 16
    $ python evaluate.py --data=data/tinyworld/pretrain      # validation loss and bits per byte too
    $ python evaluate.py --problems=arc,mmlu,gsm8k,humaneval # benchmarks: see docs/benchmarks.md
    $ python evaluate.py --core=data/core/eval_bundle        # CORE: 22 tasks for base models
    $ torchrun --standalone --nproc_per_node=8 evaluate.py   # the same numbers from eight GPUs

Problems are those of tasks.py. The engine generates an answer, which is graded. If a problem has
choices and answers are greedy, no text is generated: the likeliest choice is graded.
If an answer is a program, sandbox.py runs it; where programs cannot be confined, a line says why
the skill was not run.

Each answer is appended to answers.jsonl beside the checkpoint as soon as it is complete. After a
kill the same command continues there, on any number of ranks. The scores are appended to
scores.jsonl, from which report.py makes its table.

validation.py measures losses, exam.py asks and grades, core.py measures CORE. This file finds the
model and the problems, prints the table and keeps the numbers.
"""

import sys
from json import dumps  # `json` is a setting below
from pathlib import Path
from types import SimpleNamespace

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import checkpoint
import console
import disk
import runtime
import tasks
from conversation import Chat
from core import Core, core_numbers, load_bundle  # `core` is a setting below
from engine import Engine
from exam import (
    BEGINNING,
    Attempt,
    How,
    Kept,
    Question,
    Score,
    attempt,
    by_skill,
    mean,
    read,
    tally,
    text_of,
)
from model import GPT
from shards import Data, check_tokenizer, mixture
from tools import calculate
from utf8 import valid_text
from validation import text_numbers

# -----------------------------------------------------------------------------
# settings, problems, answers that are kept


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


# -----------------------------------------------------------------------------
# what is measured


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
    rank, world_size = runtime.rank_and_world_size()
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


# -----------------------------------------------------------------------------
# ChatCORE

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


# -----------------------------------------------------------------------------
# what is shown and written


def say(*texts: str, **how) -> None:
    """print() on rank 0. Texts may quote a model, so control characters are left out."""
    rank, _ = runtime.rank_and_world_size()
    if rank == 0:
        print(*map(console.printable, texts), **how)


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


# -----------------------------------------------------------------------------
# the program


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
