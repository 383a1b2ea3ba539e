"""Who calls: what is known of the order in which the arguments came.

Keras passes `(y_true, y_pred)` to whatever `compile` was given. Of two floating arrays nobody can
tell which is which, but the frame that called a public function says whose order it is.
"""

import sys
from typing import NamedTuple


class Call(NamedTuple):
    """How the code of some packages was entered."""

    by: str  # the module outside that called
    function: str  # that which it called
    depth: int  # how many frames the packages have by now


def entry(inside: str | tuple[str, ...], level: int = 1) -> Call:
    """How the frame so many levels above this one came about, `inside` these packages."""
    frame, function, depth = sys._getframe(level), "", 0
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(inside):
            return Call(module, function, depth)
        frame, function, depth = frame.f_back, frame.f_code.co_name, depth + 1
    return Call("", function, depth)


def refuse_keras() -> None:
    """An error if Keras called the function, of predictions first, that calls this."""
    if "keras" not in sys.modules:  # What nobody else has to pay for.
        return
    call = entry(("jaxloss._", "jaxloss.linear"))
    if call.by.partition(".")[0] == "keras":
        name = "Loss" if call.function == "__call__" else call.function
        raise TypeError(
            f"Keras passes (y_true, y_pred), but jaxloss.{name} takes predictions first: give "
            f"compile jaxloss.keras.as_keras_loss of it"
        )


def weighs_classes() -> bool:
    """Whether a `fit` or `train_on_batch` of Keras is running that was given `class_weight`."""
    frame = sys._getframe(1)
    while frame is not None:
        of_keras = frame.f_globals.get("__name__", "").startswith("keras.")
        if of_keras and frame.f_code.co_name in ("fit", "train_on_batch"):
            return frame.f_locals.get("class_weight") is not None
        frame = frame.f_back
    return False
