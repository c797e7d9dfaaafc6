"""
exam.py: a tiny model that has learned its problems, against one forward pass per problem.
"""

import itertools
import math
import random
import statistics

import pytest
import torch
from known_answers import CHAT, KNOWN, PROBLEMS, TOKENIZER, choice, problem, tiny, trained_model

import exam
import runtime
import tasks
from engine import Engine
from tokenizer import CharTokenizer
from tools import calculate


@pytest.fixture(scope='module')
def trained():
    return trained_model()


@pytest.fixture
def engine(trained):
    return Engine(trained, TOKENIZER, CHAT, calculate)


def attempt(engine, problems, *how, **more):
    return exam.attempt(engine, exam.read(engine, problems), exam.How(*how, **more))


def test_a_model_that_knows_all_answers_scores_1(trained, engine):
    trained.train()
    measure = exam.Skills(engine, PROBLEMS, 30)
    assert measure() == measure() == {'facts': 1, 'spelling': 1, 'sums': 1, 'choice': 1, 'mean': 1}
    assert trained.training  # as it was found
    trained.eval()


def test_prompts_have_a_mean_reward(engine):
    """They have no grader. Their answers are those that a grader would see."""
    prompts = [{name: x for name, x in known.items() if name != 'grader'} for known in PROBLEMS[:3]]
    asked = []

    def reward(problems, answers):
        asked.append((problems, answers))
        return [2.0, 0.0, 4.0]

    numbers = exam.Skills(engine, [*prompts, PROBLEMS[3]], 30, reward=reward)()
    assert numbers == {PROBLEMS[3]['skill']: 1, 'mean': 1, 'reward': 2.0}
    assert asked == [(prompts, [said for _, said in KNOWN[:3]])]
    assert exam.Skills(engine, prompts, 30, reward=reward)() == {'reward': 2.0}


def test_wrong_answers_are_counted(engine):
    """Half of the facts have another answer. 'choice' counts (2/3 - b) / (1 - b) in the mean, where
    b, the mean of 1/2, 1/3 and 1/4, is what guessing scores."""
    wrong = [{**known, 'answer': 'zebra'} for known in PROBLEMS[:3]]
    changed = [*PROBLEMS[:3], *wrong, *PROBLEMS[3:6], {**PROBLEMS[6], 'answer': 'A'}, *PROBLEMS[7:]]
    numbers = exam.Skills(engine, changed, 30)()
    b = (1 / 2 + 1 / 3 + 1 / 4) / 3
    centred = (2 / 3 - b) / (1 - b)
    expected = {
        'facts': 1 / 2,
        'spelling': 1,
        'sums': 1,
        'choice': 2 / 3,
        'mean': (1 / 2 + 1 + 1 + centred) / 4,
    }
    assert numbers == pytest.approx(expected, abs=1e-12)


def test_attempts_hold_answers_grades_and_endings(engine):
    made = {a.problem['messages'][0]['content']: a for a in attempt(engine, PROBLEMS, 30)}
    assert made['Who is Anna?'][1:] == (['Anna is the baker.'], [1.0], [True])
    assert made['What is 12*7?'].answers == ['It is <<12*7=84>>84.']
    visible = problem('sums', 'What is 12*7?', 'exact', 'It is 84.')  # graded without the call
    assert attempt(engine, [visible], 30)[0].grades == [1.0]
    chosen = made[PROBLEMS[6]['messages'][0]['content']]
    assert chosen[1:] == (['B'], [1.0], [])  # no ending
    (short,) = attempt(engine, PROBLEMS[:1], 3)
    assert short.grades == [0.0] and short.ended == [False]
    assert 'Anna is the baker.'.startswith(short.answers[0])


def generate(engine, problems, how, first=0):
    """The samples of each problem, in order. The first problem has the number `first`."""
    questions = [q._replace(number=q.number + first) for q in exam.read(engine, problems)]
    found = {q.number: samples for q, samples in exam.generated(engine, questions, how)}
    return [found[q.number] for q in questions]


def test_each_answer_comes_from_its_own_stream(engine):
    """They depend neither on the other problems nor on the number of rows."""
    how = exam.How(12, 3, 1.5, 5)
    one_by_one = [
        generate(engine, [p], how, number)[0] for number, p in enumerate(PROBLEMS, start=10)
    ]
    small = Engine(engine.model, TOKENIZER, CHAT, calculate, max_rows=4)
    together = generate(small, PROBLEMS, how, 10)
    assert [[s.ids for s in said] for said in together] == [
        [s.ids for s in said] for said in one_by_one
    ]
    other = generate(small, PROBLEMS, how._replace(seed=6), 10)
    assert [[s.ids for s in said] for said in together] != [[s.ids for s in said] for said in other]
    greedy = generate(engine, PROBLEMS[:3], exam.How(30))
    assert [s.text for (s,) in greedy] == ['Anna is the baker.', 'Ben is the farmer.', 'I am Pip.']


def test_no_skill_takes_the_name_of_another_number(engine):
    for name in ('val', 'value', 'mean', 'step', 'loss', 'accuracy', 'reward', 'text'):
        with pytest.raises(SystemExit, match=f"a skill is named '{name}'"):
            exam.Skills(engine, [{**PROBLEMS[0], 'skill': name}], 30)
    assert exam.Skills(engine, [], 30)() == {}


def test_a_question_beyond_the_context_is_named_first(engine):
    long = problem('facts', 'who ' * 100, 'exact', 'me')
    told = "a problem of 'facts' takes .* tokens .*who who.*, expected at most the 96"
    with pytest.raises(SystemExit, match=told):
        exam.Skills(engine, [*PROBLEMS, long], 30)


# ---- multiple choice


def naive(model, known):
    """One forward pass per answer, without padding; the product of its tokens' probabilities."""
    prompt, scores = CHAT.prompt(known['messages']), []
    for text in known.get('spoken', 'ABCDEFGH'[: len(known['choices'])]):
        ids = TOKENIZER.encode(text)
        with torch.no_grad():
            probabilities = model(torch.tensor([prompt + ids]))[0].softmax(-1)
        start = len(prompt) - 1
        product = math.prod(float(probabilities[start + i, t]) for i, t in enumerate(ids))
        scores.append(math.log(product))
    return scores


def likelihoods(engine, problems):
    """The log-probabilities of each problem's choices, in order."""
    scored = exam.likelihoods(engine, exam.read(engine, problems))
    return [scores for _, scores in sorted(scored, key=lambda found: found[0].number)]


def some_choices(seed, spoken):
    rng = random.Random(seed)
    for i in range(40):
        words = [
            rng.choice(['red', 'old', 'a white cat', 'an owl']) for _ in range(rng.randint(2, 6))
        ]
        known = choice('why ' * rng.randint(1, 6) + '?', words, 'A')
        said = [
            f'{"it is " * rng.randint(0, 2)}{word}={letter}'
            for word, letter in zip(words, 'ABCDEF')
        ]
        yield {**known, 'spoken': said} if spoken and i % 3 else known


@pytest.mark.parametrize('spoken', [False, True])
@pytest.mark.parametrize('max_rows', [1, 7, 100])
def test_the_likelihood_of_each_choice_against_a_naive_one(max_rows, spoken):
    known = list(some_choices(3, spoken))
    model = tiny(seed=1).eval()
    scores = likelihoods(Engine(model, TOKENIZER, CHAT, max_rows=max_rows), known)
    assert [len(own) for own in scores] == [len(p['choices']) for p in known]
    expected = [naive(model, p) for p in known]
    assert all(own == pytest.approx(right, abs=1e-4) for own, right in zip(scores, expected))
    assert len({right.index(max(right)) for right in expected}) > 2
    assert likelihoods(Engine(model, TOKENIZER, CHAT), []) == []


def test_letters_of_one_token_share_a_row():
    model, rows = tiny().eval(), []
    hidden, model.hidden = model.hidden, lambda ids: rows.append(len(ids)) or hidden(ids)
    likelihoods(Engine(model, TOKENIZER, CHAT), [choice('Snow?', ['red', 'white', 'old'], 'B')])
    assert rows == [1]


def test_passes_hold_rows_of_similar_length_and_few_tokens(monkeypatch):
    """The longest rows come first, so a lack of memory shows at once."""
    monkeypatch.setattr(exam, 'PREFILL_TOKENS', 200)
    model = tiny().eval()
    shapes = []
    handle = model.transformer.wte.register_forward_pre_hook(
        lambda _, arguments: shapes.append(tuple(arguments[0].shape))
    )
    found = likelihoods(Engine(model, TOKENIZER, CHAT, max_rows=8), list(some_choices(3, False)))
    handle.remove()
    assert len(found) == sum(rows for rows, _ in shapes) == 40
    assert all(rows <= 8 and (rows * length <= 200 or rows == 1) for rows, length in shapes)
    assert any(1 < rows < 8 for rows, _ in shapes[:-1]) and max(shapes)[0] <= 8
    lengths = [length for _, length in shapes]
    assert lengths == sorted(lengths, reverse=True)


def test_the_likeliest_of_the_spoken_answers_is_graded_by_its_letter(engine):
    known = choice('Snow?', ['red', 'white'], 'B')
    for spoken, grade in ((['xxx', 'B'], 1.0), (['B', 'xxx'], 0.0)):
        made = attempt(engine, [{**known, 'spoken': spoken}], 5)[0]
        assert made.grades == [grade] and made.answers == ['B' if grade else 'A']


def test_choices_are_sampled_where_several_answers_are_wanted(engine):
    attempts = attempt(engine, PROBLEMS[6:], 5, samples=4, temperature=0.1)
    assert [made.answers for made in attempts] == [['B'] * 4, ['A'] * 4, ['D'] * 4]
    assert all(made.ended == [True] * 4 for made in attempts)


def test_a_choice_that_cannot_be_encoded_is_named():
    model = tiny()
    with pytest.raises(SystemExit, match="a choice of 'choice' cannot be encoded"):
        exam.read(Engine(model, CharTokenizer('A1'), CHAT), [choice('Snow?', ['1', 'A'], 'B')])


def test_a_choice_beyond_the_context_is_named(engine):
    known = choice('Snow?', ['red', 'white'], 'B')
    exam.Skills(engine, [known], 30)
    with pytest.raises(SystemExit, match="a problem of 'choice' takes .* tokens"):
        exam.Skills(engine, [{**known, 'spoken': ['B', 'it is ' * 100]}], 30)


# ---- scores


@pytest.mark.parametrize('samples', [1, 2, 5, 8])
def test_pass_at_k_against_all_subsets_of_k_answers(samples):
    for right in range(samples + 1):
        answers = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            drawn = list(itertools.combinations(answers, k))
            assert exam.pass_at(samples, right, k) == pytest.approx(
                sum(map(any, drawn)) / len(drawn), abs=1e-12
            )


@pytest.mark.parametrize(
    'samples, ks', [(1, []), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])]
)
def test_a_tally_against_the_statistics_module(samples, ks):
    rng = random.Random(samples)
    attempts = []
    for i in range(30):
        grades = [rng.choice([0.0, 0.5, 1.0]) for _ in range(samples)]
        ended = [rng.random() < 0.8 for _ in range(samples)]
        attempts.append(exam.Attempt(PROBLEMS[i % 9], [''] * samples, grades, ended))
    score = exam.tally(attempts, samples)
    means = [statistics.fmean(made.grades) for made in attempts]
    assert score.problems == 30
    assert score.accuracy == pytest.approx(statistics.fmean(means), abs=1e-12)
    assert score.error == pytest.approx(2 * statistics.pstdev(means) / math.sqrt(30), abs=1e-12)
    assert score.ended == pytest.approx(
        statistics.fmean(end for made in attempts for end in made.ended), abs=1e-12
    )
    assert score.baseline == pytest.approx(
        statistics.fmean(tasks.baseline(made.problem) for made in attempts), abs=1e-12
    )
    # half a point does not count
    solved = [sum(grade == 1 for grade in made.grades) for made in attempts]
    assert score.passed == pytest.approx(
        {k: statistics.fmean(exam.pass_at(samples, count, k) for count in solved) for k in ks},
        abs=1e-12,
    )


def test_a_chosen_answer_has_no_ending():
    assert exam.tally([exam.Attempt(PROBLEMS[6], ['B'], [1.0], [])]).ended is None


def test_ranks_share_the_problems_and_have_the_same_score(engine, monkeypatch):
    """The ranks run one after the other; their sums are added by hand."""
    alone = attempt(engine, PROBLEMS, 30, samples=2, temperature=1.0, seed=3)
    expected = exam.tally(alone, 2)
    monkeypatch.setattr(runtime.dist, 'is_initialized', lambda: True)
    for world_size in (2, 4, 12):  # the last has ranks without a problem
        monkeypatch.setattr(runtime.dist, 'get_world_size', lambda n=world_size: n)
        shares = []
        for rank in range(world_size):
            monkeypatch.setattr(runtime.dist, 'get_rank', lambda r=rank: r)
            shares.append(attempt(engine, PROBLEMS, 30, samples=2, temperature=1.0, seed=3))
        key = lambda made: PROBLEMS.index(made.problem)
        assert sorted(itertools.chain(*shares), key=key) == alone
        assert all(
            key(made) % world_size == rank for rank, share in enumerate(shares) for made in share
        )
        assert tallies(shares, monkeypatch) == [expected] * world_size


def tallies(shares, monkeypatch):
    """The score on each rank: collect what all would add, then give each the sums."""
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(
            runtime, 'add_up', lambda numbers: said.append(numbers) or [1.0] * len(numbers)
        )
        for share in shares:
            exam.tally(share, 2)
        patch.setattr(runtime, 'add_up', lambda numbers: [sum(column) for column in zip(*said)])
        return [exam.tally(share, 2) for share in shares]


# ---- answers that are kept

SAMPLED = exam.How(30, 2, 1.0, 3)
GREEDY = exam.How(30)
ABOUT = ['0' * 64, 'cpu', 'float32']


@pytest.fixture
def questions(engine):
    return exam.read(engine, PROBLEMS)


@pytest.mark.parametrize('how', [GREEDY, SAMPLED])
def test_answers_are_found_again_on_any_number_of_ranks(
    engine, questions, tmp_path, monkeypatch, how
):
    """Two ranks answer; then one, two and three of them find all, and grade anew."""
    path = tmp_path / 'answers.jsonl'
    expected = exam.attempt(engine, questions, how)
    monkeypatch.setattr(runtime.dist, 'is_initialized', lambda: True)

    def share(rank, world_size):
        monkeypatch.setattr(runtime.dist, 'get_rank', lambda: rank)
        monkeypatch.setattr(runtime.dist, 'get_world_size', lambda: world_size)
        kept = exam.Kept(path, ABOUT, rank)
        return exam.attempt(engine, questions, how, kept)

    for rank in range(2):
        assert share(rank, 2) == expected[rank::2]
    assert {file.name for file in tmp_path.iterdir()} == {'answers.jsonl', 'answers.1.jsonl'}
    monkeypatch.setattr(exam, 'respond', lambda engine, waiting, how: iter(waiting and 1 / 0))
    for world_size in (1, 2, 3):
        shares = [share(rank, world_size) for rank in range(world_size)]
        assert shares == [expected[rank::world_size] for rank in range(world_size)]
    for name in tasks.GRADERS:
        monkeypatch.setitem(tasks.GRADERS, name, lambda problem, text: 0.25)
    assert {grade for made in share(0, 1) for grade in made.grades} == {0.25}


def test_an_answer_to_something_else_is_not_found(engine, questions, tmp_path):
    def kept(*about):
        return exam.Kept(tmp_path / 'answers.jsonl', about)

    for how in (GREEDY, SAMPLED):
        exam.attempt(engine, questions, how, kept(*ABOUT))
    text, choice = questions[0], questions[-1]
    know = kept(*ABOUT).get
    assert know(text, GREEDY) and know(text, SAMPLED) and know(choice, GREEDY)
    # 1) Another checkpoint, device, dtype; another question, other choices
    for i in range(3):
        other = [*ABOUT]
        other[i] = 'x'
        assert not kept(*other).get(text, GREEDY)
    assert not know(text._replace(prompt=text.prompt[1:]), GREEDY)
    assert not know(choice._replace(choices=choice.choices[1:]), GREEDY)
    # 2) Other settings, as far as they matter
    for name in exam.How._fields:
        changed = {name: getattr(SAMPLED, name) + 1}
        assert not know(text, SAMPLED._replace(**changed))
    assert not know(text._replace(number=100), SAMPLED)
    assert know(text._replace(number=100), GREEDY._replace(seed=9))
    assert know(choice, GREEDY._replace(max_tokens=5)) and not know(text, exam.How(5))


def test_lines_that_are_no_answers_do_not_count(engine, questions, tmp_path):
    path = tmp_path / 'answers.jsonl'
    path.write_bytes(b'\x00\xff\n[[[[\n{}\n7\n' + b'[' * 10**5 + b'\n{"checkpoint": "')
    kept = exam.Kept(path, ABOUT)
    assert kept.rows == {}
    expected = exam.attempt(engine, questions, GREEDY, kept)
    before = path.read_bytes()
    path.write_bytes(before[:-9])  # killed within the last line
    assert len(exam.Kept(path, ABOUT).rows) == len(questions) - 1
    assert exam.attempt(engine, questions, GREEDY, exam.Kept(path, ABOUT)) == expected
    assert path.read_bytes().startswith(before[:-9] + b'\n{')
    assert len(exam.Kept(path, ABOUT).rows) == len(questions)


def test_answers_that_cannot_be_kept_are_given_anyway(engine, questions, tmp_path, capsys):
    kept = exam.Kept(tmp_path / 'none' / 'answers.jsonl', ABOUT)
    expected = exam.attempt(engine, questions, GREEDY)
    assert exam.attempt(engine, questions, GREEDY, kept) == expected
    [line] = capsys.readouterr().err.splitlines()
    assert 'cannot be written' in line and 'start over' in line
