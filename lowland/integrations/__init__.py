"""One module for each training framework; ``import lowland`` does not load them."""
