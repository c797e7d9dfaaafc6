# One card of 24 GB (RTX 3090, 4090): d12, 186M parameters, in a day or two.
#
# $ python train.py config/gpu24gb.py
#
# Not measured here. Time: 3.7B tokens of 1.04 GFLOP are 3.9e18 FLOP. At 40 %, an assumption, of 165
# TFLOP/s (RTX 4090) that is 16 hours, of 71 TFLOP/s (RTX 3090) 38 hours. Memory: 18 GB, of which a
# row takes 0.97 GB (computed, from the 33 GB that docs/gpu.md gives for 32 rows).

out_dir = 'out/gpu24gb/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# As d12.py with half of the rows a micro-batch: the step is the same, in twice the micro-batches
preset = 'nano'  # the tables of values of plus, the default, would need more memory
depth = 12
block_size = 2048
batch_size = 16

eval_interval = 500
eval_iters = 80  # 80 * 16 rows * 2,048 = 2.6M tokens
save_interval = 250  # 1.9 GB each
