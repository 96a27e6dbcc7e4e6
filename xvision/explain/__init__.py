"""Methods of explanation joined to the models they fit: what may be used, what is refused and why."""
