# The shards of speedrun_d20.py: settings of data/fineweb_edu/prepare.py.
#
# 20 tokens for each of 560,988,160 parameters are 11.2B tokens. At 4.8 characters per token
# (nanochat's figure for this vocabulary, not measured here) that is 53.9B characters, 215 shards of
# 250M. 240 leave a tenth for a tokenizer that compresses less.
#
# $ python data/fineweb_edu/prepare.py config/speedrun_d20_data.py

num_shards = 240  # 24 GB of parquet, 24 GB of ids
first_shards = 8  # for the tokenizer, which reads 2 billion characters
