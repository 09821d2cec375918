"""Fine-tuning of SAM 2 on clips and images."""
