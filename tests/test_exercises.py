"""
The graders of dev/exercise.py's ten exercises. The tests of an exercise are those whose name begins
with its name; each calls one function of the repository and compares it with an oracle: torch,
tiktoken, or the definition written out.

Their messages are for those who write the function again: the input, what was expected, what came,
and where to read.
"""

import math

import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F
from conftest import LINES
from exercise import EXERCISES

import train
from batches import Batch, advantage, best_fit
from cache import BLOCK, KVCache
from conversation import CHATML, SPECIAL, Chat
from model import GPTConfig, Norm, rotate
from optim import MARGIN, POLAR_EXPRESS, orthogonalize
from sampling import Sampling
from tokenizer import BPETokenizer, parts_before, train_bpe


def as_array(x):
    """x as numbers; None if it has none."""
    try:
        return np.asarray(x.tolist() if hasattr(x, 'tolist') else x, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def difference(got, expected, atol):
    """What is wrong with `got`, in lines; [] if it is close to `expected`. Texts must be equal."""
    if got is None:
        return ['got None: is a return missing?']
    want, have = as_array(expected), as_array(got)
    if want is None or have is None:
        same = repr(got) == repr(expected)
        return [] if same else [f'expected  {expected!r}', f'got       {got!r}']
    if want.shape != have.shape:
        return [f'expected  the shape {want.shape}', f'got       the shape {have.shape}']
    wrong = ~np.isclose(have, want, rtol=0, atol=atol)
    if not wrong.any():
        return []
    if want.size > 16:
        first = tuple(np.argwhere(wrong)[0].tolist())
        where = f'at {list(first)}, the first of {wrong.sum()} wrong numbers of {wrong.size}'
        return [where, f'expected  {want[first]:.6g}', f'got       {have[first]:.6g}']
    return [f'expected  {shown(want)}', f'got       {shown(have)}']


def shown(numbers):
    text = np.array2string(numbers, separator=', ', formatter={'float': '{:.6g}'.format})
    return ' '.join(text.split())


@pytest.fixture
def check(request):
    """check(case, got, expected): fail with a message that teaches, unless the two are close."""
    test = request.node.name.removeprefix('test_')
    name = next(name for name in EXERCISES if test.startswith(name))

    def compare(case, got, expected, atol=1e-5):
        wrong = difference(got, expected, atol)
        if wrong:
            read = f'read docs/exercises.md#{name}'
            pytest.fail('\n    '.join([case, *wrong, read]), pytrace=False)

    return compare


def test_the_message_of_a_failure_teaches():
    """Of anything that a wrong function may return."""
    assert difference(torch.tensor([1.0, 2.0]), [1, 2], 1e-5) == []
    assert difference([b'a'], [b'a'], 0) == []
    assert 'return' in difference(None, [1.0], 0)[0]
    assert difference(torch.ones(2), [[1, 1]], 0)[1] == 'got       the shape (2,)'
    assert difference('x', [1.0], 0) == ['expected  [1.0]', "got       'x'"]
    assert difference([0, 1.5], [1, 2], 0) == ['expected  [1, 2]', 'got       [0, 1.5]']
    assert difference([[1], [1, 2]], [1.0], 0)[0] == 'expected  [1.0]'
    assert difference([math.nan], [1.0], 0)[1] == 'got       [nan]'
    many = np.zeros((2, 9))
    assert (
        'at [1, 8], the first of 1'
        in difference(many, many + (np.arange(18) == 17).reshape(2, 9), 0)[0]
    )


# -----------------------------------------------------------------------------
# 1 rmsnorm


def test_rmsnorm_divides_by_the_root_of_the_mean_square(check):
    norm = Norm(2, 'rms', eps=0.0)
    case = 'Norm(2, "rms", eps=0) of [3, 4], whose mean square is (9 + 16) / 2 = 12.5'
    check(case, norm(torch.tensor([3.0, 4.0])), [3 / 12.5**0.5, 4 / 12.5**0.5])


def test_rmsnorm_adds_eps_to_the_mean_square(check):
    norm = Norm(2, 'rms', eps=3.0)
    case = 'Norm(2, "rms", eps=3) of [1, 1]: eps is added to the mean square, before the root'
    check(case, norm(torch.tensor([1.0, 1.0])), [0.5, 0.5])


def test_rmsnorm_multiplies_by_the_gain(check):
    norm = Norm(2, 'rms_gain', eps=0.0)
    norm.weight.data = torch.tensor([2.0, -1.0])
    case = 'Norm(2, "rms_gain", eps=0) of [1, 1] with weight [2, -1]'
    check(case, norm(torch.tensor([1.0, 1.0])), [2, -1])


def test_rmsnorm_treats_every_vector_by_itself(check):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    check(
        'x (2, 3, 8) against torch.nn.RMSNorm',
        Norm(8, 'rms', 1e-6)(x),
        torch.nn.RMSNorm(8, 1e-6)(x),
    )


def test_rmsnorm_of_the_kind_layer_is_layer_norm(check):
    norm = Norm(8, 'layer', 1e-5, bias=True)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    norm.weight.data, norm.bias.data = torch.arange(8.0), torch.ones(8)
    expected = F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-5)
    check('Norm(8, "layer", 1e-5, bias=True) against F.layer_norm', norm(x), expected)


# -----------------------------------------------------------------------------
# 2 advantage


def test_advantage_is_the_reward_minus_the_mean(check):
    case = 'one question, four answers, rewards [1, 0, 0, 0]: their mean is 0.25'
    check(case, advantage(np.array([[1.0, 0, 0, 0]])), [[0.75, -0.25, -0.25, -0.25]])


def test_advantage_compares_with_answers_to_the_same_question(check):
    case = 'two questions: [1, 0] has the mean 0.5, [0.2, 0.6] the mean 0.4'
    check(case, advantage(np.array([[1.0, 0], [0.2, 0.6]])), [[0.5, -0.5], [-0.2, 0.2]])


def test_advantage_is_not_divided_by_the_standard_deviation(check):
    case = 'rewards [0.5, 0.6]: close rewards stay close (Dr. GRPO)'
    check(case, advantage(np.array([[0.5, 0.6]])), [[-0.05, 0.05]])


def test_advantage_of_equal_rewards_is_exactly_zero(check):
    case = 'three rewards of 0.1: their mean is 0.10000000000000002, the advantage must still be 0'
    check(case, advantage(np.full((1, 3), 0.1)), [[0.0, 0.0, 0.0]], atol=0)


# -----------------------------------------------------------------------------
# 3 rope


def test_rope_rotates_a_pair(check):
    x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    quarter = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    case = 'x = [1, 0], cos = 0, sin = 1: a quarter turn, counter-clockwise'
    check(case, rotate(x, *quarter).flatten(), [0, 1])


def test_rope_pairs_the_halves(check):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    cos, sin = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    case = 'x = [1, 2, 3, 4], cos = [1, 0], sin = [0, 1]: (1, 3) stays, (2, 4) makes a quarter turn'
    check(case, rotate(x, cos, sin).flatten(), [1, -4, 3, 2])


def test_rope_is_a_product_of_complex_numbers(check):
    """x (2, 3, 4, 8); the point (a, b) is a + ib."""
    rng = torch.Generator().manual_seed(0)
    x, angle = torch.randn(2, 3, 4, 8, generator=rng), torch.randn(1, 3, 1, 4, generator=rng)
    a, b = x.chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    case = 'random x (2, 3, 4, 8): as complex numbers, each pair times exp(i * angle)'
    check(case, rotate(x, angle.cos(), angle.sin()), expected)


def test_rope_makes_scores_depend_on_the_distance(check):
    rng = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=rng)
    angle = torch.tensor([0.9, 0.5, 0.3, 0.1]).view(1, 1, 1, 4)
    at = lambda x, place: rotate(x, (place * angle).cos(), (place * angle).sin())
    case = 'the product of q at 7 and k at 4 is that of q at 3 and k at 0'
    check(case, (at(q, 7) * at(k, 4)).sum(), (at(q, 3) * k).sum())


# -----------------------------------------------------------------------------
# 4 dpo

LOGP = [-3.0, -5.0, -4.0, -1.0]  # of four answers: chosen, rejected, chosen, rejected
REFERENCE = [-4.0, -4.5, -3.5, -2.0]


def preferences(monkeypatch, reference=REFERENCE):
    """(batch of two pairs, model). An answer is two tokens, of which the model gives each half of
    LOGP; the third target is the prompt's and has weight 0."""
    monkeypatch.setattr(train, 'dpo_beta', 0.5)
    weights = torch.tensor([[0.0, 1.0, 1.0]]).expand(4, 3)
    nll = -torch.tensor(LOGP)[:, None].expand(4, 3) / 2
    nll = nll.clone().requires_grad_()
    batch = Batch(None, None, weights, torch.full((4,), 0.5), torch.tensor(reference))
    return batch, lambda inputs, targets: nll, nll


def margin(i):
    """beta times the gain in log-probability over the reference, chosen minus rejected."""
    chosen, rejected = (LOGP[j] - REFERENCE[j] for j in (2 * i, 2 * i + 1))
    return 0.5 * (chosen - rejected)


PAIRS = f'beta 0.5, log-probabilities {LOGP} of chosen, rejected, …; of the reference {REFERENCE}'


def test_dpo_starts_at_ln_2(check, monkeypatch):
    batch, model, _ = preferences(monkeypatch, reference=LOGP)
    loss, _ = train.preference_loss(model, batch) or (None, None)
    check('a model that equals its reference: -ln sigmoid(0)', loss, math.log(2))


def test_dpo_is_the_formula_of_the_paper(check, monkeypatch):
    batch, model, _ = preferences(monkeypatch)
    loss, _ = train.preference_loss(model, batch) or (None, None)
    expected = sum(0.5 * math.log(1 + math.exp(-margin(i))) for i in range(2))
    check(f'{PAIRS}; each pair has the share 0.5 of the step', loss, expected)


def test_dpo_reports_accuracy_margin_and_probabilities(check, monkeypatch):
    batch, model, _ = preferences(monkeypatch)
    _, metrics = train.preference_loss(model, batch) or (None, {})
    expected = dict(
        accuracy=0.5, margin=(margin(0) + margin(1)) / 2, logp_chosen=-3.5, logp_rejected=-3.0
    )
    for name, number in expected.items():
        check(f'metrics[{name!r}], the mean of the two pairs; {PAIRS}', metrics.get(name), number)


def test_dpo_raises_the_chosen_answer_and_lowers_the_other(check, monkeypatch):
    batch, model, nll = preferences(monkeypatch)
    loss, _ = train.preference_loss(model, batch) or (torch.zeros(1, requires_grad=True), {})
    loss.sum().backward()
    expected = []
    for i in range(2):
        push = 0.5 * 0.5 / (1 + math.exp(margin(i)))  # share * beta * sigmoid(-margin)
        expected += [[0, push, push], [0, -push, -push]]
    check(f'the gradient by the loss of each token; {PAIRS}', nll.grad, expected)


# -----------------------------------------------------------------------------
# 5 bpe

RANKS = {bytes([byte]): byte for byte in range(256)}
RANKS |= {b'lo': 256, b'low': 257, b'er': 258, b'lower': 259, b'aa': 260, b'aaa': 261}


def test_bpe_merges_the_lowest_rank_first(check):
    case = "parts_before(b'lower', 259, ranks) with ranks lo 256, low 257, er 258, lower 259"
    check(case, parts_before(b'lower', 259, RANKS), [b'low', b'er'])


def test_bpe_merges_the_leftmost_of_equal_pairs(check):
    case = "parts_before(b'aaa', 261, ranks) with rank aa 260: the first two merge"
    check(case, parts_before(b'aaa', 261, RANKS), [b'aa', b'a'])


def test_bpe_stops_at_the_rank(check):
    case = "parts_before(b'lower', 257, ranks): only ranks below 257 merge, so lo does"
    check(case, parts_before(b'lower', 257, RANKS), [b'lo', b'w', b'e', b'r'])


def test_bpe_is_tiktokens(check):
    """A table that was trained on a few lines, cut off before each of its merges."""
    tokenizer = train_bpe(LINES[:2] * 3, 290)
    pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    ranks = {piece: i for i, piece in enumerate(pieces)}
    for rank in range(256, len(pieces)):
        engine = tiktoken.Encoding(
            'exercise', pat_str='(?s:.+)', special_tokens={},
            mergeable_ranks=dict(zip(pieces[:rank], range(rank))),
        )  # fmt: skip
        expected = [pieces[i] for i in engine.encode_ordinary(pieces[rank].decode())]
        case = f'parts_before({pieces[rank]!r}, {rank}, ranks) against tiktoken'
        check(case, parts_before(pieces[rank], rank, ranks), expected)


# -----------------------------------------------------------------------------
# 6 top_p

PROBABILITIES = [0.15, 0.5, 0.05, 0.3]  # of the ids 0 to 3
UNIFORM = [0.0, 0.1, 0.3, 0.55, 0.62, 0.64, 0.72, 0.9, 0.999]


def drawn(uniform=UNIFORM, probabilities=PROBABILITIES, **filters):
    logits = torch.tensor(probabilities, dtype=torch.float64).log().expand(len(uniform), -1)
    return Sampling(**filters).draw(logits, torch.tensor(uniform, dtype=torch.float64))


def naive_draw(u, order, kept):
    """The first id at which the sum of the kept probabilities, in this order, passes u."""
    total = sum(PROBABILITIES[i] for i in kept)
    reached = 0.0
    for i in order:
        if i in kept:
            reached += PROBABILITIES[i] / total
        if reached > u:
            return i
    return order[-1]


def test_top_p_of_temperature_zero_is_the_likeliest(check):
    check('temperature 0: always the likeliest', drawn([0.0, 0.9], temperature=0.0), [1, 1])


def test_top_p_of_1_draws_in_the_order_of_the_ids(check):
    """Inverse transform sampling: no filter, no sorting."""
    case = f'probabilities {PROBABILITIES}, no filter, uniform numbers {UNIFORM}'
    check(case, drawn(), [naive_draw(u, range(4), range(4)) for u in UNIFORM])


def test_top_p_keeps_the_likeliest_that_reach_it(check):
    for top_p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.9, [1, 3, 0]), (0.97, [1, 3, 0, 2])):
        case = f'probabilities {PROBABILITIES}, top_p {top_p} keeps {kept}, uniform {UNIFORM}'
        expected = [naive_draw(u, [1, 3, 0, 2], kept) for u in UNIFORM]
        check(case, drawn(top_p=top_p), expected)


def test_top_p_comes_after_temperature_and_top_k(check):
    """At temperature 1/2 probabilities are squared: 0.25, 0.09, 0.0225 of the first three."""
    case = f'probabilities {PROBABILITIES}, temperature 0.5, top_k 3, top_p 0.7: ids 1 and 3 stay'
    uniform = [0.2, 0.73, 0.74, 0.99]  # 0.25 / 0.34 = 0.735
    check(case, drawn(uniform, temperature=0.5, top_k=3, top_p=0.7), [1, 1, 3, 3])


def test_top_p_and_min_p(check):
    case = f'probabilities {PROBABILITIES}, min_p 0.5: at least half of 0.5, so ids 1 and 3'
    check(case, drawn([0.6, 0.63, 0.99], min_p=0.5), [1, 3, 3])


# -----------------------------------------------------------------------------
# 7 packing


def naive_best_fit(sizes, capacity):
    """The room left in each row: the largest item first, into the fullest row that has room."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= size
        else:
            rooms.append(capacity - size)
    return rooms


def check_packing(check, sizes, capacity):
    """Rows of equal room are alike, so rows are compared by their room, sorted."""
    row_of, num_rows = best_fit(np.array(sizes), capacity) or (None, None)
    case = f'best_fit({sizes}, {capacity})'
    rooms = naive_best_fit(sizes, capacity)
    check(f'{case}: the number of rows', num_rows, len(rooms))
    filled = np.bincount(np.asarray(row_of), sizes, num_rows)
    check(f'{case}: the room left in each row', sorted(capacity - filled), sorted(rooms))


def test_packing_fills_the_fullest_row_that_has_room(check):
    check_packing(check, [6, 5, 4, 3, 2], 10)


def test_packing_takes_the_largest_item_first(check):
    check_packing(check, [2, 3, 4, 5, 6, 10], 10)


def test_packing_of_an_item_that_fills_a_row(check):
    check_packing(check, [5, 5, 5], 5)


def test_packing_is_the_naive_one(check):
    rng = np.random.default_rng(0)
    for capacity in (7, 20, 50):
        check_packing(check, rng.integers(1, capacity + 1, 30).tolist(), capacity)


# -----------------------------------------------------------------------------
# 8 newton_schulz


def by_svd(matrix, iterations):
    """The polynomials on the singular values themselves."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / (s.square().sum().sqrt() * MARGIN + 1e-7)
    for a, b, c in POLAR_EXPRESS[iterations]:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


def matrices(*shape):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_newton_schulz_applies_the_polynomials(check):
    """To the singular values of X = matrix / (1.02 * its norm + 1e-7)."""
    for iterations in POLAR_EXPRESS:
        m = matrices(1, 3, 4)
        case = f'a random (1, 3, 4), {iterations} iterations of a s + b s^3 + c s^5'
        check(case, orthogonalize(m, iterations), by_svd(m[0], iterations)[None], atol=1e-9)


def test_newton_schulz_of_a_tall_matrix(check):
    m = matrices(1, 4, 3)
    check(
        'a random (1, 4, 3): the result has its shape',
        orthogonalize(m),
        by_svd(m[0], 5)[None],
        atol=1e-9,
    )


def test_newton_schulz_treats_every_matrix_by_itself(check):
    m = matrices(2, 3, 3) * torch.tensor([1.0, 1000.0])[:, None, None]
    expected = torch.stack([by_svd(one, 5) for one in m])
    check('two matrices, the second 1000 times larger', orthogonalize(m), expected, atol=1e-9)


def test_newton_schulz_of_zeros_is_zeros(check):
    check(
        'a gradient of zeros, (1, 2, 2)', orthogonalize(torch.zeros(1, 2, 2)), np.zeros((1, 2, 2))
    )


# -----------------------------------------------------------------------------
# 9 mask


def chat_of(special):
    return Chat(BPETokenizer(r'.|\n', [], {name: 256 + i for i, name in enumerate(special)}))


def spelled(chat, ids):
    names = {i: name for name, i in chat.tokenizer.special.items()}
    return ' '.join(names.get(i) or chat.tokenizer.decode([i]).replace('\n', '⏎') for i in ids)


def check_mask(check, chat, ids, spoken):
    expected = [i in spoken for i in range(1, len(ids))]
    check(
        f'is_spoken of the targets after the first id of\n    {spelled(chat, ids)}',
        chat.is_spoken(ids),
        expected,
    )


def turns(*texts):
    roles = ('user', 'assistant')
    return [{'role': roles[i % 2], 'content': text} for i, text in enumerate(texts)]


def test_mask_is_what_the_assistant_says(check):
    """<|bos|> <|user_start|> a <|user_end|> <|assistant_start|> b c <|assistant_end|>"""
    chat = chat_of(SPECIAL)
    check_mask(check, chat, chat.render(turns('a', 'bc')), {5, 6, 7})


def test_mask_of_several_turns_and_documents(check):
    chat = chat_of(SPECIAL)
    ids = chat.render(turns('a', 'b', 'c', 'd'))
    check_mask(check, chat, ids + ids, {5, 6, 11, 12, 18, 19, 24, 25})


def test_mask_of_an_answer_that_breaks_off(check):
    """The next document begins where the answer was cut: its <|bos|> is not spoken."""
    chat = chat_of(SPECIAL)
    ids = chat.render(turns('a', 'bc'))
    check_mask(check, chat, ids[:6] + ids, {5, 11, 12, 13})


def test_mask_of_a_call_is_without_its_output(check):
    chat = chat_of(SPECIAL)
    parts = [{'type': 'python', 'text': '1'}, {'type': 'output', 'text': '1'}]
    messages = turns('a', [*parts, {'type': 'text', 'text': 'b'}])
    # <|python_start|> 1 <|python_end|>, <|output_start|> 1 <|output_end|>, b <|assistant_end|>
    check_mask(check, chat, chat.render(messages), {5, 6, 7, 11, 12})


def test_mask_of_chatml_whose_headers_have_several_ids(check):
    """<|im_start|> assistant ⏎ is a header of eleven ids here: none of them counts."""
    chat = chat_of(CHATML)
    ids = chat.render(turns('a', 'b'))
    answer = len(ids) - 3  # b <|im_end|> ⏎
    check_mask(check, chat, ids, {answer, answer + 1})


# -----------------------------------------------------------------------------
# 10 attention


def naive_attention(q, keys, values):
    """q (H, D) of one token; keys, values (H_kv, n, D) of all tokens that it attends to."""
    out = []
    for head, query in enumerate(q):
        group = head // (len(q) // len(keys))
        weights = np.exp(keys[group] @ query / math.sqrt(len(query)))
        out.append(weights @ values[group] / weights.sum())
    return np.array(out)


class Steps:
    """Two rows of random queries, keys and values, fed to a cache in steps."""

    def __init__(self, H=2, H_kv=2, D=4, length=70):
        config = GPTConfig(n_layer=1, n_head=H, n_kv_head=H_kv, n_embd=H * D, block_size=length)
        rng = torch.Generator().manual_seed(0)
        self.q, self.k, self.v = (
            torch.randn(2, n, length, D, generator=rng) for n in (H, H_kv, H_kv)
        )
        blocks = -(-length // BLOCK)
        self.tables = [[1 + 2 * i for i in range(blocks)], [2 + 2 * i for i in range(blocks)]]
        self.cache = KVCache(config)
        self.cache.reserve(2 * blocks + 1)
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor.fill_(1e4)  # of earlier texts: nothing may attend to it
        self.lengths = [0, 0]

    def check(self, check, case, counts):
        """Feed the next tokens of each row, padded to the longest. Compare those that count."""
        T = max(counts)
        starts = self.lengths
        self.cache.select(self.tables, starts, counts, last=[0, 0])
        self.cache.begin(T)
        new = [x.new_zeros(*x.shape[:2], T, x.shape[3]) for x in (self.q, self.k, self.v)]
        for padded, x in zip(new, (self.q, self.k, self.v)):
            for row, (a, n) in enumerate(zip(starts, counts)):
                padded[row, :, :n] = x[row, :, a : a + n]
        got = self.cache.attend(0, *new)
        self.lengths = [a + n for a, n in zip(starts, counts)]
        for row, (a, n) in enumerate(zip(starts, counts)):
            for t in range(n):
                end = a + t + 1  # a token attends to itself and to all before it
                q, k, v = self.q[row, :, end - 1], self.k[row, :, :end], self.v[row, :, :end]
                expected = naive_attention(*(x.double().numpy() for x in (q, k, v)))
                where = f'{case}: token {end - 1} of row {row} attends to {end} tokens'
                check(where, None if got is None else got[row, :, t], expected)


def test_attention_of_a_new_text_is_causal(check):
    Steps().check(check, 'two rows of 5 new tokens', [5, 5])


def test_attention_sees_what_the_cache_holds(check):
    steps = Steps()
    steps.check(check, 'two rows of 40 new tokens', [40, 40])
    steps.check(check, 'then 3 more', [3, 3])


def test_attention_of_rows_of_different_lengths(check):
    steps = Steps()
    steps.check(check, 'rows of 33 and 2 new tokens, the second padded', [33, 2])
    steps.check(check, 'then 2 and 9', [2, 9])


def test_attention_shares_keys_between_heads(check):
    Steps(H=4, H_kv=2).check(
        check, '4 heads of queries, 2 of keys: heads 0 and 1 share one', [3, 3]
    )
