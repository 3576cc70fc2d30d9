"""From records to trained networks."""
