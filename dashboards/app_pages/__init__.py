"""The pages, each a function of a run and the links to the other pages."""
