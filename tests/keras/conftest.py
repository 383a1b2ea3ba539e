"""The backend of Keras, which reads it when it is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
