# Tiny Shakespeare by characters on two CPU cores: readable lines in a minute and a half. See LOG.md for what was tried.
#
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/shakespeare_char_cpu.py
# $ python sample.py

out_dir = 'out/shakespeare_char_cpu'
dataset = 'shakespeare_char'

# narrow and shallow: on a CPU it is the number of operations that takes the time, and of steps that teaches
n_layer = 3
n_head = 3
n_embd = 96

# 16 * 128 = 2,048 characters a step
batch_size = 16
block_size = 128

max_iters = 1200  # 2.5M characters: the text two and a half times over, too few to over-fit
learning_rate = 1.5e-2
warmup_iters = 10
warmdown = 0.8
muon_iterations = 3  # as good as 5 in so small a model
beta2 = 0.99  # few tokens a step

eval_iters = -1  # the whole validation text,
eval_interval = 0  # once
log_interval = 100
