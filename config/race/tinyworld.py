# Entry of the track tinyworld (docs/leaderboard.md): the model and the rates of quickstart.sh,
# trained on the plain text alone.
#
# $ python dev/race.py tinyworld config/race/tinyworld.py

preset = 'qwen3'
tied_head = False
n_layer = 4
n_head = 4
n_embd = 128
block_size = 256
rope_theta = 500.0  # rows are short
zero_init = True

isolate = True
batch_size = 4  # 4 * 256 = 1,024 tokens per step
# A run has 60 processor seconds. A step takes 0.23 of them in a quick hour of a 2-core machine and
# 0.49 in a slow one: lower this then, in both entries
max_iters = 140
muon_iterations = 3
learning_rate = 4e-3
embedding_rate = 4.0
head_rate = 3.0
log_interval = 50
