"""Which learning algorithm does a transformer run when it learns linear regression in context?

A small PyTorch library (tasks, predictors, transformer, training, divergence, probes, construction)
with a Kedro project around it. After Akyürek et al. (ICLR 2023), arXiv 2211.15661.
"""

__version__ = "0.1.0"
