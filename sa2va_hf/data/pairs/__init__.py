"""Two views of one object, from the rows of prepared clips and images."""
