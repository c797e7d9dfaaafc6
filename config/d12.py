# d12, 186M parameters: minutes on 8 H100s, an afternoon on one. The size for trying a change before
# a larger run.
#
# $ torchrun --standalone --nproc_per_node=8 train.py config/d12.py
# $ python train.py config/d12.py
#
# Not measured here. One H100: 161 ms for 65,536 tokens (docs/gpu.md), so 2.5 hours; eight:
# 20 minutes and the time for communication. Memory: 33 GB a card (computed, docs/gpu.md).

out_dir = 'out/d12/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The capital of Italy is|Water boils at|The opposite of hot is'

# 12 * 12 * 768^2 + 2 * 65,536 * 768 = 185,597,952 parameters with a vocabulary of 65,536. Rates,
# decay, batch and horizon follow from the depth (docs/dial.md)
preset = 'nano'  # the tables of values of plus, the default, would need more memory
depth = 12
block_size = 2048
batch_size = 32  # rows a GPU. The micro-batches of a step are shared among the GPUs

eval_interval = 500
eval_iters = 80  # 80 * 32 rows * 2,048 = 5.2M tokens
save_interval = 500  # 1.9 GB each
