"""What the machine says of itself: memory, load, power and heat, from every source that answers."""
