# Before any language: games, in which what comes next stood before. The model learns to look back and to copy.
#
# Pretraining on a formal language first (Hu et al., 2025). In plain text alone this would come late: see LOG.md.
#
# $ python train.py config/tinyworld_games.py

stage = 'pretrain'
out_dir = 'out/tinyworld/games'
auto_resume = True  # started again, it goes on where it stopped
dataset = 'tinyworld/games'

preset = 'qwen3'  # reaches the same loss in fewer steps than nano here, see LOG.md
tied_head = False
n_layer = 4
n_head = 4
n_embd = 128
block_size = 256
rope_theta = 500.0  # rows are short
zero_init = True

isolate = True  # documents are short, and in a chat there is one alone
batch_size = 4  # 4 * 256 = 1,024 tokens a step: at this size it is the number of steps that teaches
max_iters = 400
muon_iterations = 3  # as good as 5 in so small a model
learning_rate = 4e-3
embedding_rate = 4.0
head_rate = 3.0
eval_interval = 400
log_interval = 50
