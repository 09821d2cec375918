"""From raw datasets to batches: sources yield samples, prepare writes Arrow, dataset and collator read it."""
