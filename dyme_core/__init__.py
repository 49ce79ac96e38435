"""dyme_core: the method behind the DyME notebooks."""
