"""A language model as checker and refiner, behind an OpenAI-compatible server."""
