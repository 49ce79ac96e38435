"""What is run now and then: the bases, the checker benchmark, the local model server."""
