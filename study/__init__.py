"""This paper's experiments: what is run, and its tables, figures and claims."""
