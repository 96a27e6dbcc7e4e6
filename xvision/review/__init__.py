"""With few labels: what a person should look at next."""
