# Reinforcement learning: word problems of two and three steps. Only their answers are known.
#
# The solutions that sft imitates compute most of these without the calculator, which a small model
# cannot. In this stage it discovers that the calculator pays.
#
# $ python train.py config/tinyworld_rl.py

stage = 'rl'
init_from = 'out/tinyworld/dpo'
out_dir = 'out/tinyworld/rl'
auto_resume = True
dataset = 'tinyworld/sft'  # its held-out conversations show whether the model forgets the rest
rl_skills = 'two_step,three_step'

rl_samples = 8  # answers per question
rl_tokens = 70  # three calls and a sentence
batch_size = 64
gradient_accumulation_steps = 2  # 2 * 64 / 8 = 16 questions per step
max_iters = 32
learning_rate = 2.5e-4  # at twice that the model forgets more of what it does not practise
eval_interval = 16
eval_problems = 30
log_interval = 4
