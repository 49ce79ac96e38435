"""Public data sets, read into records."""
