"""The classifier built on a language model."""
