# Tiny Shakespeare by characters in ten seconds on two CPU cores, a ninth of the time of nanoGPT's
# command line for a CPU.
#
# $ python data/shakespeare_char/prepare.py
# $ python train.py config/shakespeare_char_10s.py
# $ python sample.py

out_dir = 'out/shakespeare_char_10s'
dataset = 'shakespeare_char'

n_layer = 2
n_head = 2
n_embd = 64

# 24 * 64 = 1,536 characters per step
batch_size = 24
block_size = 64

max_iters = 300  # 0.46M characters: less than half of the text
learning_rate = 2e-2
warmup_iters = 10
warmdown = 0.8
muon_iterations = 3  # as good as 5 in a model this small
beta2 = 0.99  # a step has few tokens

eval_iters = -1  # all of the validation text
eval_interval = 0  # at the end only
log_interval = 100
