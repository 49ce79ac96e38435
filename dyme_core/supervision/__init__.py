"""Visual supervision: facts of a picture, checkers, refiners."""
