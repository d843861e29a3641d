"""What makes CPUs fast; none of it changes what a model means."""
