# One H100 for a night: d16, 336M parameters.
#
# $ python train.py config/h100x1.py
#
# Not measured here. Time: 6.7B tokens of 2.01 GFLOP are 1.35e19 FLOP, 8 hours at 48 % of 989
# TFLOP/s (computed). Memory: 54 GB of 80, of which a row takes 16 layers * 19 * 2,048 * 1,024
# numbers and 2,048 * 65,536 logits of 2 bytes (computed, by the count of docs/gpu.md's d20).

out_dir = 'out/h100x1/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 16 * 12 * 1024^2 + 2 * 65,536 * 1024 = 335,544,320 parameters with a vocabulary of 65,536. Rates,
# decay, batch and horizon follow from the depth (docs/dial.md)
preset = 'nano'  # the tables of values of plus, the default, would need more memory
depth = 16
block_size = 2048
batch_size = 32

eval_interval = 500
eval_iters = 80  # 80 * 32 rows * 2,048 = 5.2M tokens
save_interval = 500  # 3.2 GB each
