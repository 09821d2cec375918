"""Questions and answers of every task."""
