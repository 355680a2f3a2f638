"""The paper's proof as running transformers: weights, set by hand, that carry out learning
algorithms.
"""

from incontext_linear.construction.assembler import (
    ConstructedTransformer,
    Program,
    default_constants,
)
from incontext_linear.construction.config import Constants, ConstructionConfig
from incontext_linear.construction.operations import Layer, aff, average, div, mov, mul
from incontext_linear.construction.programs import (
    gradient_descent,
    gradient_step,
    one_pass_sgd,
    ridge,
    sherman_morrison,
)
from incontext_linear.construction.registers import Registers, column, symmetric

__all__ = [
    "Constants",
    "ConstructedTransformer",
    "ConstructionConfig",
    "Layer",
    "Program",
    "Registers",
    "aff",
    "average",
    "column",
    "default_constants",
    "div",
    "gradient_descent",
    "gradient_step",
    "mov",
    "mul",
    "one_pass_sgd",
    "ridge",
    "sherman_morrison",
    "symmetric",
]
