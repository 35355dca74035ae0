"""The atlas: operators that both frameworks offer, with the default arguments that people write."""
