"""One file is one analysis: one question, one dashboard page, one section of the report. The registry finds them."""
