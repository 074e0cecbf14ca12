"""Named passes over the Program, each a function; `compilation.pipeline` runs them in order."""
