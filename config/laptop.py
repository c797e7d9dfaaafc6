# A laptop, on its CPU or Apple's GPU (MPS): d2, 2M parameters, on web text. A small vocabulary
# keeps the embeddings small.
#
# $ python data/fineweb_edu/prepare.py --num_shards=2 --download_only=True
# $ python tokenizer.py config/tokenizer_65536.py --vocab_size=6400 --max_chars=100000000
# $ python data/fineweb_edu/prepare.py --num_shards=2
# $ python train.py config/laptop.py
#
# Not measured here. Time: 41M tokens of 8 MFLOP are 3.3e14 FLOP, an hour at 100 GFLOP/s, an
# assumption. With more than that --depth=4; with less time --time_limit=1800.

out_dir = 'out/laptop/pretrain'
auto_resume = True  # run the command again to resume
dataset = 'fineweb_edu'
sample_prompts = 'The sun|Water is|People'

# 2 * 12 * 128^2 + 2 * 6,400 * 128 = 2,031,616 parameters, and a table of 6,400 * 128 values, of
# which a token reads one row (extras.py). Rates, decay, batch and horizon follow from the depth
# (docs/dial.md)
depth = 2
block_size = 256
batch_size = 16  # a CPU runs fewer rows at a time, see plan.cpu_rows

eval_interval = 100
eval_iters = 64  # 64 * 16 rows * 256 = 262,144 tokens
save_interval = 50
