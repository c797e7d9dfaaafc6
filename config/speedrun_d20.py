# The speedrun: nanochat's d20, 561M parameters, about four hours on 8 H100s with all its stages.
#
# $ bash speedrun.sh                                                            # everything
# $ torchrun --standalone --nproc_per_node=8 train.py config/speedrun_d20.py    # pretraining alone
#
# Not measured here. Time: 21,400 steps of 0.45 s, 2.7 h (computed, docs/gpu.md). Memory: 73 GB of a
# card's 80 (computed by --plan=True). CORE: 0.22, as nanochat's d20 has it.

out_dir = 'out/speedrun_d20/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 20 layers of width 64 * 20 = 1,280, with a vocabulary of 65,536:
# 20 * 12 * 1280^2 + 2 * 65,536 * 1280 = 560,988,160 parameters
preset = 'nano'  # as nanochat 0.1.0: without the default's extras (extras.py)
depth = 20
block_size = 2048

# 32 rows * 2,048 tokens * 8 GPUs = 524,288 tokens per step. On fewer GPUs each runs more
# micro-batches; the step stays the same
batch_size = 32
gradient_accumulation_steps = 8
target_param_data_ratio = 20.0  # 11.2B tokens, 21,400 steps

# The rates of nanochat 0.1.0. Its Muon moves a matrix by 0.02 * sqrt(max(1, rows / columns)), ours
# by 0.2 * sqrt(max(rows, columns)) * learning_rate, each times an orthogonal matrix. They agree at
# 0.02 / (0.2 * sqrt(1280)) = 2.8e-3 for q, k, v and the output of attention (both 0.02) and for the
# MLP's first matrix of 5120 x 1280 (both 0.04). Its second, 1280 x 5120, moves by 0.04 here and by
# 0.02 there
learning_rate = 2.8e-3
embedding_rate = 55.0  # 0.2 * sqrt(768 / 1280) / 2.8e-3
head_rate = 1.1  # 0.004 * sqrt(768 / 1280) / 2.8e-3
beta1 = 0.8
beta2 = 0.95
adam_eps = 1e-10
weight_decay = 0.0
warmdown = 0.2
grad_clip = 1.0

eval_interval = 250
eval_iters = 160  # 160 * 32 rows * 2,048 = 10.5M tokens
save_interval = 1000  # 5.2 GB each; a restart loses 8 minutes at most
