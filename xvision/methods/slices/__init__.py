"""Patients hidden from the average for whom a model fails: proposed on half of the patients, checked on the other half."""
