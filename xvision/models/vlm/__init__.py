"""Ready-made vision-language models as classifiers."""
