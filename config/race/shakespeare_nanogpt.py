# Entry of the track shakespeare (docs/leaderboard.md): the recipe of nanoGPT's command line for a
# CPU, with this repository's schedule. The baseline.
#
# $ python dev/race.py shakespeare config/race/shakespeare_nanogpt.py

preset = 'gpt2'
n_layer = 4
n_head = 4
n_embd = 128
batch_size = 12
block_size = 64

optimizer = 'adamw'
max_iters = 2000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100
beta2 = 0.99
log_interval = 100
