"""The benchmark behind `bnnfx bench`: contenders built, run in turn in one process, and compared.

`models` and `layer_files` make the files, `contenders` says who takes part, `engines` runs a file, `timing` alternates,
`nodes` reads profiles, `memory` measures in a fresh process, `model` and `layer` put it together, `report` prints.
"""
