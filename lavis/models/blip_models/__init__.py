"""The original's import path, for its notebooks; see the modules beside this package."""
