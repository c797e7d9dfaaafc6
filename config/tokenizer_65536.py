# A tokenizer with nanochat's size: 65,536 ids, as many as uint16 can number. Our nine special
# tokens have the last ids. It learns from the first shards of FineWeb-Edu, or from --input=FILES.
#
# $ python data/fineweb_edu/prepare.py --num_shards=8 --download_only=True
# $ python tokenizer.py config/tokenizer_65536.py

from conversation import SPECIAL

vocab_size = 2**16
special = ','.join(SPECIAL)
input = 'data/fineweb_edu/raw/shard_000*.parquet'  # without the last one, which validates
max_chars = 2_000_000_000  # more text changes few merges
