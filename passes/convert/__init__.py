"""From the traced float network to the trainable binary one; the order is in `bnnfx.pipelines`."""
