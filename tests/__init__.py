"""Tests. What must be declared before the first import of transformers is declared in ``tests.benchmarks``."""

import tests.benchmarks  # noqa: F401  # for what its import does
