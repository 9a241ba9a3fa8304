"""From ternary activations to two binary ones each; the order is in `bnnfx.pipelines`."""
