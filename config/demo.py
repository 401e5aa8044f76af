# The built-in corpus on a laptop: a few minutes on two cores, to within 2% of the floor.
data_dir = 'data/demo'
out_dir = 'out/demo'
d_model = 128
n_layers = 4
chunk_size = 128      # demo reviews are some 24 tokens; in rows of 64 a fifth would stay empty
batch_size = 16
lr = 8e-3             # small models like larger steps
n_tokens = 1.64       # million, of 2.2: enough
read_share = 0        # by likelihood alone it reads the grammar's ratings without a mistake
eval_interval = 200
eval_tokens = 0.05
