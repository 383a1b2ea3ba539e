"""The losses of JAX: exact values and derivatives, of any order, in any precision.

Functions take predictions first, then targets, and return one loss for each example, in
nats. `Loss` adds settings, weights, masks and a reduction to any of them. `jaxloss.tf`
has TensorFlow's names, `jaxloss.keras` those of Keras; both are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from jaxloss import _names
from jaxloss._core.declare import takes
from jaxloss._families.angular import arcface_loss, cosface_loss
from jaxloss._families.binary import (
    binary_cross_entropy,
    sigmoid_binary_cross_entropy,
)
from jaxloss._families.boxes import ciou_loss, diou_loss, giou_loss, iou_loss
from jaxloss._families.categorical import (
    categorical_cross_entropy,
    categorical_cross_entropy_with_integer_labels,
    safe_softmax_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from jaxloss._families.contrastive import info_nce, ntxent, siglip_loss, supervised_contrastive_loss
from jaxloss._families.crps import ensemble_crps, gaussian_crps
from jaxloss._families.decorrelation import barlow_twins_loss, vicreg_loss
from jaxloss._families.direction import (
    cosine_distance,
    cosine_similarity,
)
from jaxloss._families.dispersion import gamma_nll, negative_binomial_nll, tweedie_loss
from jaxloss._families.divergence import (
    convex_kl_divergence,
    distillation_loss,
    generalized_kl_divergence,
    js_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from jaxloss._families.experts import load_balancing_loss, router_z_loss
from jaxloss._families.fenchel_young import (
    entmax15_loss,
    entmax_loss,
    make_fenchel_young_loss,
    multiclass_sparsemax_loss,
    sparsemax_loss,
)
from jaxloss._families.focal import (
    asymmetric_loss,
    generalized_cross_entropy,
    poly_loss_cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from jaxloss._families.likelihood import (
    gaussian_nll,
    laplace_nll,
    poisson_nll,
    student_t_nll,
)
from jaxloss._families.lovasz import lovasz_hinge_loss, lovasz_softmax_loss
from jaxloss._families.margin import (
    categorical_hinge_loss,
    hinge_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    perceptron_loss,
    squared_hinge_loss,
)
from jaxloss._families.metric import batch_hard_triplet_loss, circle_loss, triplet_margin_loss
from jaxloss._families.overlap import (
    binary_dice_loss,
    dice_loss,
    jaccard_loss,
    multiclass_generalized_dice_loss,
    tversky_loss,
)
from jaxloss._families.policy import (
    cispo_loss,
    clipped_surrogate_loss,
    clipped_value_loss,
    group_advantages,
    kl_estimate,
    policy_gradient_loss,
)
from jaxloss._families.preference import (
    bradley_terry_loss,
    cpo_loss,
    dpo_hinge_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from jaxloss._families.ranking import (
    approx_ndcg_loss,
    listmle_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
    ranking_softmax_loss,
)
from jaxloss._families.regression import (
    absolute_error,
    absolute_percentage_error,
    huber_loss,
    l2_loss,
    log_cosh,
    quantile_loss,
    squared_error,
    squared_log_error,
    wing_loss,
)
from jaxloss._families.robust import expectile_loss, general_robust_loss, smooth_l1_loss
from jaxloss._families.sequence import ctc_loss, ctc_loss_with_forward_probs
from jaxloss._families.survival import cox_loss
from jaxloss._families.transducer import rnnt_additive_loss, rnnt_loss
from jaxloss._imbalance import class_weights_from_counts, logit_adjustment
from jaxloss._loss import Loss
from jaxloss._mean import Mean
from jaxloss._metrics import classification_metrics
from jaxloss._training import total_loss, uncertainty_weighting
from jaxloss._value_and_grad import value_and_grad
from jaxloss.linear import linear_cross_entropy, linear_distillation, linear_statistics

if TYPE_CHECKING:
    from jaxloss import keras as keras
    from jaxloss import tf as tf

__version__ = "0.2.0"

__all__ = [
    "Loss",
    "Mean",
    "absolute_error",
    "absolute_percentage_error",
    "approx_ndcg_loss",
    "arcface_loss",
    "asymmetric_loss",
    "barlow_twins_loss",
    "batch_hard_triplet_loss",
    "binary_cross_entropy",
    "binary_dice_loss",
    "bradley_terry_loss",
    "categorical_cross_entropy",
    "categorical_cross_entropy_with_integer_labels",
    "categorical_hinge_loss",
    "ciou_loss",
    "circle_loss",
    "cispo_loss",
    "class_weights_from_counts",
    "classification_metrics",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "convex_kl_divergence",
    "cosface_loss",
    "cosine_distance",
    "cosine_similarity",
    "cox_loss",
    "cpo_loss",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "dice_loss",
    "diou_loss",
    "distillation_loss",
    "dpo_hinge_loss",
    "dpo_loss",
    "ensemble_crps",
    "entmax15_loss",
    "entmax_loss",
    "expectile_loss",
    "gamma_nll",
    "gaussian_crps",
    "gaussian_nll",
    "general_robust_loss",
    "generalized_cross_entropy",
    "generalized_kl_divergence",
    "giou_loss",
    "group_advantages",
    "hinge_loss",
    "huber_loss",
    "info_nce",
    "iou_loss",
    "ipo_loss",
    "jaccard_loss",
    "js_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "kl_estimate",
    "kto_loss",
    "l2_loss",
    "laplace_nll",
    "linear_cross_entropy",
    "linear_distillation",
    "linear_statistics",
    "listmle_loss",
    "load_balancing_loss",
    "log_cosh",
    "logit_adjustment",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
    "make_fenchel_young_loss",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "negative_binomial_nll",
    "ntxent",
    "orpo_loss",
    "pairwise_hinge_loss",
    "pairwise_logistic_loss",
    "perceptron_loss",
    "poisson_nll",
    "policy_gradient_loss",
    "poly_loss_cross_entropy",
    "quantile_loss",
    "ranking_softmax_loss",
    "rnnt_additive_loss",
    "rnnt_loss",
    "robust_dpo_loss",
    "router_z_loss",
    "safe_softmax_cross_entropy",
    "siglip_loss",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "simpo_loss",
    "smooth_l1_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss",
    "sparsemax_loss",
    "squared_error",
    "squared_hinge_loss",
    "squared_log_error",
    "student_t_nll",
    "supervised_contrastive_loss",
    "takes",
    "total_loss",
    "triplet_margin_loss",
    "tversky_loss",
    "tweedie_loss",
    "uncertainty_weighting",
    "value_and_grad",
    "vicreg_loss",
    "wing_loss",
]


def __getattr__(name: str):
    if name in _names.FACES:
        return import_module(f"jaxloss.{name}")
    raise AttributeError(_names.unknown(__name__, name, __all__))


def __dir__() -> list[str]:
    return sorted([*globals(), *_names.FACES])
