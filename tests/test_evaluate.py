"""
evaluate.py against naive counts: the same number for any batch size, number of ranks and number of
shards; and a tiny model that has learned its problems, against one forward pass per problem.
"""

import itertools
import json
import math
import random
import runpy
import statistics
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import checkpoint
import evaluate
import plan
import runtime
import tasks
from batches import Batch, Pairs, Shape, Stream
from conversation import SPECIAL, Chat
from engine import Engine
from model import GPT, PRESETS, GPTConfig
from shards import Data, Writer
from tokenizer import PATTERN, BPETokenizer, CharTokenizer, train_bpe
from tools import calculate

T = 8
BYTES = BPETokenizer(PATTERN, [], {'<|bos|>': 256})


def weighted_nll(model, batch):
    loss = (batch.weights * model(batch.inputs, batch.targets)).sum()
    return loss, {'rows': (batch.weights[:, 0] > 0).sum(), 'half': 0.5 * loss}


@pytest.fixture(scope='module')
def model():
    """A tiny model with random weights: every target has another loss."""
    small = dict(n_layer=1, n_head=2, n_embd=16, block_size=T, vocab_size=257)
    model = GPT(GPTConfig(**{**PRESETS['nano'], **small})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """The same 403 validation ids in 1, 2 and 41 shards: 50 rows, and two targets left over."""
    ids = np.random.default_rng(3).integers(0, 257, 403)
    found = {}
    for shard_tokens in (1000, 300, 10):
        folder = tmp_path_factory.mktemp('data')
        with Writer(folder, BYTES, shard_tokens) as out:
            out.write('train', ids[:20], 20)
            out.write('val', ids, 403)
        found[len(list(folder.glob('val*.bin')))] = folder
    return ids, found


def val(folder, batch_size=4, world_size=1, rank=0, limit=None, dtype=torch.float32):
    shape = Shape(0, batch_size, T, rank, world_size, dtype=dtype)
    return Stream(Data(folder).split('val'), shape, shuffle=False, limit=limit)


def naive_loss(model, ids, rows):
    """The mean negative log-likelihood of targets 1 to rows * T from the logits, row by row."""
    losses = []
    for k in range(rows):
        row = torch.tensor(ids[k * T : k * T + T + 1])
        with torch.no_grad():
            log_probs = F.log_softmax(model(row[None, :-1])[0].double(), dim=-1)
        losses += [-float(log_probs[t, row[t + 1]]) for t in range(T)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize('num_shards', [1, 2, 41])
@pytest.mark.parametrize('batch_size', [1, 7, 50, 1000])
@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_the_total_is_one_number(model, folders, num_shards, batch_size, world_size):
    ids, found = folders
    assert set(found) == {1, 2, 41}
    parts = [
        evaluate.total(
            model, weighted_nll, val(found[num_shards], batch_size, world_size, rank), 'cpu'
        )
        for rank in range(world_size)
    ]
    total = {name: sum(part[name] for part in parts) for name in parts[0]}
    expected = naive_loss(model, ids, 50)
    assert abs(total['loss'] - expected) < 1e-6
    assert abs(total['half'] - expected / 2) < 1e-6
    assert total['rows'] == 50


@pytest.mark.parametrize('limit', [1, 13])
def test_a_limit_takes_the_first_rows(model, folders, limit):
    ids, found = folders
    for folder in found.values():
        total = evaluate.total(model, weighted_nll, val(folder, limit=limit), 'cpu')['loss']
        assert abs(total - naive_loss(model, ids, limit)) < 1e-6


def test_a_total_needs_no_gradient_and_adds_up_in_float64(folders):
    """1,000 shares of 0.1 and one of 2**24: a float32 sum would lose them."""
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))
    weight = torch.ones((), requires_grad=True)
    shares = [2.0**24] + [0.1] * 1000

    def loss_fn(model, batch):
        assert not torch.is_grad_enabled()
        return torch.tensor(shares[len(seen)]) * weight, {'count': 1.0}

    seen = []

    def steps():
        for _ in shares:
            yield batch
            seen.append(batch)

    total = evaluate.total(None, loss_fn, [steps()], 'cpu')
    assert total == {'loss': pytest.approx(2.0**24 + 100, abs=1e-3), 'count': 1001.0}
    assert torch.is_grad_enabled()


# ---- bytes

TEXT = 'Größe: 3 €. 你好🌍!\nnaïve café — Ω≈ç√ and plain words, plain words again\n' * 5


def count_bytes(tokenizer, i):
    """The number of bytes of an id's text."""
    return len(tokenizer.decode_bytes([i]))


@pytest.mark.parametrize('tokenizer', [
    CharTokenizer(TEXT), BYTES, train_bpe([TEXT], 300, ['<|bos|>']),
], ids=['char', 'bytes', 'bpe'])  # fmt: skip
@pytest.mark.parametrize('world_size, batch_size', [(1, 4), (1, 1000), (3, 2)])
def test_bytes_per_target_against_a_naive_count(
    tmp_path, monkeypatch, tokenizer, world_size, batch_size
):
    ids = []
    for line in TEXT.splitlines(keepends=True):
        ids += [tokenizer.bos] * (tokenizer.bos is not None) + tokenizer.encode(line)
    with Writer(tmp_path, tokenizer) as out:
        out.write('train', ids, len(TEXT.encode()))
        out.write('val', ids, len(TEXT.encode()))
    targets = ids[1 : 1 + (len(ids) - 1) // T * T]
    size = sum(count_bytes(tokenizer, i) for i in targets)
    if type(tokenizer) is CharTokenizer:
        assert size == len(tokenizer.decode(targets).encode('utf-8'))
        assert size > len(targets)  # some characters have more than one byte
    sums = []  # what each rank adds to the sum over ranks
    monkeypatch.setattr(evaluate.runtime, 'add_up', lambda numbers: sums.append(numbers) or numbers)
    for rank in range(world_size):
        evaluate.bytes_per_target(
            val(tmp_path, batch_size, world_size, rank), tokenizer.bytes_per_id
        )
    assert [sum(column) for column in zip(*sums)] == [len(targets), size]
    if world_size == 1:
        reader = val(tmp_path, batch_size)
        found = evaluate.bytes_per_target(reader, tokenizer.bytes_per_id)
        assert found == size / len(targets)


def test_a_uniform_model_of_bytes_has_8_bits_per_byte():
    assert evaluate.bits_per_byte(math.log(256), 1.0) == pytest.approx(8, abs=1e-12)
    assert evaluate.bits_per_byte(math.log(256**3), 3.0) == pytest.approx(8, abs=1e-12)
    assert evaluate.bits_per_byte(math.log(2), 4.0) == pytest.approx(1 / 4, abs=1e-12)


def test_text_leaves_out_bits_per_byte_where_bytes_are_unknown(tmp_path):
    """A uniform model over bytes: ln 257 per target. A bos is a target of 0 bytes."""
    ids = [1, 2, 256, 3, 4, 5, 256, 6, 7] * 8
    for name in ('ours', 'nanogpt'):
        with Writer(tmp_path / name, BYTES) as out:
            out.write('train', ids, 1)
            out.write('val', ids, 1)
    for name in ('meta.json', 'tok.json'):
        (tmp_path / 'nanogpt' / name).unlink()

    def uniform(inputs, targets):
        return torch.full(targets.shape, math.log(257), dtype=torch.float64)

    answers = {}
    for name in ('ours', 'nanogpt'):
        reader = val(tmp_path / name, dtype=torch.float64)
        measure = evaluate.Text(uniform, weighted_nll, reader, Data(tmp_path / name), 'cpu')
        assert measure() == measure()
        answers[name] = measure()
    targets = ids[1 : 1 + (len(ids) - 1) // T * T]
    share = sum(i < 256 for i in targets) / len(targets)
    expected = {'val': math.log(257), 'perplexity': 257}
    assert answers['nanogpt'] == pytest.approx(expected, abs=1e-9)
    expected = math.log2(257) / share
    assert answers['ours'] == {
        **answers['nanogpt'],
        'bits_per_byte': pytest.approx(expected, abs=1e-12),
    }


def test_perplexity_of_a_huge_loss_does_not_overflow(tmp_path):
    with Writer(tmp_path, BYTES) as out:
        out.write('train', [1] * 20, 20)
        out.write('val', [1] * 20, 20)
    for nats in (1e6, math.inf, math.nan):
        model = lambda inputs, targets, nats=nats: torch.full(targets.shape, nats)
        found = evaluate.Text(model, weighted_nll, val(tmp_path), Data(tmp_path), 'cpu')()
        assert math.isnan(found['perplexity']) if math.isnan(nats) else found['perplexity'] > 1e300


def test_the_loss_of_a_stage_is_called_val(model, folders):
    reader = val(next(iter(folders[1].values())))
    expected = evaluate.total(model, weighted_nll, reader, 'cpu')
    found = evaluate.Total(model, weighted_nll, reader, 'cpu')()
    assert found == {'val': expected['loss'], 'half': expected['half'], 'rows': 50}


# ---- a tiny model that has learned its answers


def user(text):
    return [{'role': 'user', 'content': text}]


def part(kind, text):
    return {'type': kind, 'text': text}


def problem(skill, question, grader, answer, **more):
    return dict(
        split='val', skill=skill, messages=user(question), grader=grader, answer=answer, **more
    )


def choice(question, choices, answer):
    return problem(
        'choice', tasks.render_choice(question, choices), 'letter', answer, choices=choices
    )


KNOWN = [
    (problem('facts', 'Who is Anna?', 'contains', ['baker']), 'Anna is the baker.'),
    (problem('facts', 'Who is Ben?', 'contains', 'farmer', absent=['baker']), 'Ben is the farmer.'),
    (problem('facts', 'Who are you?', 'exact', 'I am Pip.'), 'I am Pip.'),
    (problem('spelling', 'Spell cat.', 'spelled', 'cat'), 'c-a-t'),
    (
        problem('sums', 'What is 12*7?', 'number', 84),
        [part('text', 'It is '), part('python', '12*7'), part('output', '84'), part('text', '84.')],
    ),
    (problem('sums', 'What is 1+1?', 'number', 2), 'That is 2.'),
    (choice('Snow?', ['red', 'white'], 'B'), 'B'),
    (choice('Grass?', ['green', 'white', 'red'], 'A'), 'A'),
    (choice('Coal?', ['green', 'white', 'red', 'black'], 'D'), 'D'),
]
TOKENIZER = train_bpe([json.dumps(KNOWN) + tasks.render_choice('', list('abcd'))], 360, SPECIAL)
CHAT = Chat(TOKENIZER)
PROBLEMS = [known for known, _ in KNOWN]


def tiny(block_size=96, seed=0):
    torch.manual_seed(seed)
    small = dict(
        n_layer=2, n_head=2, n_embd=32, block_size=block_size, vocab_size=TOKENIZER.vocab_size
    )
    return GPT(GPTConfig(**{**PRESETS['qwen3'], **small, 'init_std': 0.3}))


@pytest.fixture(scope='module')
def trained():
    """A model trained on the nine conversations until its loss on the answers is near 0. In float64
    afterwards, where the rounding that depends on a batch's shape is too small to turn a draw."""
    model, rows = tiny(), []
    for known, said in KNOWN:
        ids = CHAT.render([*known['messages'], {'role': 'assistant', 'content': said}])
        rows.append((ids, CHAT.is_spoken(ids)))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    weights = torch.tensor(
        [[*spoken, *[False] * (longest - 1 - len(spoken))] for _, spoken in rows]
    ).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = (weights * model(ids[:, :-1], ids[:, 1:])).sum() / weights.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    assert loss < 0.01
    return model.double()


@pytest.fixture
def engine(trained):
    return Engine(trained, TOKENIZER, CHAT, calculate)


def attempt(engine, problems, *how, **more):
    return evaluate.attempt(engine, evaluate.read(engine, problems), evaluate.How(*how, **more))


def test_a_model_that_knows_all_answers_scores_1(trained, engine):
    trained.train()
    measure = evaluate.Skills(engine, PROBLEMS, 30)
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

    numbers = evaluate.Skills(engine, [*prompts, PROBLEMS[3]], 30, reward=reward)()
    assert numbers == {PROBLEMS[3]['skill']: 1, 'mean': 1, 'reward': 2.0}
    assert asked == [(prompts, [said for _, said in KNOWN[:3]])]
    assert evaluate.Skills(engine, prompts, 30, reward=reward)() == {'reward': 2.0}


def test_wrong_answers_are_counted(engine):
    """Half of the facts have another answer. 'choice' counts (2/3 - b) / (1 - b) in the mean, where
    b, the mean of 1/2, 1/3 and 1/4, is what guessing scores."""
    wrong = [{**known, 'answer': 'zebra'} for known in PROBLEMS[:3]]
    changed = [*PROBLEMS[:3], *wrong, *PROBLEMS[3:6], {**PROBLEMS[6], 'answer': 'A'}, *PROBLEMS[7:]]
    numbers = evaluate.Skills(engine, changed, 30)()
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
    questions = [q._replace(number=q.number + first) for q in evaluate.read(engine, problems)]
    found = {q.number: samples for q, samples in evaluate.generated(engine, questions, how)}
    return [found[q.number] for q in questions]


def test_each_answer_comes_from_its_own_stream(engine):
    """They depend neither on the other problems nor on the number of rows."""
    how = evaluate.How(12, 3, 1.5, 5)
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
    greedy = generate(engine, PROBLEMS[:3], evaluate.How(30))
    assert [s.text for (s,) in greedy] == ['Anna is the baker.', 'Ben is the farmer.', 'I am Pip.']


def test_no_skill_takes_the_name_of_another_number(engine):
    for name in ('val', 'value', 'mean', 'step', 'loss', 'accuracy', 'reward', 'text'):
        with pytest.raises(SystemExit, match=f"a skill is named '{name}'"):
            evaluate.Skills(engine, [{**PROBLEMS[0], 'skill': name}], 30)
    assert evaluate.Skills(engine, [], 30)() == {}


def test_a_question_beyond_the_context_is_named_first(engine):
    long = problem('facts', 'who ' * 100, 'exact', 'me')
    told = "a problem of 'facts' takes .* tokens .*who who.*, expected at most the 96"
    with pytest.raises(SystemExit, match=told):
        evaluate.Skills(engine, [*PROBLEMS, long], 30)


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
    scored = evaluate.likelihoods(engine, evaluate.read(engine, problems))
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
    monkeypatch.setattr(evaluate, 'PREFILL_TOKENS', 200)
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
        evaluate.read(Engine(model, CharTokenizer('A1'), CHAT), [choice('Snow?', ['1', 'A'], 'B')])


def test_a_choice_beyond_the_context_is_named(engine):
    known = choice('Snow?', ['red', 'white'], 'B')
    evaluate.Skills(engine, [known], 30)
    with pytest.raises(SystemExit, match="a problem of 'choice' takes .* tokens"):
        evaluate.Skills(engine, [{**known, 'spoken': ['B', 'it is ' * 100]}], 30)


# ---- scores


@pytest.mark.parametrize('samples', [1, 2, 5, 8])
def test_pass_at_k_against_all_subsets_of_k_answers(samples):
    for right in range(samples + 1):
        answers = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            drawn = list(itertools.combinations(answers, k))
            assert evaluate.pass_at(samples, right, k) == pytest.approx(
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
        attempts.append(evaluate.Attempt(PROBLEMS[i % 9], [''] * samples, grades, ended))
    score = evaluate.tally(attempts, samples)
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
        {k: statistics.fmean(evaluate.pass_at(samples, count, k) for count in solved) for k in ks},
        abs=1e-12,
    )


def test_a_chosen_answer_has_no_ending():
    assert evaluate.tally([evaluate.Attempt(PROBLEMS[6], ['B'], [1.0], [])]).ended is None


def test_ranks_share_the_problems_and_have_the_same_score(engine, monkeypatch):
    """The ranks run one after the other; their sums are added by hand."""
    alone = attempt(engine, PROBLEMS, 30, samples=2, temperature=1.0, seed=3)
    expected = evaluate.tally(alone, 2)
    monkeypatch.setattr(evaluate.dist, 'is_initialized', lambda: True)
    for world_size in (2, 4, 12):  # the last has ranks without a problem
        monkeypatch.setattr(evaluate.dist, 'get_world_size', lambda n=world_size: n)
        shares = []
        for rank in range(world_size):
            monkeypatch.setattr(evaluate.dist, 'get_rank', lambda r=rank: r)
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
            evaluate.runtime, 'add_up', lambda numbers: said.append(numbers) or [1.0] * len(numbers)
        )
        for share in shares:
            evaluate.tally(share, 2)
        patch.setattr(
            evaluate.runtime, 'add_up', lambda numbers: [sum(column) for column in zip(*said)]
        )
        return [evaluate.tally(share, 2) for share in shares]


# ---- answers that are kept

SAMPLED = evaluate.How(30, 2, 1.0, 3)
GREEDY = evaluate.How(30)
ABOUT = ['0' * 64, 'cpu', 'float32']


@pytest.fixture
def questions(engine):
    return evaluate.read(engine, PROBLEMS)


@pytest.mark.parametrize('how', [GREEDY, SAMPLED])
def test_answers_are_found_again_on_any_number_of_ranks(
    engine, questions, tmp_path, monkeypatch, how
):
    """Two ranks answer; then one, two and three of them find all, and grade anew."""
    path = tmp_path / 'answers.jsonl'
    expected = evaluate.attempt(engine, questions, how)
    monkeypatch.setattr(evaluate.dist, 'is_initialized', lambda: True)

    def share(rank, world_size):
        monkeypatch.setattr(evaluate.dist, 'get_rank', lambda: rank)
        monkeypatch.setattr(evaluate.dist, 'get_world_size', lambda: world_size)
        kept = evaluate.Kept(path, ABOUT, rank)
        return evaluate.attempt(engine, questions, how, kept)

    for rank in range(2):
        assert share(rank, 2) == expected[rank::2]
    assert {file.name for file in tmp_path.iterdir()} == {'answers.jsonl', 'answers.1.jsonl'}
    monkeypatch.setattr(evaluate, 'respond', lambda engine, waiting, how: iter(waiting and 1 / 0))
    for world_size in (1, 2, 3):
        shares = [share(rank, world_size) for rank in range(world_size)]
        assert shares == [expected[rank::world_size] for rank in range(world_size)]
    for name in tasks.GRADERS:
        monkeypatch.setitem(tasks.GRADERS, name, lambda problem, text: 0.25)
    assert {grade for made in share(0, 1) for grade in made.grades} == {0.25}


def test_an_answer_to_something_else_is_not_found(engine, questions, tmp_path):
    def kept(*about):
        return evaluate.Kept(tmp_path / 'answers.jsonl', about)

    for how in (GREEDY, SAMPLED):
        evaluate.attempt(engine, questions, how, kept(*ABOUT))
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
    for name in evaluate.How._fields:
        changed = {name: getattr(SAMPLED, name) + 1}
        assert not know(text, SAMPLED._replace(**changed))
    assert not know(text._replace(number=100), SAMPLED)
    assert know(text._replace(number=100), GREEDY._replace(seed=9))
    assert know(choice, GREEDY._replace(max_tokens=5)) and not know(text, evaluate.How(5))


def test_lines_that_are_no_answers_do_not_count(engine, questions, tmp_path):
    path = tmp_path / 'answers.jsonl'
    path.write_bytes(b'\x00\xff\n[[[[\n{}\n7\n' + b'[' * 10**5 + b'\n{"checkpoint": "')
    kept = evaluate.Kept(path, ABOUT)
    assert kept.rows == {}
    expected = evaluate.attempt(engine, questions, GREEDY, kept)
    before = path.read_bytes()
    path.write_bytes(before[:-9])  # killed within the last line
    assert len(evaluate.Kept(path, ABOUT).rows) == len(questions) - 1
    assert evaluate.attempt(engine, questions, GREEDY, evaluate.Kept(path, ABOUT)) == expected
    assert path.read_bytes().startswith(before[:-9] + b'\n{')
    assert len(evaluate.Kept(path, ABOUT).rows) == len(questions)


def test_answers_that_cannot_be_kept_are_given_anyway(engine, questions, tmp_path, capsys):
    kept = evaluate.Kept(tmp_path / 'none' / 'answers.jsonl', ABOUT)
    expected = evaluate.attempt(engine, questions, GREEDY)
    assert evaluate.attempt(engine, questions, GREEDY, kept) == expected
    [line] = capsys.readouterr().err.splitlines()
    assert 'cannot be written' in line and 'start over' in line


# ---- the reference of DPO


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """Seven pairs of unequal lengths."""
    folder, rng, documents = tmp_path_factory.mktemp('dpo'), random.Random(4), []
    for i in range(14):
        said = ' '.join(rng.choice(['baker', 'farmer', 'Anna']) for _ in range(rng.randint(1, 9)))
        documents.append(
            CHAT.render([*user(f'Who is {i // 2}?'), {'role': 'assistant', 'content': said}])
        )
    with Writer(folder, TOKENIZER) as out:
        for split in ('train', 'val'):
            for ids in documents:
                out.write(split, ids, 1)
    return folder, documents


@pytest.mark.parametrize('batch_size, world_size', [(2, 1), (4, 1), (100, 1), (2, 3), (4, 2)])
def test_log_probabilities_against_one_forward_per_document(pairs, batch_size, world_size):
    folder, documents = pairs
    model = tiny(seed=2).double().eval()
    expected = []
    for ids in documents:
        with torch.no_grad():
            log_probs = F.log_softmax(model(torch.tensor([ids[:-1]]))[0], dim=-1)
        expected.append(
            sum(float(log_probs[t, ids[t + 1]]) for t in CHAT.is_spoken(ids).nonzero()[0])
        )
    shares = []
    for rank in range(world_size):
        shape = Shape(4, batch_size, 96, rank, world_size, dtype=torch.float64)
        reader = Pairs(Data(folder).split('train'), CHAT, shape)
        shares.append(evaluate.log_probabilities(model, reader, 'cpu'))
    found = [sum(column) for column in zip(*shares)]
    assert found == pytest.approx(expected, abs=1e-10)
    # each row belongs to one rank
    assert all(sum(x != 0 for x in column) == 1 for column in zip(*shares))


# ---- the program


@pytest.fixture(scope='module')
def run_folder(trained, tmp_path_factory):
    """A checkpoint, problems of both splits, and a data folder with its tokenizer."""
    folder = tmp_path_factory.mktemp('run')
    state = dict(
        model=trained.state_dict(), model_config=vars(trained.config),
        tokenizer=TOKENIZER.to_dict(), stage='sft',
        step=7, config={'dataset': 'no_such_data'},
    )  # fmt: skip
    checkpoint.save(folder / 'ckpt.pt', state)
    plain = CharTokenizer('ab')
    small = tiny().config
    small.vocab_size = plain.vocab_size
    checkpoint.save(folder / 'plain.pt', {
        **state, 'model': GPT(small).state_dict(), 'model_config': vars(small),
        'tokenizer': plain.to_dict(),
    })  # fmt: skip
    lines = [
        json.dumps({**known, 'split': split}) for split in ('train', 'val') for known in PROBLEMS
    ]
    (folder / 'problems.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    for name, tokenizer in dict(data=TOKENIZER, plain=plain).items():
        with Writer(folder / name, tokenizer) as out:
            for split in ('train', 'val'):
                out.write(split, tokenizer.encode('ab' * 300), 600)
    return folder


@pytest.fixture
def given(run_folder):
    """given('--a=b') -> (the program's arguments for this checkpoint, path of its numbers)."""

    def arguments(*more):
        path = run_folder / 'numbers.json'
        for file in [path, *run_folder.glob('answers*')]:
            file.unlink(missing_ok=True)
        of_run = [
            f'--out_dir={run_folder}',
            f'--problems={run_folder / "problems.jsonl"}',
            f'--json={path}',
        ]
        return [*of_run, *more], path

    return arguments


@pytest.fixture
def table(given, monkeypatch, capsys):
    """
    table('--a=b') -> (stdout, numbers of --json).

    Runs in this process: a short program spends most of its time on imports.
    """

    def run(*args):
        arguments, path = given(*args)
        # These would change the process for other tests
        monkeypatch.setattr(evaluate.runtime, 'set_up', lambda *args, **more: None)
        monkeypatch.setattr(evaluate.runtime, 'explain_out_of_memory', lambda *args: None)
        monkeypatch.setattr('sys.argv', ['evaluate.py', *arguments])
        capsys.readouterr()
        runpy.run_path(evaluate.__file__, run_name='__main__')
        return capsys.readouterr().out, json.loads(path.read_text(encoding='utf-8'))

    return run


def test_the_table_of_a_checkpoint(table, run_folder):
    out, numbers = table(
        '--show=1', '--max_new_tokens=30', f'--data={run_folder / "data"}', '--batch_size=3'
    )
    found = numbers['skills'].items()
    assert {name: (s['problems'], s['accuracy'], s['ended']) for name, s in found} == {
        'facts': (3, 1, 1), 'spelling': (1, 1, 1), 'sums': (2, 1, 1), 'choice': (3, 1, None),
    }  # fmt: skip
    assert numbers['mean'] == 1 and numbers['step'] == 7
    assert numbers['perplexity'] == pytest.approx(math.exp(numbers['val']))
    assert numbers['bits_per_byte'] > 0
    rows = [row.split() for row in out.splitlines()]
    assert ['facts', '3', '100.0%', '0.0%', '100.0%'] in rows
    assert ['choice', '3', '100.0%', '0.0%', '-'] in rows
    for text in (
        'user: Who is Anna?',
        'assistant: Anna is the baker.\n-> 1',
        'It is <<12*7=84>>84.',
        '- white=B',
    ):
        assert text in out
    assert 'Who is Ben?' not in out  # one of each skill is shown


def test_the_text_of_a_problem_moves_no_cursor(table, tmp_path):
    messages = [{'role': 'user', 'content': 'Who is \x1b[2JAnna?'}]
    wild = {**PROBLEMS[0], 'split': 'val', 'skill': 'wild\x07', 'messages': messages}
    (tmp_path / 'problems.jsonl').write_text(json.dumps(wild), encoding='utf-8')
    out, numbers = table(
        f'--problems={tmp_path / "problems.jsonl"}', '--show=1', '--max_new_tokens=5'
    )
    assert 'user: Who is [2JAnna?' in out and not set('\x1b\x07') & set(out)
    assert list(numbers['skills']) == ['wild\x07']


def test_an_answer_of_0_is_shown_too():
    for answer, shown in (
        (0, ' (the answer: 0)'),
        ('Anna', ' (the answer: Anna)'),
        (None, ''),
        ('', ''),
    ):
        problem = dict(
            skill='sums', messages=[dict(role='user', content='What is 3 - 3?')], answer=answer
        )
        text = evaluate.verbatim(evaluate.Attempt(problem, ['It is 0.'], [1.0], [True]))
        assert text.endswith(f'-> 1{shown}\n')


def test_limit_1_works_on_every_task(given, run_program, run_folder):
    arguments, path = given('--limit=1', '--max_new_tokens=30')
    run_program('evaluate.py', *arguments, cwd=run_folder)
    assert {
        name: (score['problems'], score['accuracy'])
        for name, score in json.loads(path.read_text(encoding='utf-8'))['skills'].items()
    } == {name: (1, 1) for name in ('facts', 'spelling', 'sums', 'choice')}


@pytest.mark.parametrize('sampled', [[], ['--num_samples=2', '--temperature=1.5']])
def test_a_killed_evaluation_continues(table, run_folder, tmp_path, monkeypatch, sampled):
    more = [*sampled, f'--answers={tmp_path / "a.jsonl"}', '--max_new_tokens=20', '--batch_size=2']
    more.append('--dtype=float64')
    _, undisturbed = table(*more)
    whole = (tmp_path / 'a.jsonl').read_bytes()
    (tmp_path / 'a.jsonl').unlink()
    append = evaluate.disk.append_line
    lines = []

    def killed(path, row):
        if len(lines) == 4:
            raise KeyboardInterrupt
        lines.append(row)
        append(path, row)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.disk, 'append_line', killed)
        with pytest.raises(SystemExit, match='^130$'):
            table(*more)
    out, continued = table(*more)
    assert 'a.jsonl: has 4 of 9 answers' in out
    assert continued == undisturbed
    assert (tmp_path / 'a.jsonl').read_bytes() == whole


def test_scores_are_appended_for_the_report(table, run_folder):
    path = run_folder / 'scores.jsonl'
    path.unlink(missing_ok=True)
    expected = [table('--limit=1')[1], table('--limit=2', '--skills=facts')[1]]
    assert evaluate.disk.read_lines(path) == expected
    assert [row['skills']['facts']['problems'] for row in expected] == [1, 2]


def test_a_question_beyond_the_context_counts_as_wrong(table, tmp_path):
    long = problem('facts', 'who ' * 100, 'exact', 'me')
    path = tmp_path / 'problems.jsonl'
    rows = [PROBLEMS[0], long, {**PROBLEMS[6], 'skill': 'facts'}]
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    out, numbers = table(f'--problems={path}', '--max_new_tokens=30')
    assert numbers['skills']['facts']['accuracy'] == pytest.approx(2 / 3)
    assert 'facts: 1 of 3 problems are longer than the 96 tokens' in out


def test_a_skill_that_cannot_be_graded_here_is_reported(table, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.sandbox, 'why_unavailable', lambda: 'no sand')
    path = tmp_path / 'problems.jsonl'
    code = dict(entry_point='f', calls=[[[], 1]])
    rows = [problem('humaneval', 'def f():', 'code', 'pass', **code), PROBLEMS[0]]
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    out, numbers = table(f'--problems={path}', '--max_new_tokens=30')
    assert list(numbers['skills']) == ['facts'] and numbers['mean'] == 1
    assert 'no sand' in numbers['not_run']['humaneval']
    assert 'humaneval            not run: the answers are programs' in out
    # alone: no score, no error
    out, numbers = table(f'--problems={path}', '--skills=humaneval')
    assert numbers['skills'] == {} and 'mean' not in numbers and 'not run: ' in out


@pytest.mark.slow
def test_two_ranks_print_the_table_of_one(table, given, run_program, run_folder):
    more = [
        '--num_samples=4',
        '--temperature=1.5',
        '--max_new_tokens=20',
        '--dtype=float64',
        '--batch_size=8',
    ]
    more.append(f'--data={run_folder / "data"}')
    out, alone = table(*more)
    arguments, path = given(*more)
    done = run_program('evaluate.py', *arguments, ranks=2, cwd=run_folder)
    shared = json.loads(path.read_text(encoding='utf-8'))
    assert out == done.stdout and 'pass@4' in out
    assert list(alone['skills']) == list(shared['skills'])
    for name, score in alone['skills'].items():
        assert shared['skills'][name].pop('passed') == pytest.approx(score.pop('passed'), abs=1e-12)
        assert shared['skills'][name] == pytest.approx(score, abs=1e-12)
        assert 0 <= score['accuracy'] <= 1
    assert shared['val'] == pytest.approx(alone['val'], abs=1e-10)


def test_wrong_settings_are_named(table, run_folder):
    for more, said in [
        (['--out_dir=none'], 'there is no checkpoint none/ckpt.pt'),
        (['--skills=facts,fact'], "no skill 'fact'"),
        (['--split=test'], "no problems in its split 'test'"),
        (['--num_samples=4'], 'num_samples is 4 at temperature 0'),
        (['--limit=-1'], 'limit is -1, expected at least'),
        ([f'--answers={run_folder / "problems.jsonl"}'], 'was not written by evaluate.py'),
        (['--problems=acr'], "problems is 'acr', expected a .jsonl file"),
        # before the model is loaded
        (['--out_dir=none', '--answers=no/such/x.jsonl'], 'no/such/x.jsonl cannot be written'),
        (['--out_dir=none', '--seed=-1'], 'seed is -1, expected at least 0'),
        (['--out_dir=none', '--json=no/such/x.json'], 'no/such/x.json cannot be written'),
        ([f'--out_dir={run_folder / "plain.pt"}'], '<|user_start|>'),
        (
            [f'--data={run_folder / "plain"}'],
            f'another tokenizer than {(run_folder / "ckpt.pt").as_posix()}; prepare',
        ),
    ]:  # fmt: skip
        with pytest.raises(SystemExit) as error:
            table(*more)
        assert said in str(error.value).replace('\\', '/') and '\n' not in str(error.value)


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have Unicode file names')
def test_the_numbers_are_written_whatever_the_folder_is_called(
    table, run_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'out' / 'caf\udce9'  # a byte of Latin-1
    folder.mkdir(parents=True)
    (folder / 'ckpt.pt').write_bytes((run_folder / 'ckpt.pt').read_bytes())
    _, numbers = table('--out_dir=', '--limit=1', '--max_new_tokens=1')  # the newest
    assert numbers['checkpoint'] == 'out/caf\ufffd/ckpt.pt'


def test_a_model_that_cannot_chat_still_has_its_loss(table, run_folder):
    out, numbers = table(
        f'--out_dir={run_folder / "plain.pt"}', '--problems=', f'--data={run_folder / "plain"}'
    )
    assert numbers['skills'] == {} and numbers['val'] > 0
    assert 'val ' in out and 'skill' not in out.replace(str(run_folder), '')


def test_micro_batches_of_text_are_as_small_as_in_training(model, folders, monkeypatch):
    ids, found = folders
    seen = []
    handle = model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    # 50 rows in 25 micro-batches, and in 2 of at most 40
    for rows, largest in ((2, 2), (10**9, 25)):
        monkeypatch.setattr(plan, 'cpu_rows', lambda config, rows=rows: rows)
        seen.clear()
        numbers = evaluate.text_numbers(model, Data(found[1]), 'val', 40, 'cpu', runtime.Ranks())
        assert numbers['val'] == pytest.approx(naive_loss(model, ids, 50), abs=1e-6)
        assert max(seen) == largest
    handle.remove()


def test_problems_of_several_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, '__file__', str(tmp_path / 'evaluate.py'))
    data = tmp_path / 'data'
    for name in ('arc', 'mmlu', 'spelling/small'):
        (data / name).mkdir(parents=True)
        (data / name / 'prepare.py').write_text('', encoding='utf-8')
    for name in ('arc', 'spelling/small'):
        (data / name / 'problems.jsonl').write_text('', encoding='utf-8')
    files = [data / 'arc/problems.jsonl', data / 'spelling/small/problems.jsonl']
    assert evaluate.find_problems('') == ([], {})
    assert evaluate.find_problems('arc, spelling/small,arc') == (files, {})
    found, missing = evaluate.find_problems(f'mmlu,{files[1]}')
    assert found == files[1:]
    assert missing == {'mmlu': 'no problems.jsonl yet; run: python data/mmlu/prepare.py'}
    with pytest.raises(SystemExit, match='^mmlu: no problems.jsonl yet; run: python data/mmlu/'):
        evaluate.find_problems('mmlu')
    with pytest.raises(SystemExit, match="problems is 'acr', expected a .jsonl file, or a set of"):
        evaluate.find_problems('arc,acr')


def test_problems_are_found_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, '__file__', str(tmp_path / 'evaluate.py'))
    data = tmp_path / 'data'
    for name in ('tinyworld/sft', 'mine', 'bare'):
        (data / name).mkdir(parents=True)
    for name in ('tinyworld', 'mine'):
        (data / name / 'problems.jsonl').write_text('', encoding='utf-8')
    for dataset, name in {
        'tinyworld/sft': 'tinyworld', 'mine': 'mine', 'bare': 'tinyworld', '': 'tinyworld',
        'bare,mine:3': 'mine',
        str(data / 'mine'): 'mine',
    }.items():  # fmt: skip
        assert evaluate.problems_beside(dataset) == data / name / 'problems.jsonl'
