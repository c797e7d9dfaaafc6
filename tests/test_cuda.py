"""
The CUDA path on a card: under a minute, skipped without one. dev/gpu_check.py measures its speed.

Set DEVICE to 'cpu' to try the tests themselves without a card.
"""

import gpu_check
import pytest
import torch
from gpu_check import Session, Trainer, sized
from test_train import (
    Died,
    assert_same_bits,
    at_step,
    die,
    prepare,
    running,
    trained,
)  # fmt: skip

import runtime
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer
from tokenizer import CharTokenizer

DEVICE = 'cuda'
ON_CARD = DEVICE == 'cuda'
pytestmark = pytest.mark.skipif(
    ON_CARD and not torch.cuda.is_available(), reason='needs a CUDA card'
)


def start(dtype):
    machine = runtime.choose_machine(DEVICE, dtype, None, runtime.Ranks())
    return Session(machine, gpu_check.CARD._replace(small=(2, 64, 256)))


@pytest.fixture
def session(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, 'out', str(tmp_path / 'lines.jsonl'))
    session = start('bfloat16')
    runtime.set_up(session.machine.device, runtime.Ranks(), deterministic=False)
    yield session
    runtime.undo_changes()


def make(preset):
    torch.manual_seed(1)
    shape = dict(vocab_size=256, block_size=128, n_layer=2, n_head=2, n_embd=128)
    return GPT(GPTConfig(**shape, **{**PRESETS[preset], 'zero_init': False}))


@pytest.mark.parametrize('name', ['parity', 'graphs', 'waits'])
def test_what_must_hold_on_a_card(session, monkeypatch, name):
    """float32 eager and bf16 compiled agree with the CPU; nothing is compiled again; no step waits
    for the card."""
    # compile one preset, not four
    monkeypatch.setattr(gpu_check, 'PRESETS', {'nano': PRESETS['nano']})
    assert gpu_check.run(session, name)
    assert not session.wrong, session.off


def test_an_update_is_the_cpus(session):
    moved = {}
    for device in ('cpu', session.machine.device):
        net = make('nano')
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        net.to(device)
        optimizer = Optimizer(net, compile=device != 'cpu')
        generator = torch.Generator().manual_seed(2)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            optimizer.reduce()
            optimizer.step(1e-2, optimizer.norm(), grad_clip=1.0)
        after = {name: p.detach().cpu() for name, p in net.named_parameters()}
        moved[device] = {name: p - before[name] for name, p in after.items()}
    for name, expected in moved['cpu'].items():
        bound = 0.05 if name in net.matrix_blocks() else 1e-4  # on CUDA Muon computes in bf16
        found = moved[session.machine.device][name]
        assert (found - expected).norm() < bound * expected.norm(), name


@pytest.mark.parametrize('preset', PRESETS)
def test_cached_decoding_is_the_full_forward_pass(session, preset):
    torch.set_float32_matmul_precision('highest')
    net = make(preset).to(session.machine.device).eval()
    engine = Engine(net, CharTokenizer(''.join(map(chr, range(256)))))
    prompts = [[1, 2, 3], list(range(40))]
    for prompt, sample in zip(prompts, engine.generate(prompts, 40, Sampling(seed=3))):
        ids = torch.tensor([prompt + sample.ids], device=session.machine.device)
        with torch.no_grad():
            logps = net(ids).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = logps.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
        assert len(sample.ids) == 40
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-4, rtol=0)


def test_a_crash_and_a_resume_change_no_bit(capsys, monkeypatch, tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    args = (
        f'--dataset={prepare(tmp_path / "data")}', f'--device={DEVICE}', '--deterministic=True',
        '--compile=False', '--max_iters=6', '--save_interval=3', '--eval_interval=0',
        '--eval_iters=1', '--dropout=0.1', '--sample_prompts=',
    )  # fmt: skip
    with running(capsys) as run:
        assert run(*args, f'--out_dir={whole}').returncode == 0
        with monkeypatch.context() as patch, pytest.raises(Died):
            at_step(patch, 5, die)
            run(*args, f'--out_dir={broken}')
        assert run('--init_from=resume', f'--out_dir={broken}').returncode == 0
    assert_same_bits(trained(broken), trained(whole))


def test_fp16_takes_finite_steps(session):
    trainer = Trainer(start('float16'), sized(2, 64, 256), rows=2, compiled=False)
    losses = []
    for _ in range(20):
        losses.append(float(trainer.forward_backward()))
        trainer.update()
    assert trainer.optimizer.counters['skipped'] < 5
    assert losses[-1] < losses[0] - 0.5
