# A tokenizer with nanochat's size: 65,536 ids, as many as uint16 can number. Our nine special
# tokens have the last ids.
#
# $ python tokenizer.py config/tokenizer_65536.py --input=FILES --out=tok.json

from conversation import SPECIAL

vocab_size = 2**16
special = ','.join(SPECIAL)
max_chars = 2_000_000_000  # more text changes few merges
