"""What the scripts are made of: one concern a file, each importable and tested alone.

    prepare, train, eval, sample  →  parts  →  model, configurator        no arrow runs back

The lesson: data, optim, bigram, guidance, scoring, vocabulary, grammar. The plumbing: the others.
"""
