"""dyme_core: the shared logic behind the DyME notebooks; rooms in reading order are listed in README.md."""
