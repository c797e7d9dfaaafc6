# Reinforcement learning: word problems of two and three steps, of which only the answer is known.
#
# The people whose answers sft imitated did most of these in their head, and a small model cannot. It finds out by
# itself that the calculator pays.
#
# $ python train.py config/tinyworld_rl.py

stage = 'rl'
init_from = 'out/tinyworld/dpo'
out_dir = 'out/tinyworld/rl'
auto_resume = True
dataset = 'tinyworld/sft'  # its held-out conversations show what the rest of the model does meanwhile
rl_skills = 'two_step,three_step'

rl_samples = 8  # answers to each question
rl_tokens = 70  # three calls and a sentence
batch_size = 64
gradient_accumulation_steps = 2  # 16 questions a step
max_iters = 32
learning_rate = 2.5e-4  # twice that forgets more of what is not practised
eval_interval = 16
eval_problems = 30
log_interval = 4
