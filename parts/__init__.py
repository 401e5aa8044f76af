"""What the scripts are made of: one concern a file, each importable and tested alone.

    scripts (prepare, train, eval, sample)  →  parts  →  model, configurator        arrows never run
    back

The lesson: batches, bigram, optim, scoring, vocabulary, grammar. The plumbing: all the others.
"""
