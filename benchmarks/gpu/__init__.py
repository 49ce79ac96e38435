"""What a CUDA card is asked to show, in stages (`make test-gpu`); `--dry` runs every stage at toy size on a CPU."""
