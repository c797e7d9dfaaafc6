# Tiny Shakespeare by characters on two CPU cores: readable lines in a minute and a half. LOG.md has
# the experiments.
#
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/shakespeare_char_cpu.py
# $ python sample.py

out_dir = 'out/shakespeare_char_cpu'
dataset = 'shakespeare_char'

# Narrow and shallow: a CPU's time goes into the number of operations, and many steps teach more
n_layer = 3
n_head = 3
n_embd = 96

# 16 * 128 = 2,048 characters per step
batch_size = 16
block_size = 128

max_iters = 1200  # 2.5M characters: two and a half epochs, too few to overfit
learning_rate = 1.5e-2
warmup_iters = 10
warmdown = 0.8
muon_iterations = 3  # as good as 5 in a model this small
beta2 = 0.99  # a step has few tokens

eval_iters = -1  # all of the validation text
eval_interval = 0  # at the end only
log_interval = 100
