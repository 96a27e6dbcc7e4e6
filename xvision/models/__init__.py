"""Models: the classifier built on a language model, and every other form that a model under audit may come in."""

import logging

# transformers imports torchao where it is installed, which then complains of CUDA kernels that are never asked for here.
logging.getLogger("torchao").setLevel(logging.ERROR)
