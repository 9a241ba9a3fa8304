"""From the trainable network to the bit-packed one; the order is in `bnnfx.pipelines`."""
