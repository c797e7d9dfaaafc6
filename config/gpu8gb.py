# One card of 8 GB (RTX 3070, 4060): d8, 92M parameters, in a night.
#
# $ python train.py config/gpu8gb.py
#
# Not measured here. Time: 1.8B tokens of 0.45 GFLOP are 8.4e17 FLOP, 10 hours at 40 %, an
# assumption, of 60 TFLOP/s. Memory: 4 GB, of which a row takes 0.6 GB (computed, by the count of
# docs/gpu.md's d20).

out_dir = 'out/gpu8gb/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 8 * 12 * 512^2 + 2 * 65,536 * 512 = 92,274,688 parameters with a vocabulary of 65,536. Rates,
# decay, batch and horizon follow from the depth (docs/dial.md)
preset = 'nano'  # the tables of values of plus, the default, would need more memory
depth = 8
block_size = 2048
batch_size = 4

eval_interval = 500
eval_iters = 160  # 160 * 4 rows * 2,048 = 1.3M tokens
save_interval = 250  # 0.9 GB each
