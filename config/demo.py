# The built-in corpus on a laptop: two minutes on two cores, to within a few percent of the floor.
data_dir = 'data/demo'
out_dir = 'out/demo'
d_model = 128
n_layers = 4
chunk_size = 64       # demo reviews are some 24 tokens
batch_size = 32
