# Pretraining on tinyworld's plain text with a mixture of experts (moe.py), for CPUs. LOG.md has its
# loss beside that of a dense model of equal FLOPs.
#
# $ python train.py config/tinyworld_moe.py
#
# The later stages start from it, as from tinyworld_pretrain.py:
#
# $ python train.py config/tinyworld_mid.py --init_from=out/tinyworld_moe/pretrain \
# >     --out_dir=out/tinyworld_moe/mid

out_dir = 'out/tinyworld_moe/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'tinyworld/pretrain'

# As tinyworld_games.py, but each MLP of width 384 became eight experts of width 192. A token uses
# two of them: a layer's experts hold 8 * 3 * 192 * 128 = 589,824 parameters, of which
# 2 * 3 * 192 * 128 = 147,456 are active, as many as the MLP had
preset = 'qwen3'
tied_head = False
n_layer = 4
n_head = 4
n_embd = 128
n_hidden = 192
n_expert = 8
n_expert_active = 2
expert_balance = 0.1  # keeps experts in use in the later stages too, which inherit it
block_size = 256
rope_theta = 500.0  # rows are short
zero_init = True

isolate = True
batch_size = 4  # 4 * 256 = 1,024 tokens per step
max_iters = 300
muon_iterations = 3
learning_rate = 4e-3
embedding_rate = 4.0
head_rate = 3.0
eval_interval = 300
log_interval = 50
