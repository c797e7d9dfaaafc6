# The tokenizer of d32.py: the same as that of speedrun_d20.py, so that both can share the ids.
#
# $ python tokenizer.py config/d32_tokenizer.py

from conversation import SPECIAL

vocab_size = 2**16
special = ','.join(SPECIAL)
input = 'data/fineweb_edu/raw/shard_0000[0-7].parquet'  # the first_shards of d32_data.py
max_chars = 2_000_000_000
