# The speedrun's d20 with the extras of preset plus (extras.py): 1.40B parameters, of which a token
# uses 561M. They win at depths 1 and 2 (docs/dial.md); that they win at depth 20 nobody has shown.
#
# $ torchrun --standalone --nproc_per_node=8 train.py config/speedrun_d20_plus.py
#
# The later stages take its model: config/speedrun_d20_mid.py with
# --init_from=out/speedrun_d20_plus/pretrain --out_dir=out/speedrun_d20_plus/mid
# --activation_memory_budget=0.95, and so on.
#
# Not measured here. Memory: 60 GB of a card's 80 (computed as in docs/gpu.md).

out_dir = 'out/speedrun_d20_plus/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# speedrun_d20.py's 560,988,160 parameters, ten tables of 65,536 * 1280 values, one in every other
# layer, gates of 16 * 10 in each of these, and 17 numbers at the embedding: 560,988,160 +
# 10 * 65,536 * 1280 + 10 * 160 + 17 = 1,399,850,577
preset = 'plus'
depth = 20
block_size = 2048

# 32 rows * 2,048 tokens * 8 GPUs = 524,288 tokens per step. On fewer GPUs each runs more
# micro-batches; the step stays the same
batch_size = 32
gradient_accumulation_steps = 8
activation_memory_budget = 0.95  # with 1.0, which --plan=True assumes, it takes 81 GB
target_param_data_ratio = 20.0  # of the parameters that a token uses: 11.2B tokens, 21,400 steps

# The rates of speedrun_d20.py
learning_rate = 2.8e-3
embedding_rate = 55.0
head_rate = 1.1
beta1 = 0.8
beta2 = 0.95
adam_eps = 1e-10
weight_decay = 0.0
warmdown = 0.2
grad_clip = 1.0

eval_interval = 250
eval_iters = 160  # 160 * 32 rows * 2,048 = 10.5M tokens
save_interval = 1000  # 15 GB each
