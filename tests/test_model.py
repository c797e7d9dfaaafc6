"""model.py against transformers' own classes, naive versions of its parts, and the laws a language
model obeys."""

import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, PRESETS, GPTConfig, activate, rotate

TINY = dict(
    vocab_size=100, block_size=16, n_layer=2, n_head=4, n_embd=32
)  # 100 ids: the table is padded to 128 rows
PADDED = 128


def build(preset='nano', **settings):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**PRESETS[preset], **TINY, **settings})).eval()


@torch.no_grad()
def randomise(model):
    """No zero and no plain 1 is left; a parameter's values depend on its name and shape alone."""
    for name, p in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode('utf-8')))
        values = torch.randn(p.shape, generator=generator)
        p.copy_(1 + 0.2 * values if p.dim() == 1 and name.endswith('weight') else 0.2 * values)
    return model


def ids(rows=2, length=16, seed=1):
    return torch.randint(
        TINY['vocab_size'], (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def padded(table):
    """A table of vocab_size rows as ours; what stands in the rows beyond must not matter."""
    return torch.cat((table, torch.full((PADDED - len(table), table.shape[1]), 9.0)))


def swap_halves(weight, head_dim):
    """Rows of q or k for the other sense of rotation: within each head dimension i and i + D/2
    change places."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).flip(1).reshape(weight.shape)


def weights_of_gpt2(theirs):
    """Our state_dict from a GPT2LMHeadModel: the names are the same, the projections transposed."""
    transposed = ('c_attn.weight', 'c_proj.weight', 'c_fc.weight')
    weights = {
        name: p.T if name.endswith(transposed) else p for name, p in theirs.named_parameters()
    }
    weights['transformer.wte.weight'] = weights['lm_head.weight'] = padded(
        theirs.transformer.wte.weight
    )
    return weights


# our name in a layer: their names, whose rows are stacked in this order
LLAMA_NAMES = {
    'ln_1': ['input_layernorm'], 'ln_2': ['post_attention_layernorm'],
    'attn.q_norm': ['self_attn.q_norm'], 'attn.k_norm': ['self_attn.k_norm'],
    'attn.c_attn': ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'],
    'attn.c_proj': ['self_attn.o_proj'],
    'mlp.c_fc': ['mlp.gate_proj', 'mlp.up_proj'], 'mlp.c_proj': ['mlp.down_proj'],
}  # fmt: skip
NANOCHAT_NAMES = LLAMA_NAMES | {'mlp.c_fc': ['mlp.fc1'], 'mlp.c_proj': ['mlp.fc2']}


def weights_of_llama(theirs, names=LLAMA_NAMES, rotation=lambda weight: weight):
    """Our state_dict from a Llama, a Qwen3 or a NanoChat; rotation is applied to the rows of q and
    k."""
    source = {name.removesuffix('.weight'): p for name, p in theirs.named_parameters()}
    source |= {n: rotation(p) for n, p in source.items() if n.endswith(('q_proj', 'k_proj'))}
    weights = {'transformer.wte.weight': padded(source['model.embed_tokens'])}
    weights['lm_head.weight'] = padded(theirs.get_output_embeddings().weight)
    if 'model.norm' in source:
        weights['transformer.ln_f.weight'] = source['model.norm']
    for layer in range(TINY['n_layer']):
        for ours, parts in names.items():
            parts = [f'model.layers.{layer}.{part}' for part in parts]
            if parts[0] in source:
                weights[f'transformer.h.{layer}.{ours}.weight'] = torch.cat(
                    [source[part] for part in parts]
                )
    return weights


def assert_same_logits(theirs, ours, weights):
    ours.load_state_dict(weights)  # strict: every parameter of ours has one of theirs
    with torch.no_grad():
        expected, got = theirs(ids()).logits, ours(ids())
    assert expected.std() > 0.3 and got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('attention', ['eager', 'sdpa'])
def test_gpt2_is_transformers_gpt2(oracle, attention):
    hf = oracle('transformers')
    sizes = dict(
        vocab_size=100,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = randomise(
        hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, attn_implementation=attention)).eval()
    )
    assert_same_logits(theirs, build('gpt2', bias=True), weights_of_gpt2(theirs))


def llama_config(config_class, theta, **settings):
    return config_class(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, pad_token_id=None,
        rope_parameters={'rope_type': 'default', 'rope_theta': theta}, **settings,
    )  # fmt: skip


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('preset', ['llama', 'qwen3'])
def test_llama_and_qwen3_are_those_of_transformers(oracle, preset, tied):
    hf = oracle('transformers')
    config_class, model_class, eps, theta, head_dim = {
        'llama': (hf.LlamaConfig, hf.LlamaForCausalLM, 1e-5, 500.0, 8),
        'qwen3': (
            hf.Qwen3Config,
            hf.Qwen3ForCausalLM,
            1e-6,
            1000000.0,
            12,
        ),  # 4 heads of 12 are not 32
    }[preset]
    config = llama_config(
        config_class, theta, tie_word_embeddings=tied, rms_norm_eps=eps, head_dim=head_dim
    )
    theirs = randomise(model_class(config).eval())
    ours = build(
        preset, n_kv_head=2, n_hidden=48, tied_head=tied, head_dim=head_dim, rope_theta=theta
    )
    assert_same_logits(theirs, ours, weights_of_llama(theirs))


def test_nano_is_transformers_nanochat(oracle):
    hf = oracle('transformers')
    theirs = randomise(hf.NanoChatForCausalLM(llama_config(hf.NanoChatConfig, 10000.0)).eval())
    assert theirs.config.final_logit_softcapping == 15.0 and theirs.config.rms_norm_eps == 1e-6
    weights = weights_of_llama(theirs, NANOCHAT_NAMES, lambda weight: swap_halves(weight, 8))
    assert_same_logits(theirs, build('nano', n_kv_head=2, n_hidden=48), weights)


def test_rope_is_a_product_of_complex_numbers():
    model = build(head_dim=6, rope_theta=100.0)
    x = torch.randn(2, 4, 16, 6)
    expected = torch.empty_like(x)
    for position in range(16):
        for i in range(3):
            turn = torch.tensor(
                complex(math.cos(a := position * 100.0 ** (-2 * i / 6)), math.sin(a))
            )
            z = torch.complex(x[:, :, position, i], x[:, :, position, i + 3]) * turn
            expected[:, :, position, i], expected[:, :, position, i + 3] = z.real, z.imag
    torch.testing.assert_close(
        rotate(x, model.cos[None, None], model.sin[None, None]), expected, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_squared_relu_and_its_gradient_are_autograds(dtype):
    torch.manual_seed(0)
    x = torch.cat((torch.zeros(1), torch.randn(999))).to(dtype).requires_grad_()
    grad = torch.randn(1000).to(dtype)
    root = F.relu(x)
    (expected,) = torch.autograd.grad(root * root, x, grad)
    (found,) = torch.autograd.grad(activate(x, 'relu2'), x, grad)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(activate(x, 'relu2'), root * root)


def test_shared_key_and_value_heads_equal_repeated_ones():
    shared, full = randomise(build(n_kv_head=2)).double(), build().double()
    weights = shared.state_dict()
    for name in (name for name in weights if name.endswith('c_attn.weight')):
        q, k, v = weights[name].split((32, 16, 16))
        k, v = (y.view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32) for y in (k, v))
        weights[name] = torch.cat((q, k, v))
    full.load_state_dict(weights)
    torch.testing.assert_close(shared(ids()), full(ids()), atol=1e-10, rtol=1e-10)


def weighted_backward(model, weights):
    """Losses (B, T) and every gradient of their weighted sum."""
    model.zero_grad()
    nll = model(ids(), ids(seed=2))
    (weights * nll).sum().backward()
    return {'nll': nll.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize('preset', ['nano', 'gpt2'])
def test_losses_are_cross_entropy_chunked_or_not(monkeypatch, preset, dtype, tolerance):
    model = randomise(build(preset)).to(dtype)
    weights = torch.randn(2, 16, dtype=dtype, generator=torch.Generator().manual_seed(3))
    whole = weighted_backward(model, weights)
    assert whole['nll'].dtype == dtype
    logits = model(ids())
    expected = F.cross_entropy(logits.flatten(0, 1), ids(seed=2).flatten(), reduction='none').view(
        2, 16
    )
    torch.testing.assert_close(whole['nll'], expected.detach(), atol=tolerance, rtol=tolerance)

    pieces, nll = [], model.nll
    monkeypatch.setattr('model.LOGITS_BYTES', 5 * 4 * TINY['vocab_size'])  # five rows of logits
    monkeypatch.setattr(
        model, 'nll', lambda x, targets: pieces.append(len(x)) or nll(x, targets), raising=False
    )
    chunked = weighted_backward(model, weights)
    assert sorted(pieces) == [2] * 2 + [5] * 12  # 32 tokens forward, and once more in backward
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize('preset', PRESETS)
def test_compiled_it_is_one_graph_with_one_loss(monkeypatch, preset):
    """Eager code computes this loss in seven pieces. Here the graph runs as it was traced."""
    monkeypatch.setattr('model.LOGITS_BYTES', 5 * 4 * TINY['vocab_size'])  # five rows of logits
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return graph

    torch.compiler.reset()  # torch keeps 8 variants of a function, those of earlier tests included
    model = randomise(build(preset))
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)
    with torch.autocast('cpu', torch.bfloat16):
        nll = compiled(ids(), ids(seed=2))
        torch.testing.assert_close(nll, model(ids(), ids(seed=2)), atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1 and graphs[0].count(F.cross_entropy) == 1


@pytest.mark.filterwarnings(
    'ignore:Mismatch dtype'
)  # float32 gains on a bf16 stream: torch says it is slower
@pytest.mark.parametrize('preset', PRESETS)
def test_autocast_keeps_the_stream_fast_and_the_answer_float32(monkeypatch, preset):
    model = randomise(build(preset))
    streams = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda block, x, y: streams.extend((x[0].dtype, y.dtype)))
    exact = model(ids(), ids(seed=2))
    with torch.autocast('cpu', torch.bfloat16):
        whole, logits = model(ids(), ids(seed=2)), model(ids())
        monkeypatch.setattr('model.LOGITS_BYTES', 5 * 4 * TINY['vocab_size'])
        chunked = model(ids(), ids(seed=2))
    assert whole.dtype == chunked.dtype == logits.dtype == torch.float32
    assert streams == [torch.float32] * 4 + [torch.bfloat16] * 12
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    assert 0 < (whole - exact).abs().mean() < 0.1  # rounded, and no more than that
    chunked.sum().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )


@pytest.mark.parametrize('tied', [False, True])
def test_rows_of_the_table_beyond_the_vocabulary_are_nobodys(tied):
    model = randomise(build(tied_head=tied))
    logits, nll = model(ids()), model(ids(), ids(seed=2))
    assert logits.shape == (2, 16, 100) and nll.shape == (2, 16)
    nll.sum().backward()
    for table in (model.transformer.wte.weight, model.lm_head.weight):
        assert table.shape == (PADDED, 32)
        assert table.grad[:100].any() and not table.grad[100:].any()


def names(*in_layers, outside=()):
    return {f'transformer.h.{layer}.{name}' for layer in range(2) for name in in_layers} | set(
        outside
    )


GAINS = names('ln_1.weight', 'ln_2.weight', outside=['transformer.ln_f.weight'])
BIASES = names('attn.c_attn.bias', 'attn.c_proj.bias', 'mlp.c_fc.bias', 'mlp.c_proj.bias')
SWITCHES = [  # settings, parameters that nano has not, those it has alone, those of another shape
    (dict(norm='rms_gain'), GAINS, set(), set()),
    (dict(norm='layer'), GAINS, set(), set()),
    (
        dict(norm='layer', bias=True),
        GAINS | BIASES | {n.replace('weight', 'bias') for n in GAINS},
        set(),
        set(),
    ),
    (dict(bias=True), BIASES, set(), set()),
    (dict(positions='learned'), {'transformer.wpe.weight'}, set(), set()),
    (dict(qk_norm='none'), set(), set(), set()),
    (dict(qk_norm='rms_gain'), names('attn.q_norm.weight', 'attn.k_norm.weight'), set(), set()),
    (dict(mlp='gelu'), set(), set(), set()),
    (dict(mlp='swiglu'), set(), set(), names('mlp.c_fc.weight')),
    (dict(tied_head=True), set(), {'lm_head.weight'}, set()),
    (dict(embed_norm=False), set(), set(), set()),
    (dict(softcap=0.0), set(), set(), set()),
    (dict(n_kv_head=1), set(), set(), names('attn.c_attn.weight')),
    (
        dict(value_embeds=True),
        {f'transformer.h.1.attn.value.{name}.weight' for name in ('wve', 'gate.c_gate')},
        set(),
        set(),
    ),
    (dict(smear=True), {'smear.gate.c_gate.weight', 'smear.share'}, set(), set()),
]


@pytest.mark.parametrize(
    ('switch', 'added', 'removed', 'reshaped'), SWITCHES, ids=[str(row[0]) for row in SWITCHES]
)
def test_each_switch_alone(switch, added, removed, reshaped):
    nano, model = randomise(build()), randomise(build(**switch))
    before, after = ({name: p.shape for name, p in m.named_parameters()} for m in (nano, model))
    assert after.keys() - before.keys() == added and before.keys() - after.keys() == removed
    assert {
        name for name in before.keys() & after.keys() if before[name] != after[name]
    } == reshaped
    logits = model(ids())
    assert logits.isfinite().all()
    assert (
        logits - nano(ids())
    ).abs().max() > 1e-3  # equal weights elsewhere: the switch itself does something
    model(ids(), ids(seed=2)).sum().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


@torch.no_grad()
def test_every_parameter_gets_its_first_value_and_an_unknown_one_is_refused():
    for preset in PRESETS:
        model = build(preset, bias=True)
        for p in model.parameters():
            p.fill_(math.nan)
        model.init_weights()
        assert all(p.isfinite().all() for p in model.parameters())
    for name, module in (
        ('gate', torch.nn.Linear(3, 3)),
        ('lambdas', torch.nn.Parameter(torch.ones(2))),
    ):
        model = build()
        setattr(model, name, module)
        with pytest.raises(ValueError, match=f'does not know {name}'):
            model.init_weights()


@pytest.mark.parametrize(
    ('preset', 'settings', 'c_proj', 'others', 'table'),
    [
        ('gpt2', {}, 0.02 / math.sqrt(2 * 3), 0.02, 0.02),
        ('llama', {}, 0.02 / math.sqrt(2 * 3), 0.02, 0.02),
        ('nano', {}, 0.0, 64**-0.5, 1.0),
        ('nano', dict(tied_head=True), 0.0, 64**-0.5, 64**-0.5),  # the table is the head
        ('nano', dict(zero_init=False, n_hidden=64), 64**-0.5 / math.sqrt(2 * 3), 64**-0.5, 1.0),
    ],
)
def test_first_weights_have_the_stated_spread(preset, settings, c_proj, others, table):
    model = build(preset, n_embd=64, n_layer=3, **settings)
    for name, p in model.named_parameters():
        layer = name.split('.')[-2]
        if p.dim() == 1:
            assert (p == 1).all()
        elif layer == 'lm_head' and preset == 'nano':
            assert p.std().item() == pytest.approx(
                0.0 if model.config.zero_init else others, rel=0.05
            )
        else:
            expected = {'c_proj': c_proj, 'wte': table, 'wpe': table}.get(layer, others)
            assert p.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize('preset', ['nano', 'qwen3', 'plus'])
def test_documents_of_a_row_do_not_see_each_other(preset):
    bos, model = 7, randomise(build(preset, bos=7))
    row = ids(rows=1)
    row[row == bos] = 8
    row[0, [5, 6, 11]] = bos  # documents of 5 (its beginning is in another row), 1, 5 and 5 tokens
    alone = torch.cat([model(part) for part in row.split([5, 1, 5, 5], dim=1)], dim=1)
    torch.testing.assert_close(model(row), alone, atol=1e-5, rtol=1e-5)
    together = randomise(build(preset))(row)
    assert (together - alone).abs().amax(dim=-1)[
        0, 5:
    ].min() > 1e-4  # without bos each sees what was before it


def test_first_loss_is_that_of_a_guess_and_a_seed_gives_the_same_weights():
    nll = build()(ids(), ids(seed=2))
    torch.testing.assert_close(nll, torch.full((2, 16), math.log(100)), atol=1e-6, rtol=0)
    once, again = build('llama').state_dict(), build('llama').state_dict()
    assert all(torch.equal(once[name], again[name]) for name in once)
    torch.manual_seed(1)
    other = GPT(GPTConfig(**{**PRESETS['llama'], **TINY})).state_dict()
    assert not torch.equal(once['lm_head.weight'], other['lm_head.weight'])


@pytest.mark.parametrize('preset', PRESETS)
@torch.no_grad()
def test_no_token_sees_a_later_one(preset):
    model = randomise(build(preset))
    changed = ids().clone()
    changed[:, 9] = (changed[:, 9] + 1) % 100
    difference = (model(ids()) - model(changed)).abs().amax(dim=(0, 2))  # (T,)
    assert (difference[:9] < 1e-6).all() and (difference[9:] > 1e-3).all()


@torch.no_grad()
def test_dropout_acts_in_training_alone_and_where_gpt2_has_it(monkeypatch):
    model, without = randomise(build(dropout=0.3)), randomise(build())
    assert torch.equal(model(ids()), without(ids()))
    model.train()
    assert not torch.allclose(model(ids()), model(ids()), atol=1e-3)

    dropout, attention, seen = F.dropout, F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, 'dropout', lambda x, *how: seen.append(how) or dropout(x, *how))
    monkeypatch.setattr(
        F,
        'scaled_dot_product_attention',
        lambda *args, **how: seen.append(args[4]) or attention(*args, **how),
    )
    model(
        ids()
    )  # on the embedding; then per layer on the attention's weights and on what either half adds
    assert seen == [(0.3, True)] + 2 * [0.3, (0.3, True), (0.3, True)]


MISTAKES = {
    "norm is 'batch', expected one of rms, rms_gain, layer": dict(norm='batch'),
    "positions is 'alibi', expected one of": dict(positions='alibi'),
    "qk_norm is 'l2', expected one of": dict(qk_norm='l2'),
    "mlp is 'relu', expected one of": dict(mlp='relu'),
    'n_layer is 0, expected at least 1': dict(n_layer=0),
    'n_embd is 30, expected a multiple of n_head = 4': dict(n_embd=30),
    'n_head is 4, expected a multiple of n_kv_head = 3': dict(n_kv_head=3),
    'n_head is 4, expected a multiple of n_kv_head = 8': dict(n_kv_head=8),
    'n_kv_head is -2, expected at least 0': dict(n_kv_head=-2),
    'head_dim is -8, expected at least 0': dict(head_dim=-8),
    'n_hidden is -1, expected at least 0': dict(n_hidden=-1),
    'head_dim is 7, expected an even number': dict(head_dim=7),
}


@pytest.mark.parametrize('said', MISTAKES)
def test_a_setting_that_cannot_be_is_one_line(said):
    with pytest.raises(SystemExit) as error:
        GPTConfig(**{**TINY, **MISTAKES[said]})
    assert said in error.value.code and '\n' not in error.value.code


def test_settings_that_are_left_out_follow_from_the_others():
    assert (
        GPTConfig(positions='learned', head_dim=7).head_dim == 7
    )  # odd heads are fine without rotation
    config = GPTConfig(n_embd=768, n_head=6)
    assert (config.head_dim, config.n_kv_head, config.n_hidden) == (128, 6, 4 * 768)
    widths = {
        n_embd: GPTConfig(n_embd=n_embd, n_head=1, mlp='swiglu').n_hidden
        for n_embd in (24, 32, 768, 4096)
    }
    assert widths == {24: 64, 32: 128, 768: 2048, 4096: 10944}  # 8/3, up to the next multiple of 64


@pytest.mark.parametrize('tied', [False, True])
def test_parameters_are_counted_once(tied):
    table, layers = 128 * 32, 2 * (3 * 32 * 32 + 32 * 32 + 2 * 32 * 128)
    nano = build(tied_head=tied)
    assert nano.num_params() == layers + table * (1 if tied else 2)
    assert nano.num_params(embeddings=False) == layers + table
    gpt2 = build('gpt2', tied_head=tied, bias=True)
    plus = build('plus', tied_head=tied)
    small = 16 * 4 + 16 + 1  # two gates, and a share
    assert plus.num_params() == nano.num_params() + table + small  # a table of values in one layer
    assert plus.num_params(active=True) == nano.num_params() + small
    assert plus.num_params(embeddings=False) == layers + table + small
    small = 2 * (4 * 32 + 3 * 32 + 32 + 128 + 32) + 2 * 32  # gains, then biases
    assert gpt2.num_params() == layers + small + table * (1 if tied else 2) + 16 * 32
    assert gpt2.num_params(embeddings=False) == layers + small + table


@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(tied_head=True),
        dict(n_kv_head=1, mlp='swiglu', head_dim=16),
        dict(value_embeds=True, n_kv_head=2),  # tables are looked up, gates are products
    ],
    ids=str,
)
def test_flops_are_those_of_the_products_that_run(settings):
    """torch counts the forward pass's products (plain attention computes all pairs); backward has
    two for each."""
    model = build(**settings)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids())
    assert model.flops_per_token() * 32 == 3 * counter.get_total_flops()


@pytest.mark.parametrize(
    'settings', [{}, dict(n_kv_head=2, mlp='swiglu', head_dim=12, bias=True)], ids=str
)
def test_matrix_blocks_are_the_matrices_of_the_layers(settings):
    model = build(**settings)
    blocks = model.matrix_blocks()
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2 and '.h.' in name}
    assert blocks.keys() == matrices.keys()
    assert all(sum(rows) == len(matrices[name]) for name, rows in blocks.items())
    heads = [4 * 12, 2 * 12, 2 * 12] if settings else [32, 32, 32]
    assert blocks['transformer.h.1.attn.c_attn.weight'] == heads
    assert blocks['transformer.h.0.mlp.c_fc.weight'] == ([128, 128] if settings else [128])


def test_a_step_of_a_d20_runs_without_memory():
    """The 561M-parameter model: shapes and dtypes of a step in bf16, chunked losses included, on
    the meta device."""
    with torch.device('meta'):
        model = GPT(
            GPTConfig(vocab_size=65536, block_size=2048, n_layer=20, n_head=10, n_embd=1280)
        ).bfloat16()
        tokens = torch.zeros(4, 2048, dtype=torch.long)
    nll = model(tokens, tokens)  # 2 GB of logits
    assert nll.shape == (4, 2048) and nll.dtype == torch.float32 and nll.is_meta
    nll.sum().backward()
    assert all(
        p.grad.shape == p.shape and p.grad.dtype == torch.bfloat16 for p in model.parameters()
    )
    assert model.num_params() == 560_988_160  # nanochat's own count of its d20
