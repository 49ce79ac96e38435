"""dyme_core: the shared logic behind the DyME notebooks; README.md lists its modules."""
