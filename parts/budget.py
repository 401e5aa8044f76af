"""How large a model, and how often to read the text: what --minutes decides.

    tokens of the text, operations that the time allows → shape_for → a model of that shape, some
    steps of it → how many tokens fit into the time → length_for

Fitted to decoders, in runs of half a minute to five minutes of two CPU cores, and of two texts for
thirty; beyond that it is a guess. See docs/LOG.md, One dial, Few layers and More dropout.
"""
import math

MOST_EPOCHS = 60           # the most that was tried


def shape_for(n_tokens, vocab_size, flops, chunk_size=256, d_model=0, n_layers=0, epochs=0):
    """{setting of train.py: value}: the model, and the steps, where there is time for so many
    floating-point operations. n_tokens: of the text. d_model, n_layers, epochs: where they are
    given.
    """
    # A pass multiplies with 12 d_model² weights in a block and vocab_size d_model in the head.
    def weights(n_layers, d_model, of_head=1):
        return (12 * n_layers * d_model + of_head * vocab_size) * d_model

    # How many are best grows with a power of the operations (0.5 in large models, Hoffmann et al.
    # 2022, arXiv:2203.15556; less in small ones). Half of the head counts: it is there from the
    # start, by counting. 3.3e12 operations are about a minute of two slow cores.
    n_weights = 3.7e5 * (flops / 3.3e12) ** 0.4

    # from small to large: first wider, then deeper, then wider again, then both
    shapes = [(1, 64), (1, 96), (1, 128), (2, 128), (3, 128), (4, 128), (4, 160), (4, 192),
              (4, 224), *((width // 48, width) for width in range(256, 2049, 64))]
    shapes = [(n_layers or depth, d_model or width) for depth, width in shapes]
    n_layers, d_model = min(
        shapes, key=lambda shape: abs(math.log(weights(*shape, 0.5) / n_weights)))
    if d_model < 256:
        n_rows = 8                                            # of 256 tokens
    elif d_model < 512:
        n_rows = 16
    else:
        n_rows = 64
    n_rows = max(1, min(n_rows, n_tokens // (8 * 256)) * 256 // chunk_size)   # eight steps an epoch
    n_multiplied = weights(n_layers, d_model)
    budget = flops / 6 / n_multiplied                         # 6 operations for a weight and token
    n_stored = n_multiplied + vocab_size * d_model            # with the embedding
    settings = {
        'n_layers': n_layers,
        'd_model': d_model,
        'batch_size': n_rows,
        'lr': 8e-3 if d_model < 256 else 6e-3,
        # for the trial steps; small models are slower than this budget assumes
        'dropout': dropout_for(n_tokens, n_stored, d_model, budget, epochs),
    }
    if n_tokens <= chunk_size:                                # the text does not fill a row
        settings['chunk_size'] = 2 ** max(1, (n_tokens - 1).bit_length() - 1)
    return settings


def length_for(n_tokens, n_weights, d_model, budget, epochs=0):
    """{setting of train.py: value}: how often a model of n_weights, tables included, and a width is
    to read a text of n_tokens, where there is time for a budget of tokens. epochs: where they are
    given.
    """
    dropout = dropout_for(n_tokens, n_weights, d_model, budget, epochs)
    epochs = epochs or min(max(1, math.ceil(budget / n_tokens - 0.1)), MOST_EPOCHS)
    return {
        'epochs': epochs,
        'n_tokens': round(budget / epochs / 1e6, 4) if budget < epochs * n_tokens else 0.0,
        'dropout': dropout,
        'table_decay': 1.0 if dropout else 0.0,
    }


def dropout_for(n_tokens, n_weights, d_model, budget, epochs):
    """0 where a model is too small to learn the text by heart: 12 weights or fewer for each token,
    times passes over them. Else passes x width / 17,000, from 0.1 to 0.4, the most that was tried.
    """
    n_passes = min(budget / n_tokens, epochs or MOST_EPOCHS)
    if n_passes <= 1 or n_passes * n_weights / n_tokens <= 12:
        return 0.0
    return round(min(max(0.1, n_passes * d_model / 17000), 0.4), 1)
