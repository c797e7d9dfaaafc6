# Two unequal cards with 26 GB together, such as 16 + 10 GB: d12, 186M parameters. Both run the same
# number of rows, so the smaller card sets batch_size and the slower one the speed.
#
# $ torchrun --standalone --nproc_per_node=2 train.py config/dual_gpu_26gb.py
#
# Not measured here. Time: 3.9e18 FLOP, 30 hours if the slower card reaches 40 %, an assumption,
# of 44 TFLOP/s. Memory: 6 GB a card, of which a row takes 0.97 GB (computed, see gpu24gb.py).

out_dir = 'out/dual_gpu_26gb/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# As d12.py with an eighth of the rows a micro-batch: the step is the same. 2 cards share it
preset = 'nano'  # the tables of values of plus, the default, would need more memory
depth = 12
block_size = 2048
batch_size = 4

eval_interval = 500
eval_iters = 320  # 320 * 4 rows * 2,048 = 2.6M tokens
save_interval = 250  # 1.9 GB each
