"""Whether two sets of cases are alike, and what a difference between them does to a model's figures."""
