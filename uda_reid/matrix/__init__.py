"""The transfer matrix: every recipe from every source to every target, several seeds of each."""
