"""What else than the disease a model can go by, and whether it does."""
