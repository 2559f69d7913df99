"""What others can use: `points` finds a point of a run, `handover` makes its recipe and heads, `mergekit` its YAML for
mergekit, `materialise` experts for what mergekit cannot express; `model` writes the merged model, of which `rebuild`
makes the parameters, `dtypes` says in which dtype, `copies` which tensors would be stale, `shards` makes the files,
`beside` takes over what lies beside them, and `card` is the card.
"""
