"""The compiler's passes, one per file: file ``snake_case.py`` holds the one class ``SnakeCase``.

The folder sits at the top of the repository because the passes are what most readers come for; the package reaches
it through the symbolic link ``bnnfx/passes``, so its import name is ``bnnfx.passes``.
"""

if __name__ == "passes":
    raise ImportError(
        "This folder is the package bnnfx.passes and cannot be imported as top-level 'passes': its modules would be "
        "loaded a second time, beside the ones bnnfx uses. Write 'import bnnfx.passes' instead."
    )
