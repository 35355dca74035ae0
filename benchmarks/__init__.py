"""The benchmark: both twins beside the dense layer, beside what people would use instead, and beside the FLOP limit."""
