"""Classifiers of every form behind one protocol."""

import logging

# transformers imports torchao where it is installed, and that logs every GPU kernel it cannot load and every type it registers.
logging.getLogger("torchao").addFilter(lambda record: not record.getMessage().startswith("Failed to load"))
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "is an Enum subclass" not in record.getMessage())
