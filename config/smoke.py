# Seconds on two cores: this repository's own source code, from data to a model that has begun to pick up its looks.
# Meant to show that everything works on a machine, not to be good.
#
# $ python train.py config/smoke.py
# $ python sample.py

out_dir = 'out/smoke'
dataset = 'source'  # made from the files of this repository when it is not there

n_layer = 2
n_head = 2
n_embd = 128
block_size = 128
batch_size = 16  # 16 * 128 = 2,048 tokens a step

max_iters = 200
eval_interval = 100
log_interval = 20
sample_interval = 100
