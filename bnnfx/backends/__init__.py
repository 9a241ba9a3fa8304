"""How a packed graph goes out: one subpackage per target."""
