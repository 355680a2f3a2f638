"""A learner in the tools that people use on networks: TransformerLens, nnsight, pyvene.

They come with the extra ``[interop]``; nothing else of the package imports them, and each module
here imports one of them:

hooked         TransformerLens: a learner with hook points (`HookedLearner`)
interchange    pyvene: the interchange of a context's states (`interchange_context`)

nnsight needs nothing of ours: ``nnsight.NNsight(learner.model)`` traces the plain module.
"""
