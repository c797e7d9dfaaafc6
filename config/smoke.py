# A smoke test: a small model and a few steps on the embedded world, seconds on two cores. It shows
# that everything works on a machine; the model is not good.
#
# $ python train.py config/smoke.py
# $ python sample.py

out_dir = 'out/smoke'
sample_prompts = 'Anna |Once upon a time'

n_layer = 2
n_head = 2
n_embd = 128
block_size = 128
batch_size = 16  # 16 * 128 = 2,048 tokens per step

max_iters = 200
eval_interval = 100
log_interval = 20
eval_iters = 8
