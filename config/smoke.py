# A smoke test: a small model and a few steps on the embedded world, seconds on two cores. It shows
# that everything works on a machine; the model is not good.
#
# $ python train.py config/smoke.py
# $ python sample.py
#
# Every stage, here on eight processes. --stage comes first, because this file reads it:
#
# $ for stage in pretrain mid sft dpo rl; do
# >     torchrun --standalone --nproc_per_node=8 train.py --stage=$stage config/smoke.py
# > done

out_dir = f'out/smoke/{stage}'
batch_size = 16  # 16 * 128 = 2,048 tokens per step

if stage == 'pretrain':
    n_layer = 2
    n_head = 2
    n_embd = 128
    block_size = 128
    max_iters = 200
    eval_interval = 100
    log_interval = 20
    sample_prompts = 'Anna |Once upon a time'
else:
    before = dict(mid='pretrain', sft='mid', dpo='sft', rl='sft')
    init_from = f'out/smoke/{before[stage]}'
    dataset = f'tinyworld/{"sft" if stage == "rl" else stage}'
    max_iters = 10
    eval_interval = 10
    log_interval = 1
    eval_problems = 2
    max_new_tokens = 40
    rl_samples = 4
    rl_tokens = 40

eval_iters = 8
