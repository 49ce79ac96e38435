"""What carries the study out: runs side by side, the whole plan, the notebooks in order."""
