# Tiny Shakespeare in a thousand sub-words.  python prepare.py --source=shakespeare  first.
data_dir = 'data/shakespeare'
out_dir = 'out/shakespeare'
d_model = 160         # the shape that --minutes=2 chose for two CPU cores
n_layers = 4
batch_size = 8
epochs = 3            # the 0.4 million sub-words come back, each time cut at other places
lr = 8e-3             # small models like larger steps
eval_interval = 1000  # one validation, at the end
eval_tokens = 0       # of all tokens
