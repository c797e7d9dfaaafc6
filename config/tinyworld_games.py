# Games, before any language: sequences in which the next token has occurred before. The model
# learns to look back and to copy.
#
# This is pretraining on a formal language first (Hu et al., 2025). From plain text alone the model
# would learn it late: see LOG.md.
#
# $ python train.py config/tinyworld_games.py

stage = 'pretrain'
out_dir = 'out/tinyworld/games'
auto_resume = True  # run the command again to resume
dataset = 'tinyworld/games'

preset = 'qwen3'  # needs fewer steps than nano for the same loss here, see LOG.md
tied_head = False
n_layer = 4
n_head = 4
n_embd = 128
block_size = 256
rope_theta = 500.0  # rows are short
zero_init = True

isolate = True  # documents are short, and a chat holds only one
# 4 * 256 = 1,024 tokens per step: a model this small learns more from more steps
batch_size = 4
max_iters = 400
muon_iterations = 3  # as good as 5 in a model this small
learning_rate = 4e-3
embedding_rate = 4.0
head_rate = 3.0
eval_interval = 400
log_interval = 50
