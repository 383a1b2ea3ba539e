"""Keras's loss classes: settings, then `reduction`, `name` and `dtype`, in Keras's order.

Each is a `Loss` of the function of its name, with that function's arguments as settings, which
are attributes too. `reduction`, `name` and `dtype` are those of `Loss`.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.checks import Axis
from jaxloss._core.examples import fill_trees, weighed_losses
from jaxloss._core.reduce import per_example
from jaxloss.keras import _classification, _regression, _structured
from jaxloss.keras._inputs import class_axis, class_ids, row_labels
from jaxloss.keras._loss import Loss, LossFunctionWrapper, both, plain

_MEAN = "sum_over_batch_size"


class _Own(LossFunctionWrapper):
    """A loss of this package: its settings are attributes, and all of its configuration."""

    def __init__(self, fn, reduction, name, dtype, **settings):
        super().__init__(fn, reduction, name, dtype, **settings)
        for key, value in settings.items():
            setattr(self, key, value)

    @property
    def _options(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self._fn_kwargs}

    def get_config(self) -> dict[str, Any]:
        return Loss.get_config(self) | plain(self._options)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _MeanOfEntries(_Own):
    """The mean of losses of entries: of rank one, each entry is an example."""

    def _converted(self, y_true, y_pred):
        y_true, y_pred = super()._converted(y_true, y_pred)
        if y_pred.ndim == 1 and getattr(self, "axis", -1) == -1:
            y_pred, y_true = y_pred[:, None], y_true[:, None] if y_true.ndim else y_true
        return y_true, y_pred


class _Regions(_Own):
    """A loss of sums over `axis`, by default over the batch too."""

    def _no_examples(self) -> str:
        return (
            f"{self.name} with axis={self._options['axis']} is one number for the whole batch, "
            f"which cannot be weighed or masked: sum over all axes but the batch's, e.g. with "
            f"axis=(1, 2, 3)"
        )


class _Labelled(_Own):
    """A loss of integer labels, which may come as floats."""

    def _converted(self, y_true, y_pred):
        y_true, y_pred = Loss._converted(self, y_true, y_pred)
        return class_ids(y_true), y_pred


class MeanSquaredError(_MeanOfEntries):
    """`mean_squared_error` with a reduction.

    >>> print(MeanSquaredError()([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]))
    3.0
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "mean_squared_error",
        dtype: Any = None,
    ):
        super().__init__(_regression.mean_squared_error, reduction, name, dtype)


class MeanAbsoluteError(_MeanOfEntries):
    """`mean_absolute_error` with a reduction.

    >>> print(MeanAbsoluteError()([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]))
    1.5
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "mean_absolute_error",
        dtype: Any = None,
    ):
        super().__init__(_regression.mean_absolute_error, reduction, name, dtype)


class MeanAbsolutePercentageError(_MeanOfEntries):
    """`mean_absolute_percentage_error` with a reduction.

    >>> print(MeanAbsolutePercentageError()([[2.0], [4.0]], [[1.0], [5.0]]))
    37.5
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "mean_absolute_percentage_error",
        dtype: Any = None,
    ):
        super().__init__(_regression.mean_absolute_percentage_error, reduction, name, dtype)


class MeanSquaredLogarithmicError(_MeanOfEntries):
    """`mean_squared_logarithmic_error` with a reduction.

    >>> print(MeanSquaredLogarithmicError()([[1.0], [1.0]], [[0.0], [3.0]]))
    0.480453
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "mean_squared_logarithmic_error",
        dtype: Any = None,
    ):
        super().__init__(_regression.mean_squared_logarithmic_error, reduction, name, dtype)


class CosineSimilarity(_Own):
    """`cosine_similarity` with a reduction.

    >>> print(CosineSimilarity()([[3.0, 4.0], [1.0, 0.0]], [[6.0, 8.0], [0.0, 1.0]]))
    -0.5
    """

    def __init__(
        self,
        axis: int = -1,
        reduction: str | None = _MEAN,
        name: str | None = "cosine_similarity",
        dtype: Any = None,
    ):
        super().__init__(
            _regression.cosine_similarity,
            reduction,
            name,
            dtype,
            axis=axis,
        )


class Huber(_MeanOfEntries):
    """`huber` with a reduction.

    >>> print(Huber()([[0.0], [0.0]], [[0.5], [3.0]]))
    1.3125
    """

    def __init__(
        self,
        delta: ArrayLike = 1.0,
        reduction: str | None = _MEAN,
        name: str | None = "huber_loss",
        dtype: Any = None,
    ):
        super().__init__(
            _regression.huber,
            reduction,
            name,
            dtype,
            delta=delta,
        )


class LogCosh(_MeanOfEntries):
    """`log_cosh` with a reduction.

    >>> print(LogCosh()([[0.0], [0.0]], [[0.0001], [1.0]]))
    0.216890
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "log_cosh",
        dtype: Any = None,
    ):
        super().__init__(_regression.log_cosh, reduction, name, dtype)


class Poisson(_MeanOfEntries):
    """`poisson` with a reduction.

    >>> print(Poisson()([[1.0], [2.0]], [[1.0], [2.0]]))
    0.806853
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "poisson",
        dtype: Any = None,
    ):
        super().__init__(_regression.poisson, reduction, name, dtype)


class Hinge(_MeanOfEntries):
    """`hinge` with a reduction.

    >>> print(Hinge()([[0.0], [1.0]], [[-0.5], [0.25]]))
    0.625
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "hinge",
        dtype: Any = None,
    ):
        super().__init__(_regression.hinge, reduction, name, dtype)


class SquaredHinge(_MeanOfEntries):
    """`squared_hinge` with a reduction.

    >>> print(SquaredHinge()([[0.0], [1.0]], [[-0.5], [0.25]]))
    0.40625
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "squared_hinge",
        dtype: Any = None,
    ):
        super().__init__(_regression.squared_hinge, reduction, name, dtype)


class CategoricalHinge(_Own):
    """`categorical_hinge` with a reduction.

    >>> print(CategoricalHinge()([[1.0, 0.0, 0.0]], [[0.75, 0.5, 0.0]]))
    0.75
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "categorical_hinge",
        dtype: Any = None,
    ):
        super().__init__(_regression.categorical_hinge, reduction, name, dtype)


class KLDivergence(_Own):
    """`kl_divergence` with a reduction.

    >>> print(KLDivergence()([[0.5, 0.5]], [[0.25, 0.75]]))
    0.143841
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "kl_divergence",
        dtype: Any = None,
    ):
        super().__init__(_classification.kl_divergence, reduction, name, dtype)


class BinaryCrossentropy(_MeanOfEntries):
    """`binary_crossentropy` with a reduction.

    >>> loss = BinaryCrossentropy(reduction="sum")
    >>> print(loss([[0.0, 1.0], [0.0, 0.0]], [[0.6, 0.4], [0.4, 0.6]]))
    1.629849
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: ArrayLike = 0.0,
        axis: int = -1,
        reduction: str | None = _MEAN,
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            _classification.binary_crossentropy,
            reduction,
            name,
            dtype,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class BinaryFocalCrossentropy(_MeanOfEntries):
    """`binary_focal_crossentropy` with a reduction.

    >>> print(BinaryFocalCrossentropy()([[0.0, 1.0]], [[0.5, 0.75]]))
    0.095634
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: ArrayLike = 0.25,
        gamma: ArrayLike = 2.0,
        from_logits: bool = False,
        label_smoothing: ArrayLike = 0.0,
        axis: int = -1,
        reduction: str | None = _MEAN,
        name: str | None = "binary_focal_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            _classification.binary_focal_crossentropy,
            reduction,
            name,
            dtype,
            apply_class_balancing=apply_class_balancing,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class CategoricalCrossentropy(_Own):
    """`categorical_crossentropy` with a reduction.

    >>> print(CategoricalCrossentropy()([[0.0, 1.0]], [[0.25, 0.75]]))
    0.287682
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: ArrayLike = 0.0,
        axis: int = -1,
        reduction: str | None = _MEAN,
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            _classification.categorical_crossentropy,
            reduction,
            name,
            dtype,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class CategoricalFocalCrossentropy(_Own):
    """`categorical_focal_crossentropy` with a reduction.

    >>> print(CategoricalFocalCrossentropy()([[0.0, 1.0]], [[0.25, 0.75]]))
    0.004495
    """

    def __init__(
        self,
        alpha: ArrayLike = 0.25,
        gamma: ArrayLike = 2.0,
        from_logits: bool = False,
        label_smoothing: ArrayLike = 0.0,
        axis: int = -1,
        reduction: str | None = _MEAN,
        name: str | None = "categorical_focal_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            _classification.categorical_focal_crossentropy,
            reduction,
            name,
            dtype,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class SparseCategoricalCrossentropy(_Labelled):
    """`sparse_categorical_crossentropy` with a reduction.

    Rows of `ignore_class` are masked: they do not count in a mean.

    >>> print(SparseCategoricalCrossentropy()([1, 0], [[0.25, 0.75], [0.5, 0.5]]))
    0.490415
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = _MEAN,
        axis: int = -1,
        label_smoothing: ArrayLike = 0.0,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            _classification.sparse_categorical_crossentropy,
            reduction,
            name,
            dtype,
            from_logits=from_logits,
            ignore_class=ignore_class,
            axis=axis,
            label_smoothing=label_smoothing,
        )

    def _weighed(self, y_true, y_pred, weights, where):
        if self._options["ignore_class"] is not None:
            axis = class_axis(self._options["axis"], y_pred.ndim)
            labels = row_labels(y_true, y_pred.ndim, axis)
            where = both(where, labels != int(self._options["ignore_class"]))
        return super()._weighed(y_true, y_pred, weights, where)


class CategoricalGeneralizedCrossEntropy(_Labelled):
    """`categorical_generalized_cross_entropy` with a reduction.

    Raises:
        ValueError: `q` is not between 0 and 1, as in Keras.

    >>> print(CategoricalGeneralizedCrossEntropy()([0, 1], [[1.0, 0.0], [0.75, 0.25]]))
    0.5
    """

    def __init__(
        self,
        q: ArrayLike = 0.5,
        reduction: str | None = _MEAN,
        name: str | None = "categorical_generalized_cross_entropy",
        dtype: Any = None,
    ):
        if isinstance(q, (int, float)) and not 0 < q < 1:
            raise ValueError(f"q must be between 0 and 1, got {q}")
        super().__init__(
            _classification.categorical_generalized_cross_entropy,
            reduction,
            name,
            dtype,
            q=q,
        )


class CTC(_Labelled):
    """`ctc` with a reduction.

    A mask of shape (B,) is one of sequences, one of shape (B, T), such as Keras puts on
    `y_pred`, of frames: those left out are paddings. A sequence without frames is masked.

    >>> print(CTC()([[1, 0]], [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    1.098612
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "ctc",
        dtype: Any = None,
    ):
        super().__init__(_structured.ctc, reduction, name, dtype)

    def _weighed(self, y_true, y_pred, weights, where):
        if where is None or where.ndim < 2:
            return super()._weighed(y_true, y_pred, weights, where)
        frames = per_example("mask", where, y_pred.shape[:2])
        return weighed_losses(
            lambda of: _structured.ctc_of(of[1], of[0], frames),
            (y_pred, y_true),
            partial(fill_trees, axes=self._class_axes(y_pred)),
            weights=weights,
            where=jnp.any(frames, 1),
            names=("sample_weight", "mask"),
        )


class Dice(_Regions):
    """`dice` with a reduction.

    >>> print(Dice(axis=1)([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]))
    0.333333
    """

    def __init__(
        self,
        reduction: str | None = _MEAN,
        name: str | None = "dice",
        axis: Axis = None,
        dtype: Any = None,
    ):
        super().__init__(
            _structured.dice,
            reduction,
            name,
            dtype,
            axis=axis,
        )


class Tversky(_Regions):
    """`tversky` with a reduction.

    >>> print(Tversky(0.25, 0.75, axis=1)([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]))
    0.428571
    """

    def __init__(
        self,
        alpha: ArrayLike = 0.5,
        beta: ArrayLike = 0.5,
        reduction: str | None = _MEAN,
        name: str | None = "tversky",
        axis: Axis = None,
        dtype: Any = None,
    ):
        super().__init__(
            _structured.tversky,
            reduction,
            name,
            dtype,
            alpha=alpha,
            beta=beta,
            axis=axis,
        )


class Circle(_Labelled):
    """`circle` with a reduction.

    A row without a loss, such as one without a positive pair, does not count in a mean. A
    masked row is not compared with the others either; one of weight zero is.

    >>> loss = Circle(gamma=1.0)
    >>> print(loss([0, 0, 1], [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    0.789009
    """

    def __init__(
        self,
        gamma: ArrayLike = 80.0,
        margin: ArrayLike = 0.4,
        remove_diagonal: bool = True,
        reduction: str | None = _MEAN,
        name: str | None = "circle",
        dtype: Any = None,
    ):
        super().__init__(
            _structured.circle,
            reduction,
            name,
            dtype,
            gamma=gamma,
            margin=margin,
            remove_diagonal=remove_diagonal,
        )

    def _weighed(self, y_true, y_pred, weights, where):
        if where is not None:
            where = per_example("mask", where, y_pred.shape[:1])
        losses = _structured.circle_of(y_true, y_pred, where=where, **self._options)
        if weights is not None:
            weights = per_example("sample_weight", weights.astype(losses.dtype), losses.shape)
        return losses, weights, both(where, losses != 0)
