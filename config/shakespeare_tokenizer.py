# Tiny Shakespeare in sub-words.  python prepare.py --source=shakespeare --mode=tokenizer  first.
data_dir = 'data/shakespeare'
out_dir = 'out/shakespeare_tokenizer'
d_model = 128
n_layers = 3          # better here than 4 of 96 in the same time (docs/LOG.md, Few layers)
batch_size = 4
epochs = 3
n_tokens = 0.33       # million an epoch, of 0.4
lr = 8e-3
eval_interval = 1000  # one validation, at the end
eval_tokens = 0       # of all tokens
