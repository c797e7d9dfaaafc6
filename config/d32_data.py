# The shards of d32.py: settings of data/fineweb_edu/prepare.py.
#
# 20 tokens for each of 1,879,048,192 parameters are 37.6B tokens. At 4.8 characters per token
# (nanochat's figure for this vocabulary, not measured here) that is 180.4B characters, 722 shards
# of 250M. 800 leave a tenth for a tokenizer that compresses less.
#
# $ python data/fineweb_edu/prepare.py config/d32_data.py

num_shards = 800  # 80 GB of parquet, 80 GB of ids
first_shards = 8  # for the tokenizer, which reads 2 billion characters
