# Entry of the track shakespeare (docs/leaderboard.md): two narrow layers, Muon at a high rate, a
# long warm-down.
#
# $ python dev/race.py shakespeare config/race/shakespeare.py

preset = 'nano'  # with it the entry was measured
n_layer = 2
n_head = 2
n_embd = 64

# 24 * 64 = 1,536 characters per step
batch_size = 24
block_size = 64

max_iters = 350
learning_rate = 2e-2
warmup_iters = 10
warmdown = 0.8
muon_iterations = 3  # as good as 5 in a model this small
beta2 = 0.99  # a step has few tokens
log_interval = 100
