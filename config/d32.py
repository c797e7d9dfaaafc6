# The $1000 run: nanochat's d32, 1.9B parameters, about 42 hours on 8 H100s with all its stages.
#
# $ bash speedrun.sh d32                                               # everything
# $ torchrun --standalone --nproc_per_node=8 train.py config/d32.py    # pretraining alone
#
# Not measured here. Time: 71,680 steps of 1.57 s (nanochat's run1000.sh), 31 h. Memory: 61 GB of a
# card's 80 (computed by --plan=True).

out_dir = 'out/d32/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 32 layers of width 64 * 32 = 2,048, with a vocabulary of 65,536:
# 32 * 12 * 2048^2 + 2 * 65,536 * 2048 = 1,879,048,192 parameters
preset = 'nano'  # as nanochat 0.1.0: without the default's extras (extras.py)
depth = 32
block_size = 2048

# 8 rows * 2,048 tokens * 8 GPUs * 4 micro-batches = 524,288 tokens per step. On fewer GPUs each
# runs more micro-batches; the step stays the same. 16 rows do not fit (105 GB, computed)
batch_size = 8
gradient_accumulation_steps = 8 * 4
target_param_data_ratio = 20.0  # 37.58B tokens, 71,680 steps

# The rates of nanochat 0.1.0, see speedrun_d20.py. They shrink as 1 / sqrt(width), so the multiples
# are those of d20
learning_rate = 2.2e-3  # 0.02 / (0.2 * sqrt(2048))
embedding_rate = 55.0  # 0.2 * sqrt(768 / 2048) / 2.2e-3
head_rate = 1.1  # 0.004 * sqrt(768 / 2048) / 2.2e-3
beta1 = 0.8
beta2 = 0.95
adam_eps = 1e-10
weight_decay = 0.0
warmdown = 0.2
grad_clip = 1.0

eval_interval = 1000
eval_iters = 640  # 640 * 8 rows * 2,048 = 10.5M tokens
save_interval = 1000  # 16 GB each; a restart loses 26 minutes at most
