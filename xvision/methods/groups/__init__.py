"""Groups of patients: who they are, how a model does for each, and whether that differs."""
