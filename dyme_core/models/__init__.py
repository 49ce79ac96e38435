"""Policies: loading, processors, generation, and what saves work inside them."""
