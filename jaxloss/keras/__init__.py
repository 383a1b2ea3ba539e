"""The losses of Keras, drop-in, on JAX alone: its names, arguments, defaults and values.

Functions and classes take `(y_true, y_pred)`. `as_keras_loss` makes a loss for `model.compile`
of Keras itself. `docs/keras.md` lists what differs.

>>> from jaxloss import keras
>>> loss = keras.SparseCategoricalCrossentropy(from_logits=True)
>>> print(loss([0, 1], [[1.0, 0.0], [0.0, 3.0]], sample_weight=[1.0, 0.5]))
0.168777
"""

from typing import TYPE_CHECKING

from jaxloss._names import unknown

# Classes
from jaxloss.keras._classes import (
    CTC,
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    CategoricalHinge,
    Circle,
    CosineSimilarity,
    Dice,
    Hinge,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    Tversky,
)

# Functions
from jaxloss.keras._classification import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
    kl_divergence,
    sparse_categorical_crossentropy,
)

# Predictions that are not what from_logits says
from jaxloss.keras._confusion import LogitsWarning

# Names and configurations
from jaxloss.keras._identifiers import ALIASES, deserialize, get, serialize

# Base classes, to write your own
from jaxloss.keras._late import when_imported
from jaxloss.keras._loss import Loss, LossFunctionWrapper, Reduction
from jaxloss.keras._regression import (
    categorical_hinge,
    cosine_similarity,
    hinge,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
    squared_hinge,
)
from jaxloss.keras._structured import (
    circle,
    ctc,
    dice,
    tversky,
)

# For `model.compile` of Keras; imported late, by `__getattr__`, because it imports Keras
if TYPE_CHECKING:
    from jaxloss.keras._adapter import as_keras_loss as as_keras_loss

__all__ = [
    "CTC",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "CategoricalHinge",
    "Circle",
    "CosineSimilarity",
    "Dice",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "LogitsWarning",
    "Loss",
    "LossFunctionWrapper",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "Reduction",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "Tversky",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "categorical_hinge",
    "circle",
    "cosine_similarity",
    "ctc",
    "deserialize",
    "dice",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "serialize",
    "sparse_categorical_crossentropy",
    "squared_hinge",
    "tversky",
]


def __getattr__(name: str):
    """The short names, such as `mse`, as in tf.keras; and what needs Keras itself."""
    if name in ALIASES:
        return globals()[ALIASES[name]]
    if name == "as_keras_loss":  # This imports Keras.
        from jaxloss.keras._adapter import as_keras_loss

        return as_keras_loss
    raise AttributeError(unknown(__name__, name, [*__all__, *ALIASES, "as_keras_loss"]))


def _with_keras() -> None:
    """Keras is there: where it computes with JAX, it is told of what is here."""
    import keras

    if keras.backend.backend() == "jax":
        from jaxloss.keras import _adapter  # noqa: F401


when_imported("keras", _with_keras)
