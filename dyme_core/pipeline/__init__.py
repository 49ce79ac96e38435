"""A run from base to rows: training, checkpoints, evaluation, model card."""
