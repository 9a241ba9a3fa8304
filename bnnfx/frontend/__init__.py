"""How a graph comes in: a float module is traced, with what cannot be traced kept whole."""
