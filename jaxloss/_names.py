"""What was meant by a name that is not here: one of ours, or what it is called elsewhere."""

from collections.abc import Iterable
from importlib import import_module

from jaxloss._core.checks import closest

FACES = "keras", "tf"

# Names of other libraries, mostly torch's, that are not near ours: as classes and as functions,
# which differ in `_`, in case and in a `Loss` at the end.
ELSEWHERE = {
    "bce": "binary_cross_entropy",
    "bcewithlogits": "sigmoid_binary_cross_entropy",
    "binarycrossentropywithlogits": "sigmoid_binary_cross_entropy",
    "sigmoidbce": "sigmoid_binary_cross_entropy",
    "sigmoidcrossentropy": "sigmoid_binary_cross_entropy",
    "softmargin": "sigmoid_binary_cross_entropy",
    "multilabelsoftmargin": "sigmoid_binary_cross_entropy",
    "focal": "sigmoid_focal_loss",
    "crossentropy": "softmax_cross_entropy_with_integer_labels",
    "nll": "softmax_cross_entropy_with_integer_labels",
    "sparsecrossentropy": "softmax_cross_entropy_with_integer_labels",
    "mse": "squared_error",
    "mae": "absolute_error",
    "l1": "absolute_error",
    "pinball": "quantile_loss",
    "mape": "absolute_percentage_error",
    "msle": "squared_log_error",
    "kldiv": "kl_divergence",
    "cosineembedding": "cosine_distance",
    "multimargin": "multiclass_hinge_loss",
    "marginranking": "pairwise_hinge_loss",
    "additiveangularmargin": "arcface_loss",
    "amsoftmax": "cosface_loss",
    "supcon": "supervised_contrastive_loss",
    "coxph": "cox_loss",
    "askeras": "keras.as_keras_loss",
}


def unknown(module: str, name: str, known: Iterable[str]) -> str:
    """The message of an AttributeError, with what was meant."""
    meant = [] if name.startswith("_") else _meant(module, name, list(known))
    hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
    return f"module {module!r} has no attribute {name!r}{hint}"


def _meant(module: str, name: str, known: list[str]) -> list[str]:
    same = next((n for n in known if short(n) == short(name)), None)
    here = [] if same is None else [f"{module}.{same}"]
    if ours := ELSEWHERE.get(short(name)):
        here.append(f"jaxloss.{ours}")
    others = {"jaxloss", *(f"jaxloss.{face}" for face in FACES)} - {module}
    here += [f"{m}.{name}" for m in sorted(others) if name in import_module(m).__all__]
    near = None if here else closest(name, known)
    return here if near is None else [f"{module}.{near}"]


def short(name: str) -> str:
    """What the names of one loss in several libraries and spellings have in common."""
    return name.lower().replace("_", "").removesuffix("loss")
