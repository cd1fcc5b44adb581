"""Training linear heads from hand labels, and measuring how well a classifier does."""
