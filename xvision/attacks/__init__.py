"""Attacks on a deployed decision, and the evidence that they were working."""
