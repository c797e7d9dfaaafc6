# The tokenizer of speedrun_d20.py: that of tokenizer_65536.py, but it reads the first shards alone,
# since others arrive meanwhile.
#
# $ python tokenizer.py config/speedrun_d20_tokenizer.py

from conversation import SPECIAL

vocab_size = 2**16
special = ','.join(SPECIAL)
input = 'data/fineweb_edu/raw/shard_0000[0-7].parquet'  # the first_shards of speedrun_d20_data.py
max_chars = 2_000_000_000
