"""What is compared: a pair of functions, its numbers, its transforms."""
